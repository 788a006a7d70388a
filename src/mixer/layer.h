// The interface of a layer inside a model: maps x [B,T,C] to y [B,T,C]. A mixer layer mixes tokens,
// with its projections, gates, norms and short convolutions around a core; a channel layer (an MLP)
// stands behind it in a block. A chunk of any length may follow any other: a decode step is T = 1.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cache/program.h"
#include "cache/state.h"
#include "io/json.h"
#include "mixer/card.h"
#include "nn/init.h"
#include "nn/params.h"
#include "nn/rope.h"
#include "op/attend.h"

namespace heed::mixer {

enum class Pattern { kCausalSelf, kNoncausalSelf, kCausalCross, kNoncausalCross };

// Whether the query of a pattern sees no later key, and whether keys are those of a context.
bool is_causal(Pattern pattern);
bool is_cross(Pattern pattern);
// As cards say it: "noncausal cross".
std::string pattern_name(Pattern pattern);

// Looks at tensors by name while a model runs, and may put others in their place.
class Taps {
 public:
  virtual ~Taps() = default;
  virtual bool wants(std::string_view name) const { return false; }
  virtual at::Tensor tap(std::string_view name, const at::Tensor& value) { return value; }
};

// Losses that layers add to a model's own (a router's balance), by name: summed over layers.
class Aux {
 public:
  void add(const std::string& name, const at::Tensor& loss) {
    at::Tensor& sum = losses_[name];
    sum = sum.defined() ? sum + loss : loss;
  }
  const std::map<std::string, at::Tensor>& losses() const { return losses_; }

 private:
  std::map<std::string, at::Tensor> losses_;
};

// Values that one layer leaves for those after it (the first layer's v of RWKV-7), by name.
using Shared = std::map<std::string, at::Tensor>;

// Tokens as a row-major grid (images, video); rank 0: a sequence.
struct Grid {
  int rank = 0;
  int64_t size[3] = {0, 0, 0};
};

// Where the rows of a call stand, worked out once for all layers of a model.
struct Layout {
  int64_t batch = 0, length = 0;   // x is [batch, length, C]
  bool pack = false;               // batch 1, sequences one after another
  std::vector<int64_t> bounds;     // of the sequences among the batch * length rows
  std::vector<int64_t> positions;  // of every row
  int64_t end = 0;                 // largest position + 1
  bool fused = false;              // CPU without gradients: loops over rows in place of operators

  // Sequences of x by `cu_seqlens` (empty: every row of the batch is one), each begun at `past`
  // tokens. Throws UsageError for bounds that are none of this x.
  static Layout of(const at::Tensor& x, const std::vector<int64_t>& cu_seqlens,
                   std::span<const int64_t> past);
  // cos and sin of all rows [rows, D/2]; kept, for every layer of a model asks for the same.
  const RopeTables& rotation(const Rope& rope, const at::Device& device) const;

 private:
  mutable const Rope* rotated_by_ = nullptr;
  mutable RopeTables rotation_;
};

// Takes the place of attention itself in passes without states: q [B, T, Hq, D], k and v [B, T, Hk,
// D] and the options that layer and programs ask for, to [B, T, Hq, D].
using AttentionHook =
    std::function<at::Tensor(int64_t layer, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const op::AttendOptions& options)>;

// What a call of a layer is told besides x.
struct Call {
  Pattern pattern = Pattern::kCausalSelf;
  at::Tensor
      positions;  // int64 [B,T]; undefined: counted from each state's length (0 without state)
  at::Tensor cu_seqlens;  // int64 [N+1] on the CPU: x is a pack with B = 1; undefined: none
  at::Tensor context;     // [B,S,C], cross patterns only
  Grid grid;
  std::vector<State*>
      states;  // one per sequence (B, or N in a pack), advanced by the call; empty: none
  // One a KV head, for calls without states; null: every head full.
  const std::vector<HeadProgram>* programs = nullptr;
  Aux* aux = nullptr;        // null: nobody asks for losses
  Shared* shared = nullptr;  // null: no layer before or after this one
  const AttentionHook* attention = nullptr;
  int64_t layer = -1;  // index in the model; -1: alone
  Taps* taps = nullptr;
  // The same rows as positions, cu_seqlens and states say, where the model has worked them out.
  const Layout* layout = nullptr;

