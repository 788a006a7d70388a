// The interface of a mixer layer inside a model: maps x [B,T,C] to y [B,T,C] with its projections,
// gates, norms and short convolutions around a core. A chunk of any length may follow any other: a
// decode step is T = 1.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cache/state.h"
#include "io/json.h"
#include "mixer/card.h"

namespace heed::mixer {

enum class Pattern { kCausalSelf, kNoncausalSelf, kCausalCross, kNoncausalCross };

// Looks at tensors by name while a model runs, and may put others in their place.
class Taps {
 public:
  virtual ~Taps() = default;
  virtual bool wants(std::string_view name) const { return false; }
  virtual at::Tensor tap(std::string_view name, const at::Tensor& value) { return value; }
};

// What a call of a layer is told besides x.
struct Call {
  Pattern pattern = Pattern::kCausalSelf;
  at::Tensor
      positions;  // int64 [B,T]; undefined: counted from each state's length (0 without state)
  at::Tensor cu_seqlens;  // int64 [N+1] on the CPU: x is a pack with B = 1; undefined: none
  at::Tensor context;     // [B,S,C], cross patterns only
  std::vector<State*>
      states;  // one per sequence (B, or N in a pack), advanced by the call; empty: none
  Taps* taps = nullptr;

  // The sequences of x [B,T,C]. Throws UsageError if states are given and are not as many.
  int64_t sequences(const at::Tensor& x) const;
};

struct LayerConfig {
  int64_t hidden = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;  // 0: heads
  int64_t head_dim = 0;  // 0: hidden / heads
  int64_t layer = 0;     // index in the model
  Json options = Json::object();
};

class Layer {
 public:
  virtual ~Layer() = default;

  // x [B,T,C] in the dtype of the parameters -> y [B,T,C]. Differentiable when no states are given.
  // Throws UsageError for a pattern that the mixer does not have.
  virtual at::Tensor forward(const at::Tensor& x, Call& call) = 0;

  // The state of one new sequence, on the device of the parameters.
  virtual std::unique_ptr<State> make_state() const = 0;

  // Bytes that make_state()'s state holds after `tokens` tokens.
  virtual int64_t state_bytes(int64_t tokens) const = 0;

  // Multiply-adds times two of forward over `tokens` tokens of one sequence.
  virtual int64_t flops(int64_t tokens) const = 0;

  virtual Traits traits() const = 0;

  // By name ("q_proj.weight"); the layer reads them at each call, so a loader may put others of the
  // same shape in their place (another dtype or device: all of them). Freshly initialised in
  // float32 on the CPU.
  NamedTensors& parameters() { return parameters_; }
  const NamedTensors& parameters() const { return parameters_; }

 protected:
  const at::Tensor& parameter(const std::string& name) const { return parameters_.at(name); }
  NamedTensors parameters_;
};

// While one lives, the parameters of layers that this thread makes take no memory (device meta):
// for their names and shapes alone.
class ShapesOnly {
 public:
  ShapesOnly() : before_(on_) { on_ = true; }
  ~ShapesOnly() { on_ = before_; }
  ShapesOnly(const ShapesOnly&) = delete;
  ShapesOnly& operator=(const ShapesOnly&) = delete;
  static bool on() { return on_; }

 private:
  static thread_local bool on_;
  bool before_;
};

// A layer of the registry (see registry.h) with parameters drawn from PyTorch's default generator.
// Throws UsageError for an id that has no layer, an unknown option or sizes that do not fit.
std::unique_ptr<Layer> make_layer(const std::string& id, const LayerConfig& config);

}  // namespace heed::mixer
