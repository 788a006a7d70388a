// The blocks of a model and its final norm: vectors in, vectors out. Decoders, encoders and models
// over images are compositions of it with what stands before and behind.
//
//   x = x + mixer(norm(x));  x = x + channel(norm(x)) for every layer;  norm(x)
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cache/program.h"
#include "io/model_config.h"
#include "mixer/layer.h"
#include "model/decoder_state.h"
#include "model/embedding.h"
#include "nn/norm.h"
#include "nn/rope.h"
#include "op/attend.h"

namespace heed {

// What a pass is given beside the ids.
struct Pass {
  // Bounds of a pack: ids are [1, sum T], sequence s is cu_seqlens[s] .. cu_seqlens[s+1]-1. Empty:
  // every row of ids [B, T] is a sequence.
  std::vector<int64_t> cu_seqlens;
  // One a sequence, to which the tokens are appended; empty: every sequence starts at position 0. A
  // pass with states takes no gradient.
  std::vector<DecoderState*> states;
  // Plan for a pass without states; null: every head full.
  const Programs* programs = nullptr;
  // Hook points of spec/inspection.md, named "N.q", "N.k", "N.v" (after rotation, [B, T, H, D]),
  // "N.o"
  // ([B, T, Hq, D]), "N.ln1", "N.attn_out", "N.resid_mid", "N.mlp_out", "N.resid_post" ([B, T, C])
  // of layer N, and "embed", "final_norm", "logits".
  mixer::Taps* taps = nullptr;
  // Takes the place of attention in passes without states, in every layer with KV heads.
  mixer::AttentionHook attention;
  // Who sees whom, and tokens as a grid, for those layers that ask (an encoder, images).
  mixer::Pattern pattern = mixer::Pattern::kCausalSelf;
  mixer::Grid grid;
  // Where layers leave losses of their own; null: nobody asks.
  mixer::Aux* aux = nullptr;
};

struct Block {
  Norm in, mid;  // before the mixer, before the channel layer
  std::unique_ptr<mixer::Layer> mixer, channel;
};

// What a tap of that name puts in a value's place; layer -1: outside the layers.
at::Tensor tapped(mixer::Taps* taps, int64_t layer, const char* name, const at::Tensor& value);

class Trunk {
 public:
  // Without values. `context`: tokens that a sequence may have, which rotation is made for;
  // `asked`: the same as the user asked for it (0: not). Throws UsageError for layers that do not
  // fit each other.
  Trunk(const ModelConfig& config, const at::TensorOptions& tensors, int64_t context,
        int64_t asked);

  // x [B, T, C], rows as `layout` says -> [B, T, C] after the final norm.
  at::Tensor forward(at::Tensor x, mixer::Layout& layout, Pass& pass) const;

  // The state of one new sequence, and the bytes that it holds after `tokens` tokens.
  std::unique_ptr<DecoderState> make_state(const StateOptions& options) const;
  int64_t state_bytes(int64_t tokens, const StateOptions& options) const;
  // Throws UsageError for programs of another model, and for such as need parameters that a layer
  // does not have.
  void check_programs(const Programs& programs) const;

  std::vector<Block>& blocks() { return blocks_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  // Parameters under Llama's names (source.h).
  void visit(const VisitParameter& visit);
  // Those of them that products alone use, through weight.h, in layers that take blocks
  // (nn/block_weight.h): softmax attention's and the MLPs'.
  void visit_matrices(const std::function<void(const std::string&, Weight&)>& visit);
  // After all parameters were put on another device, or in blocks.
  void moved();

 private:
  mixer::StateRequest state_request(int64_t l, const StateOptions& options) const;
  int64_t layers() const { return static_cast<int64_t>(blocks_.size()); }

  std::vector<Block> blocks_;
  std::vector<bool> softmax_;  // whose mixer is softmax attention
  Norm final_norm_;
  int64_t kv_heads_ = 0;
};

}  // namespace heed
