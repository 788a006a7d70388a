// config.json: what is accepted has sizes that can be worked with, and is written as a config.json
// that reads back to the same model.
#include <cmath>

#include "fuzz.h"
#include "io/model_config.h"
#include "json_mutator.h"

namespace {

using namespace heed;

void check(const ModelConfig& c) {
  fuzz::require(c.heads % c.kv_heads == 0 && c.group() >= 1);
  fuzz::require(c.q_size() > 0 && c.kv_size() > 0);
  fuzz::require(c.parameters() > 0);
  fuzz::require(static_cast<int64_t>(c.windows.size()) == c.layers);
  fuzz::require(std::isfinite(c.rope.base) && std::isfinite(c.rope.factor));
  for (const auto& [layer, mixer] : c.mixers) {
    fuzz::require(layer >= 0 && layer < c.layers && mixer.options.is_object());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  fuzz::attempt([&] {
    const ModelConfig config = parse_config(parse_json(text, "f"), "f");
    check(config);
    const Json written = config_to_json(config, "float32");
    const ModelConfig again = parse_config(written, "again");
    check(again);
    fuzz::require(canonical_shapes(again) == canonical_shapes(config));
    fuzz::require(again.parameters() == config.parameters());
    fuzz::require(again.rope.type == config.rope.type && again.rope.base == config.rope.base);
    fuzz::require(config_to_json(again, "float32") == written);
  });
  return 0;
}
