// What the layers around the engine `scan` share: states over batches and packs, short
// convolutions, projections to heads.
#pragma once

#include <ATen/core/grad_mode.h>

#include "cache/state_spec.h"
#include "mixer/common/layer_options.h"
#include "mixer/layer.h"
#include "nn/init.h"
#include "nn/norm.h"
#include "nn/rope.h"
#include "op/scan.h"

namespace heed::mixer {

// A projection to heads, with a short convolution and silu behind it where `taps` is defined.
struct HeadTokens {
  Weight weight;
  at::Tensor bias;  // [width]; may be undefined
  at::Tensor taps;  // [width, taps]
  size_t history = 0;
};

struct QkvTokens {
  HeadTokens q, k, v;
};

// What an engine of the table (op/dispatch.h) carries from call to call: a part of the state, and
// the tensors of the engine's struct X where it begins and ends.
template <class X>
struct Carried {
  size_t part;
  at::Tensor X::*initial;
  at::Tensor X::*final;
};

// One forward pass of a recurrent layer over x [B,T,C]: reads and writes the states of its
// sequences. Parts are numbered as RecurrentLayer's fixed(), history() and window() gave them out.
class RecurrentPass {
 public:
  // Throws UsageError for states of another layer, and for states in a pattern that is not causal.
  RecurrentPass(const std::string& id, const StateSpec& spec, const at::Tensor& x, Call& call);

  Call& call() const { return call_; }
  bool causal() const { return call_.pattern == Pattern::kCausalSelf; }
  bool decodes() const { return !call_.states.empty(); }
  // One token a sequence, from states: what the engines have a step for.
  bool is_step() const { return decodes() && tokens_ == 1 && offset_.empty(); }
  int64_t sequences() const { return sequences_; }
  // Row n of the batch, or piece n of a pack: of x [B,T,...] the tokens of sequence n [1,T_n,...].
  at::Tensor sequence(const at::Tensor& x, int64_t n) const;
  // Its inverse.
  at::Tensor joined(const std::vector<at::Tensor>& sequences, const at::Tensor& x) const;

  // Depthwise causal convolution, weight [W,taps] (the last tap meets the current token), bias [W]
  // or undefined; then silu.
  at::Tensor short_conv(size_t part, const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor& bias = {});
  // x_{t-1}: zero before the first token.
  at::Tensor previous(size_t part, const at::Tensor& x);
  // x [B,T,C] -> [B,T,H,D]: projected, convolved and through silu where there is a convolution.
  at::Tensor tokens(const HeadTokens& to, const at::Tensor& x, int64_t heads);
  // The recurrence from each sequence's state to its next one; q, k and v may have several tokens
  // for each of x. Taps "q", "k", "v" and "o".
  at::Tensor scan(size_t part, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  op::ScanInputs inputs, const op::ScanOptions& options);
  // The same with any engine of the table: whole(x, cu_seqlens) runs it over all tokens, step(x)
  // over one a sequence, with the states updated in place. Returns x.out; tap "o".
  template <class X, class Whole, class Step>
  at::Tensor advance(X x, const std::vector<Carried<X>>& carried, Whole&& whole, Step&& step);

  // Causal softmax attention over the last tokens, q, k, v [B,T,H,D], with the window of the part.
  at::Tensor attend_window(size_t part, const at::Tensor& q, const at::Tensor& k,
                           const at::Tensor& v);

  // Gives a part that begins with something else than zero its first value [...] in all states
  // that are still empty. Returns it for all sequences [N,...] where there are no states.
  at::Tensor begin(size_t part, const at::Tensor& value);
  // A fixed part of all sequences, [N,...]: what is written to it is written to the states.
  at::Tensor state(size_t part) const;
  // Tokens that came before sequence n.
  int64_t past(int64_t n) const { return decodes() ? call_.states[n]->length() : 0; }
  // Tokens of its sequence before each token, modulo `period`: int64 [B,T].
  at::Tensor places(int64_t period) const;
  // Position of each token: float32 [B,T].
  at::Tensor positions() const;
  // Counts the tokens into the states; the last thing of a pass.
  void finish();

