// What the layers around the engine `scan` share: states over batches and packs, short
// convolutions, norms, rotation, initial values, options.
#pragma once

#include <set>

#include "cache/tensor_state.h"
#include "mixer/layer.h"
#include "op/scan.h"

namespace heed::mixer {

// One forward pass of a recurrent layer over x [B,T,C]: reads and writes the states of its
// sequences. States are TensorStates with a tensor for each short convolution [taps-1, width] and
// one for the scan [1,H,K,V].
class RecurrentPass {
 public:
  // Throws UsageError for a pattern other than causal self and for states of another kind.
  RecurrentPass(const std::string& id, const at::Tensor& x, Call& call);

  // Depthwise causal convolution, weight [W,taps] (the last tap meets the current token), bias [W]
  // or undefined.
  at::Tensor short_conv(const std::string& name, const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor& bias = {});
  // x_{t-1}: zero before the first token.
  at::Tensor previous(const std::string& name, const at::Tensor& x);
  // The recurrence from each sequence's state to its next one.
  at::Tensor scan(const std::string& name, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v, op::ScanInputs inputs, const op::ScanOptions& options);
  // Position of each token: float32 [B,T].
  at::Tensor positions() const;
  // Counts the tokens into the states; the last thing of a pass.
  void finish();

 private:
  at::Tensor with_history(const std::string& name, const at::Tensor& x, int64_t rows, int64_t first,
                          int64_t count);
  template <typename F>
  at::Tensor over_parts(const at::Tensor& x, F&& f);

  int64_t batch_, tokens_, sequences_;
  at::Device device_;
  at::Tensor given_positions_, cu_seqlens_;
  std::vector<int64_t> offset_;  // packs only
  std::vector<TensorState*> states_;
};

// x normalised over its last dimension: x rsqrt(mean x^2 + eps) weight, in float32, in x's dtype.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);
// x rsqrt(sum x^2 + eps) over the last dimension.
at::Tensor l2_norm(const at::Tensor& x, double eps);
// Rotates pairs (d, d + D/2) of x [B,T,H,D] by positions [B,T] times theta^(-2d/D).
at::Tensor rotate(const at::Tensor& x, const at::Tensor& positions, double theta);
// x [B,T,C] times weight [out,C] transposed.
at::Tensor project(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});
// [B,T,H D] -> [B,T,H,D]
at::Tensor heads(const at::Tensor& x, int64_t heads);

// What a layer's constructor makes parameters with: float32 on the CPU, or without memory where
// ShapesOnly asks for that.
at::TensorOptions init_options();
// Xavier-uniform [out,in] with gain 2^-2.5.
at::Tensor init_projection(int64_t out, int64_t in);
// Uniform within 1/sqrt(taps): [width, taps].
at::Tensor init_conv(int64_t width, int64_t taps);
// Inverse softplus of steps drawn log-uniformly from [0.001, 0.1]: [n].
at::Tensor init_dt_bias(int64_t n);

// The options object of a layer: typed access with defaults; close() throws UsageError for keys
// that were not asked for.
class LayerOptions {
 public:
  LayerOptions(const std::string& id, const LayerConfig& config);
  int64_t integer(const std::string& key, int64_t fallback, int64_t least = 1);
  double number(const std::string& key, double fallback);
  bool flag(const std::string& key, bool fallback);
  // A width: `factor` (by key, with its default) times heads times head_dim, over the heads; must
  // be whole.
  int64_t head_width(const std::string& key, double fallback);
  int64_t heads() const { return heads_; }
  int64_t hidden() const { return hidden_; }
  void close() const;

 private:
  const Json* find(const std::string& key);
  std::string id_;
  Json options_;
  std::set<std::string> asked_;
  int64_t hidden_, heads_, head_dim_;
};

// Multiply-adds times two of the matrices in `parameters` over `tokens` tokens.
int64_t projection_flops(const NamedTensors& parameters, int64_t tokens);
// Of the chunked scan: state read and write, and the products inside chunks of 64.
int64_t scan_flops(int64_t tokens, int64_t heads, int64_t key_dim, int64_t value_dim, bool delta);

// A layer whose whole state is a TensorState of fixed shapes.
class RecurrentLayer : public Layer {
 public:
  std::unique_ptr<State> make_state() const override;
  int64_t state_bytes(int64_t tokens) const override;

 protected:
  // The tensors of a state: name -> shape; scans are float32, convolutions have the parameters'
  // dtype.
  virtual std::map<std::string, std::vector<int64_t>> state_shapes() const = 0;
};

}  // namespace heed::mixer
