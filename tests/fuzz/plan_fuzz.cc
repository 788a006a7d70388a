// Plan files and the formats of published systems; the first byte chooses which. A plan that is
// accepted can be counted, written and read back.
#include <string>

#define HEED_JSON_PREFIX 1  // the choice
#include "cache/plan/plan_file.h"
#include "cache/plan/plan_formats.h"
#include "fuzz.h"
#include "json_mutator.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heed;
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string model(64, '0');
  fuzz::attempt([&] {
    Plan plan;
    switch (data[0] % 6) {
      case 0:
        plan = plan_from_duo(text, "f", model);
        break;
      case 1:
        plan = plan_from_moa(text, "f", model, 0, 4096);
        break;
      case 2:
        plan = plan_from_razor(text, "f", model, 4, 3);
        break;
      default:
        plan = parse_plan(text, "f");
    }
    for (const int64_t n : {int64_t{1}, int64_t{4096}, int64_t{1} << 20}) {
      const int64_t bytes = kv_bytes(plan, n, 64, 64, 2);
      const auto heads = static_cast<int64_t>(plan.heads.size() * plan.heads[0].size());
      fuzz::require(bytes > 0 && bytes <= heads * n * 256);
    }
    const std::string written = plan_text(plan);
    fuzz::require(plan_text(parse_plan(written, "again")) == written);
    fuzz::attempt([&] { duo_from_plan(plan); });
    fuzz::attempt([&] { moa_from_plan(plan); });
    razor_from_plan(plan);
  });
  return 0;
}
