// Llama's architecture and those that differ from it by defaults and a few keys: RMSNorm, rotary
// embedding, a gated MLP. Defaults are those of each family's configuration class in transformers.
#pragma once

#include "io/architecture.h"

namespace heed {

class LlamaLike : public Architecture {
 public:
  void read(const ConfigReader& r, ModelConfig& c) const override;
  void write(const ModelConfig& c, Json& out) const override;
  void read_gguf(const GgufFile& file, ModelConfig& c) const override;

 protected:
  // Where config.json does not say. head_dim: 0 where it follows from the hidden size, which must
  // then be a multiple of the heads.
  virtual int64_t default_context() const = 0;
  virtual int64_t default_kv_heads(const ModelConfig& c) const { return c.heads; }
  virtual int64_t default_head_dim() const { return 0; }
  // Biases, norms of q and k.
  virtual void read_own(const ConfigReader& r, ModelConfig& c) const {}
  virtual void write_own(const ModelConfig& c, Json& out) const {}
  // The window of the layers that slide, 0: none; the first that does where no list says it.
  virtual int64_t window(const ConfigReader& r) const { return 0; }
  virtual int64_t first_window(const ConfigReader& r) const {
    return r.integer("max_window_layers", 28);
  }
  // The key "use_sliding_window".
  static void write_slides(const ModelConfig& c, Json& out);
  // Whether a window alone means that all layers slide.
  virtual bool all_slide() const { return false; }

 private:
  void read_windows(const ConfigReader& r, ModelConfig& c) const;
};

// All that llama.cpp reads for rotary embedding, of a file whose sizes are in `c`.
void read_gguf_rope(const GgufFile& file, const std::string& arch, ModelConfig& c);

}  // namespace heed
