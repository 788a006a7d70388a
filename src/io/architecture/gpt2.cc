// GPT-2 (Radford et al. 2019): LayerNorm with biases, learned positions, q, k and v in one matrix,
// all matrices stored [in, out].
#include <map>

#include "io/architecture.h"

namespace heed::architecture {
namespace {

class Gpt2 final : public Architecture {
 public:
  std::string_view name() const override { return "gpt2"; }
  const char* model_class() const override { return "GPT2LMHeadModel"; }

  void read(const ConfigReader& r, ModelConfig& c) const override {
    c.vocab = r.integer("vocab_size", 50257);
    c.hidden = r.integer("n_embd", 768);
    c.layers = r.integer("n_layer", 12);
    check_size(r.name(), "the number of layers", c.layers, kMostLayers);
    check_size(r.name(), "the hidden size", c.hidden, kMostHidden);
    c.heads = c.kv_heads = r.integer("n_head", 12);
    if (c.heads > 0) c.head_dim = c.hidden / c.heads;
    c.intermediate = r.integer("n_inner", 4 * c.hidden);
    c.max_position = r.integer("n_positions", r.integer("n_ctx", 1024));
    c.norm_eps = r.number("layer_norm_epsilon", 1e-5);
    c.activation = activation_name(r.text("activation_function", "gelu_new"), r.name());
    c.layer_norm = c.learned_positions = true;
    c.gated_mlp = false;
    c.qkv_bias = c.out_bias = c.mlp_bias = true;
    c.tied = r.flag("tie_word_embeddings", true);
    if (!r.flag("scale_attn_weights", true) || r.flag("scale_attn_by_inverse_layer_idx", false)) {
      throw Error(
          "{}: GPT-2's other attention scales are not supported (scale_attn_weights must be true, "
          "scale_attn_by_inverse_layer_idx false)",
          r.name());
    }
    c.windows.assign(c.layers, 0);
  }
  void write(const ModelConfig& c, Json& out) const override {
    out["n_embd"] = c.hidden;
    out["n_layer"] = c.layers;
    out["n_head"] = c.heads;
    out["n_inner"] = c.intermediate;
    out["n_positions"] = c.max_position;
    out["layer_norm_epsilon"] = c.norm_eps;
    out["activation_function"] = c.activation == "gelu_tanh" ? "gelu_new" : c.activation;
  }
  void check(const ModelConfig& c, const std::string& path) const override {
    if (c.q_size() == c.hidden) return;
    throw Error("{}: \"n_embd\" {} is not a multiple of \"n_head\" {}", path, c.hidden, c.heads);
  }

  bool in_gguf() const override { return true; }
  void read_gguf(const GgufFile& file, ModelConfig& c) const override {
    c.layer_norm = c.learned_positions = true;
    c.gated_mlp = false;
    c.qkv_bias = c.out_bias = c.mlp_bias = true;
    c.activation = "gelu_tanh";
    c.norm_eps = file.real("gpt2.attention.layer_norm_epsilon");
  }

  StoredTensor stored(const std::string& name) const override {
    static const std::map<std::string, std::string> modules = {{"model.embed_tokens", "wte"},
                                                               {"model.embed_positions", "wpe"},
                                                               {"model.norm", "ln_f"},
                                                               {"input_layernorm", "ln_1"},
                                                               {"self_attn.q_proj", "attn.c_attn"},
                                                               {"self_attn.k_proj", "attn.c_attn"},
                                                               {"self_attn.v_proj", "attn.c_attn"},
                                                               {"self_attn.o_proj", "attn.c_proj"},
                                                               {"post_attention_layernorm", "ln_2"},
                                                               {"mlp.up_proj", "mlp.c_fc"},
                                                               {"mlp.down_proj", "mlp.c_proj"}};
    const TensorName parts(name);
    const auto it = modules.find(parts.module);
    if (it == modules.end()) return {name};
    const std::string block = parts.layer >= 0 ? fmt::format("h.{}.", parts.layer) : "";
    StoredTensor out{block + it->second + "." + parts.kind};
    if (parts.qkv() >= 0) out.part = parts.qkv(), out.parts = 3;
    out.transposed =
        parts.layer >= 0 && parts.kind == "weight" && it->second.find(".c_") != std::string::npos;
    return out;
  }
  std::string prefix() const override { return "transformer."; }
};

}  // namespace

void register_gpt2(List& list) { list.add(std::make_unique<Gpt2>()); }

}  // namespace heed::architecture
