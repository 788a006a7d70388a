// Mistral (arXiv 2310.06825): Llama with a sliding window on every layer.
#include "io/llama_like.h"

namespace heed::architecture {
namespace {

class Mistral final : public LlamaLike {
 public:
  std::string_view name() const override { return "mistral"; }
  const char* model_class() const override { return "MistralForCausalLM"; }

 protected:
  int64_t default_context() const override { return 131072; }
  int64_t default_kv_heads(const ModelConfig& c) const override { return 8; }
  int64_t window(const ConfigReader& r) const override {
    return r.mentions("sliding_window") ? r.integer("sliding_window", 0) : 4096;
  }
  int64_t first_window(const ConfigReader& r) const override { return 0; }
  bool all_slide() const override { return true; }
};

}  // namespace

void register_mistral(List& list) { list.add(std::make_unique<Mistral>()); }

}  // namespace heed::architecture
