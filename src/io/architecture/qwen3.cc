// Qwen3 (arXiv 2505.09388): Llama with norms of q and k, heads of a size of their own.
#include "io/llama_like.h"

namespace heed::architecture {
namespace {

class Qwen3 final : public LlamaLike {
 public:
  std::string_view name() const override { return "qwen3"; }
  const char* model_class() const override { return "Qwen3ForCausalLM"; }
  bool in_gguf() const override { return true; }
  void read_gguf(const GgufFile& file, ModelConfig& c) const override {
    c.qk_norm = true;
    LlamaLike::read_gguf(file, c);
  }

 protected:
  int64_t default_context() const override { return 32768; }
  int64_t default_head_dim() const override { return 128; }
  void read_own(const ConfigReader& r, ModelConfig& c) const override {
    c.qk_norm = true;
    c.qkv_bias = c.out_bias = r.flag("attention_bias", false);
  }
  void write_own(const ModelConfig& c, Json& out) const override {
    out["attention_bias"] = c.qkv_bias;
    write_slides(c, out);
  }
  int64_t window(const ConfigReader& r) const override {
    return r.flag("use_sliding_window", false) ? r.integer("sliding_window", 4096) : 0;
  }
};

}  // namespace

void register_qwen3(List& list) { list.add(std::make_unique<Qwen3>()); }

}  // namespace heed::architecture