  // The sequences of x [B,T,C]. Throws UsageError if states are given and are not as many.
  int64_t sequences(const at::Tensor& x) const;
  // Shows a tensor as "LAYER.NAME" ("NAME" for a layer alone) and returns what stands in its place.
  at::Tensor tap(const char* name, const at::Tensor& value) const;
};

struct LayerConfig {
  int64_t hidden = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;  // 0: heads
  int64_t head_dim = 0;  // 0: hidden / heads
  int64_t layer = 0;     // index in the model
  Json options = Json::object();

  // What the architecture around it asks of attention.
  std::shared_ptr<const Rope> rope;  // null: no rotation, unless an option asks for one
  double norm_eps = 1e-6;
  bool qk_norm = false;  // RMSNorm over each head of q and k before rotation
  bool qkv_bias = false, out_bias = false;
  int64_t window = 0;  // sliding window of the layer (the query itself counts); 0: none
  // Of parameters that the architecture has anyway (q, k, v, o of attention, an MLP). Whoever makes
  // the layer gives them values if `drawn` is false.
  at::TensorOptions tensors = at::kFloat;
  bool drawn = true;
};

// KV heads on which a plan's programs and a probe's measures work.
struct HeadsView {
  int64_t heads = 0, kv_heads = 0;  // query heads; kv_heads divides them
  int64_t head_dim = 0, value_dim = 0;
  int64_t window = 0;  // the layer's own; 0: none
};

// How decoding is to keep what a layer remembers.
struct StateRequest {
  at::ScalarType kv_dtype = at::kFloat;                // of keys and values
  const std::vector<HeadProgram>* programs = nullptr;  // one a KV head; null: every head full
  bool dense_prefill = false;
};

class Layer {
 public:
  virtual ~Layer() = default;
  // Its parameters point into it.
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  // x [B,T,C] in the dtype of the parameters -> y [B,T,C]. Differentiable when no states are given.
  // Throws UsageError for a pattern that the layer does not have.
  virtual at::Tensor forward(const at::Tensor& x, Call& call) = 0;
  // residual + forward(x); may be one pass where nothing is tapped.
  virtual at::Tensor add_to(const at::Tensor& residual, const at::Tensor& x, Call& call) {
    return residual + forward(x, call);
  }

  // What decoding keeps for one sequence, on the device of the parameters; empty: nothing.
  virtual StateSpec state(const StateRequest& request) const {
    return {{}, params_.options().device()};
  }
  StateSpec state() const { return state(StateRequest()); }
  std::unique_ptr<State> make_state() const { return std::make_unique<State>(state()); }
  // Bytes that make_state()'s state holds after `tokens` tokens.
  int64_t state_bytes(int64_t tokens) const { return state().bytes(tokens); }

  // Multiply-adds times two of forward over `tokens` tokens of one sequence.
  virtual int64_t flops(int64_t tokens) const { return params_.flops(tokens); }

  virtual Traits traits() const = 0;
  virtual bool takes(Pattern pattern) const { return pattern == Pattern::kCausalSelf; }

  // Null: no KV heads.
  virtual const HeadsView* heads() const { return nullptr; }

  // By name ("q_proj.weight"): a loader may put others of the same shape in their place (another
  // dtype or device: all of them). Freshly initialised in float32 on the CPU.
  Params& parameters() { return params_; }
  const Params& parameters() const { return params_; }
  // After all parameters were put on another device or in another dtype.
  virtual void moved() {}

 protected:
  explicit Layer(Params::Order order = Params::Order::kByName) : params_(order) {}
  Params params_;
};

// A layer of the registry (see registry.h) with parameters drawn from PyTorch's default generator.
// Throws UsageError for an id that has no layer, an unknown option or sizes that do not fit.
std::unique_ptr<Layer> make_layer(const std::string& id, const LayerConfig& config);

}  // namespace heed::mixer
