// Qwen2 (arXiv 2407.10671): Llama with biases on q, k and v.
#include "io/llama_like.h"

namespace heed::architecture {
namespace {

class Qwen2 final : public LlamaLike {
 public:
  std::string_view name() const override { return "qwen2"; }
  const char* model_class() const override { return "Qwen2ForCausalLM"; }
  bool in_gguf() const override { return true; }

 protected:
  int64_t default_context() const override { return 32768; }
  void read_own(const ConfigReader& r, ModelConfig& c) const override { c.qkv_bias = true; }
  void write_own(const ModelConfig& c, Json& out) const override { write_slides(c, out); }
  int64_t window(const ConfigReader& r) const override {
    return r.flag("use_sliding_window", false) ? r.integer("sliding_window", 4096) : 0;
  }
};

}  // namespace

void register_qwen2(List& list) { list.add(std::make_unique<Qwen2>()); }

}  // namespace heed::architecture
