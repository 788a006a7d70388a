// Llama (arXiv 2302.13971) and its successors.
#include "io/llama_like.h"

namespace heed::architecture {
namespace {

class Llama final : public LlamaLike {
 public:
  std::string_view name() const override { return "llama"; }
  const char* model_class() const override { return "LlamaForCausalLM"; }
  bool in_gguf() const override { return true; }
  bool gguf_interleaves() const override { return true; }

 protected:
  int64_t default_context() const override { return 2048; }
  void read_own(const ConfigReader& r, ModelConfig& c) const override {
    c.qkv_bias = c.out_bias = r.flag("attention_bias", false);
    c.mlp_bias = r.flag("mlp_bias", false);
  }
  void write_own(const ModelConfig& c, Json& out) const override {
    out["attention_bias"] = c.qkv_bias;
    out["mlp_bias"] = c.mlp_bias;
  }
};

}  // namespace

void register_llama(List& list) { list.add(std::make_unique<Llama>()); }

}  // namespace heed::architecture
