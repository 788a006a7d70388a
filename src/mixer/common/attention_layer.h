// The layer around pairwise attention: q, k, v and o, norms of q and k, rotary embedding, the cache
// and its plan, taps. A mechanism on it is a class with some of five hooks; with none of them it is
// softmax attention.
#pragma once

#include <functional>
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
  at::Tensor extra;     // [rows, ...]: what before_rope leaves for mix and after (gates, decays)
  const Layout& layout;
  Call& call;
};

// Some rows of a call as whole sequences of one length.
struct Sequences {
  int64_t first, batch, length;  // rows first .. first + batch length - 1
  // [rows, ...] -> [batch, length, ...]
  at::Tensor operator()(const at::Tensor& rows) const {
    return rows.narrow(0, first, batch * length).unflatten(0, {batch, length});
  }
};

class AttentionLayer : public Layer {
 public:
  at::Tensor forward(const at::Tensor& x, Call& call) final;
  at::Tensor add_to(const at::Tensor& residual, const at::Tensor& x, Call& call) final;
  StateSpec state(const StateRequest& request) const override;
  int64_t flops(int64_t tokens) const override;
  Traits traits() const override;
  bool takes(Pattern pattern) const override { return true; }
  const HeadsView* heads() const final { return own_ & kKeySet ? nullptr : &view_; }
  void moved() final;

 protected:
  // What a mechanism does in its own way.
  enum Own : unsigned {
    kWindow = 1,       // the option "window" means something else than a sliding window of all keys
    kRotation = 2,     // no rotation, unless the option rope_theta asks for one
    kKeySet = 4,       // which keys are seen is not for plans to say
    kProjections = 8,  // project(); the layer has only the last projection
    kAllHeads = 16     // as many key and value heads as query heads
  };
  // Options that every attention layer has: heads, kv_heads, window, qk_norm, rope_theta (0: no
  // rotation). A subclass reads its own from options_ and then calls options_.close().
  AttentionLayer(const std::string& id, const LayerConfig& config, unsigned own = 0);
  // With kProjections: the heads that `mix` works on, what plans know, and the columns that the
  // last projection takes.
  void set_heads(const HeadsView& view, int64_t out_columns, const LayerConfig& config);

  // x (and the context) as heads, after norms and rotation.
  virtual Heads project(const at::Tensor& x, Call& call, const Layout& layout);
  // q, k and v before norms of heads and rotation. `rewrites_heads_` tells that there is one.
  virtual void before_rope(const at::Tensor& x, Heads& h) {}
  // What is asked of the engine; causal, window, sinks and packs are filled in by mix().
  virtual op::AttendOptions options(const at::Tensor& x, const Heads& h) const;
  // [rows, Hq, Dv]: over the states' rows, or of whole sequences.
  virtual at::Tensor mix(Heads& h, op::AttendOptions options);
  // Before the last projection: [rows, ...], all its columns.
  virtual at::Tensor after(const at::Tensor& x, const at::Tensor& o, const Heads& h) { return o; }

  // For a mix() of its own in self patterns: [rows, Hq, Dv] from what f makes of sequences
  // [n, T, Hq, Dv], the whole batch at once; one by one in packs and over states.
  static at::Tensor by_sequence(const Heads& h,
                                const std::function<at::Tensor(const Sequences&)>& f);
  // Keys that each row sees without a window, float32 [rows].
  static at::Tensor visible_keys(const Heads& h);
  // Whether there are no states, no plan, and nothing takes the place of attention.
  static bool plain(const Heads& h);
  // A sliding window of all heads, in place of the option.
  void set_window(int64_t window);

  const HeadsView& view() const { return view_; }
  const std::string& id() const { return id_; }
  LayerOptions options_;
  bool rewrites_heads_ = false;  // before_rope does something
  std::vector<Column> columns_;  // beside the rows of the cache
  double eps_;                   // of norms
  std::shared_ptr<const Rope> rope_;

 private:
  at::Tensor attended(const at::Tensor& x, Call& call, const Layout& layout);
  Heads project_fused(const at::Tensor& x, Call& call, const Layout& layout) const;
  void make_projections(const LayerConfig& config);
  void make_output(int64_t columns, const LayerConfig& config);
  bool joined() const;
  void check(const Call& call, const Layout& layout) const;
  const std::vector<HeadProgram>& programs(const std::vector<HeadProgram>* asked,
                                           std::vector<HeadProgram>& merged) const;

  std::string id_;
  unsigned own_;
  int64_t index_, hidden_;
  HeadsView view_;
  std::vector<HeadProgram> full_;  // every head full, within the layer's own window
  Weight q_, k_, v_, o_;
  at::Tensor q_bias_, k_bias_, v_bias_, o_bias_, q_norm_, k_norm_;
  // q, k and v one after another, in the same memory: read in one product where no gradient is
  // asked for. Undefined once they lie apart.
  Weight qkv_;
  at::Tensor qkv_bias_;
};

}  // namespace heed::mixer
