// JSON: what is accepted has a canonical text that reads back to itself, and every
// typed getter answers or refuses.
#include <string>

#include "fuzz.h"
#include "io/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heed;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  fuzz::attempt([&] {
    const Json json = parse_json(text, "f");
    const std::string canonical = canonical_json(json);
    fuzz::require(canonical_json(parse_json(canonical, "again")) == canonical);
    fuzz::require(parse_json(pretty_json(json), "again") == json);
    if (!json.is_object()) return;
    for (const auto& item : json.items()) {
      const std::string& key = item.key();
      fuzz::attempt([&] { get_int(json, key, "f", 1); });
      fuzz::attempt([&] { get_float(json, key, "f", 1.0); });
      fuzz::attempt([&] { get_bool(json, key, "f", true); });
      fuzz::attempt([&] { get_string(json, key, "f", ""); });
      fuzz::attempt([&] { get_ints(json, key, "f"); });
      fuzz::attempt([&] { get_floats(json, key, "f"); });
      fuzz::attempt([&] { get_strings(json, key, "f"); });
      fuzz::attempt([&] { get_int(get_object(json, key, "f"), "rope_type", "f"); });
    }
  });
  return 0;
}