 private:
  at::Tensor with_history(size_t part, const at::Tensor& x, int64_t rows, int64_t first,
                          int64_t count);
  at::Tensor counted() const;

  const StateSpec& spec_;
  Call& call_;
  int64_t batch_, tokens_, sequences_;
  at::Device device_;
  std::vector<int64_t> offset_;  // packs only
};

template <class X, class Whole, class Step>
at::Tensor RecurrentPass::advance(X x, const std::vector<Carried<X>>& carried, Whole&& whole,
                                  Step&& step) {
  if (!decodes()) {
    whole(x, call_.cu_seqlens);
    return call_.tap("o", x.out);
  }
  const at::NoGradGuard no_grad;
  for (const Carried<X>& c : carried) x.*c.initial = state(c.part);
  if (is_step()) {
    step(x);
    return call_.tap("o", x.out);
  }
  whole(x, call_.cu_seqlens);
  for (const Carried<X>& c : carried) state(c.part).copy_(x.*c.final);
  return call_.tap("o", x.out);
}

// [B,T,H D] -> [B,T,H,D]
at::Tensor heads(const at::Tensor& x, int64_t heads);

// x [B,T,H,D] normalised over D to mean 0 and deviation 1, then times weight [H D] plus bias [H D]:
// float32 [B,T,H D].
at::Tensor group_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      double eps);

// Of the chunked scan: state read and write, and the products inside chunks of 64.
int64_t scan_flops(int64_t tokens, int64_t heads, int64_t key_dim, int64_t value_dim, bool delta);

// A layer whose state is fixed parts, histories and windows. Its constructor registers parameters
// with params_ and the parts of its state with fixed() and history().
class RecurrentLayer : public Layer {
 public:
  // A pack of single tokens, as several sequences decode, runs as a batch.
  at::Tensor forward(const at::Tensor& x, Call& call) final;
  StateSpec state(const StateRequest& request) const override;
  // Of all matrices, of the scans over states [1,H,K,V], and token_flops_.
  int64_t flops(int64_t tokens) const override;

 protected:
  // `id`: for messages. `corrects`: its scans are delta rules, which cost twice as much.
  explicit RecurrentLayer(std::string id, bool corrects = false)
      : id_(std::move(id)), corrects_(corrects) {}

  virtual at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) = 0;

  // Parts of the state, in the order of their names in saved states; float32, and histories in the
  // parameters' dtype. A leading 1 of a fixed part becomes the sequences of a call.
  size_t fixed(const std::string& name, std::vector<int64_t> shape);
  size_t history(const std::string& name, int64_t width, int64_t most);
  size_t all_history(const std::string& name, int64_t width);  // of all tokens
  // Keys and values of the last `window` tokens.
  size_t window(const std::string& name, int64_t heads, int64_t head_dim, int64_t window);
  // "NAME_proj.weight" [width, hidden], with `bias` also "NAME_proj.bias".
  void projection(HeadTokens& to, const std::string& name, int64_t width, int64_t hidden,
                  bool bias = false);
  // "NAME_conv1d.weight" and part "conv_NAME", behind a projection.
  void convolution(HeadTokens& to, const std::string& name, int64_t taps);

  // The same for q, k and v, by these names.
  void projections(QkvTokens& to, int64_t q, int64_t k, int64_t v, int64_t hidden,
                   bool bias = false);
  void convolutions(QkvTokens& to, int64_t taps);  // 0 taps: none

  // Work of one token that neither matrices nor states [1,H,K,V] tell.
  int64_t token_flops_ = 0;

 private:
  std::string id_;
  bool corrects_;
  StateSpec spec_;
};

}  // namespace heed::mixer
