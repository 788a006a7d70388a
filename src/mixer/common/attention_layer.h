// The layer around pairwise attention: q, k, v and o, norms of q and k, rotary embedding, the cache
// and its plan, taps. A mechanism on it is a class with some of four hooks; with none of them it is
// softmax attention.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "mixer/common/layer_options.h"
#include "mixer/layer.h"
#include "op/attend.h"

namespace heed::mixer {

// What attention works on in one call. Rows are all tokens of x in order (B T of them).
struct Heads {
  at::Tensor q;         // [rows, Hq, D]
  at::Tensor k, v;      // [rows, Hk, D], [rows, Hk, Dv]; of the context in a cross pattern
  at::Tensor key_bias;  // float32 [rows, Hk, 1 or Hq/Hk]: added to the logits of those keys; kept
                        // in the state where the layer has a column "bias"; undefined: none
  const Layout& layout;
  Call& call;
};

class AttentionLayer : public Layer {
 public:
  at::Tensor forward(const at::Tensor& x, Call& call) final;
  at::Tensor add_to(const at::Tensor& residual, const at::Tensor& x, Call& call) final;
  StateSpec state(const StateRequest& request) const override;
  int64_t flops(int64_t tokens) const override;
  Traits traits() const override;
  bool takes(Pattern pattern) const override { return true; }
  const HeadsView* heads() const final { return &view_; }
  void moved() final;

 protected:
  // Options that every attention layer has: heads, kv_heads, window, qk_norm, rope_theta (0: no
  // rotation). A subclass reads its own from options_ and then calls options_.close().
  AttentionLayer(const std::string& id, const LayerConfig& config);

  // q, k and v before norms of heads and rotation. `rewrites_heads_` tells that there is one.
  virtual void before_rope(const at::Tensor& x, Heads& h) {}
  // What is asked of the engine; causal, window, sinks and packs are filled in by mix().
  virtual op::AttendOptions options(const at::Tensor& x, const Heads& h) const;
  // [rows, Hq, Dv]: over the states' rows, or of whole sequences.
  virtual at::Tensor mix(Heads& h, op::AttendOptions options);
  // Before the last projection.
  virtual at::Tensor after(const at::Tensor& x, const at::Tensor& o, const Heads& h) { return o; }

  const HeadsView& view() const { return view_; }
  LayerOptions options_;
  bool rewrites_heads_ = false;  // before_rope does something
  std::vector<Column> columns_;  // beside the rows of the cache

 private:
  at::Tensor attended(const at::Tensor& x, Call& call, const Layout& layout);
  Heads project(const at::Tensor& x, Call& call, const Layout& layout);
  Heads project_fused(const at::Tensor& x, Call& call, const Layout& layout) const;
  bool joined() const;
  const std::vector<HeadProgram>& programs(const std::vector<HeadProgram>* asked,
                                           std::vector<HeadProgram>& merged) const;

  std::string id_;
  int64_t index_, hidden_;
  HeadsView view_;
  std::vector<HeadProgram> own_;  // every head full, within the layer's own window
  double eps_;
  std::shared_ptr<const Rope> rope_;
  Weight q_, k_, v_, o_;
  at::Tensor q_bias_, k_bias_, v_bias_, o_bias_, q_norm_, k_norm_;
  // q, k and v one after another, in the same memory: read in one product where no gradient is
  // asked for. Undefined once they lie apart.
  Weight qkv_;
  at::Tensor qkv_bias_;
};

}  // namespace heed::mixer
