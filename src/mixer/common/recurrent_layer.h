// What the layers around the engine `scan` share: states over batches and packs, short
// convolutions, projections to heads.
#pragma once

#include "cache/state_spec.h"
#include "mixer/common/layer_options.h"
#include "mixer/layer.h"
#include "nn/conv.h"
#include "nn/init.h"
#include "nn/norm.h"
#include "nn/rope.h"
#include "op/scan.h"

namespace heed::mixer {

// A projection to heads, with a short convolution and silu behind it where `taps` is defined.
struct HeadTokens {
  Weight weight;
  at::Tensor taps;  // [width, taps]
  size_t history = 0;
};

// One forward pass of a recurrent layer over x [B,T,C]: reads and writes the states of its
// sequences. Parts are numbered as RecurrentLayer's fixed() and history() gave them out.
class RecurrentPass {
 public:
  // Throws UsageError for a pattern other than causal self and for states of another layer.
  RecurrentPass(const std::string& id, const StateSpec& spec, const at::Tensor& x, Call& call);

  // Depthwise causal convolution, weight [W,taps] (the last tap meets the current token), bias [W]
  // or undefined.
  at::Tensor short_conv(size_t part, const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor& bias = {});
  // x_{t-1}: zero before the first token.
  at::Tensor previous(size_t part, const at::Tensor& x);
  // x [B,T,C] -> [B,T,H,D]: projected, convolved and through silu where there is a convolution.
  at::Tensor tokens(const HeadTokens& to, const at::Tensor& x, int64_t heads);
  // The recurrence from each sequence's state to its next one. Taps "q", "k", "v" and "o".
  at::Tensor scan(size_t part, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  op::ScanInputs inputs, const op::ScanOptions& options);
  // Position of each token: float32 [B,T].
  at::Tensor positions() const;
  // Counts the tokens into the states; the last thing of a pass.
  void finish();

 private:
  at::Tensor with_history(size_t part, const at::Tensor& x, int64_t rows, int64_t first,
                          int64_t count);
  template <typename F>
  at::Tensor over_parts(const at::Tensor& x, F&& f);

  Call& call_;
  int64_t batch_, tokens_, sequences_;
  at::Device device_;
  std::vector<int64_t> offset_;  // packs only
};

// [B,T,H D] -> [B,T,H,D]
at::Tensor heads(const at::Tensor& x, int64_t heads);

// Of the chunked scan: state read and write, and the products inside chunks of 64.
int64_t scan_flops(int64_t tokens, int64_t heads, int64_t key_dim, int64_t value_dim, bool delta);

// A layer whose whole state has a fixed size. Its constructor registers parameters with params_ and
// the parts of its state with fixed() and history().
class RecurrentLayer : public Layer {
 public:
  // A pack of single tokens, as several sequences decode, runs as a batch.
  at::Tensor forward(const at::Tensor& x, Call& call) final;
  StateSpec state(const StateRequest& request) const override;
  // Of all matrices, and of the scans over states [1,H,K,V].
  int64_t flops(int64_t tokens) const override;

 protected:
  // `id`: for messages. `corrects`: its scans are delta rules, which cost twice as much.
  explicit RecurrentLayer(std::string id, bool corrects = false)
      : id_(std::move(id)), corrects_(corrects) {}

  virtual at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) = 0;

  // Parts of the state, in the order of their names in saved states; float32, and histories in the
  // parameters' dtype.
  size_t fixed(const std::string& name, std::vector<int64_t> shape);
  size_t history(const std::string& name, int64_t width, int64_t most);
  // "NAME_proj.weight" [width, hidden].
  void projection(HeadTokens& to, const std::string& name, int64_t width, int64_t hidden);
  // "NAME_conv1d.weight" and part "conv_NAME", behind a projection.
  void convolution(HeadTokens& to, const std::string& name, int64_t width, int64_t taps);

 private:
  std::string id_;
  bool corrects_;
  StateSpec spec_;
};

}  // namespace heed::mixer
