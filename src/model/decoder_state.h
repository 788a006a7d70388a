// What decoding keeps for one sequence of a model: the states of all its layers.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <utility>
#include <vector>

#include "cache/program.h"
#include "cache/state.h"

namespace heed {

// What decoding keeps for one sequence: a state for every layer, and for those channel layers that
// have one.
class DecoderState {
 public:
  struct Layer {
    std::unique_ptr<State> mixer, channel;  // channel: null where it keeps nothing
  };
  explicit DecoderState(std::vector<Layer> layers) : layers_(std::move(layers)) {}

  std::unique_ptr<DecoderState> fork() const;
  int64_t length() const { return layers_.empty() ? 0 : layers_[0].mixer->length(); }
  int64_t bytes() const;
  // Throws Error where a layer cannot go back (see State), before anything has changed:
  // keep a fork().
  void truncate(int64_t length);
  // Whether every layer can go back to an earlier length while no window has dropped rows.
  bool can_truncate() const;
  // Whether a prompt must now come in one pass (a plan with dense prefill, on any layer).
  bool dense_prefill() const;
  // Every tensor as "layers.N.NAME", a channel layer's as "layers.N.channel.NAME".
  void save(NamedTensors& out) const;
  void load(const NamedTensors& in);

  State& layer(int64_t l) { return *layers_[l].mixer; }
  const State& layer(int64_t l) const { return *layers_[l].mixer; }
  State* channel(int64_t l) { return layers_[l].channel.get(); }

 private:
  template <typename F>
  void each(F&& f) const;

  std::vector<Layer> layers_;
};

struct StateOptions {
  at::ScalarType kv_dtype = at::kFloat;  // of keys and values
  const Programs* programs = nullptr;    // from resolve_plan(); null: every head full
  std::shared_ptr<StatePool> pool;       // with a budget for all sequences; null: no limit
};

}  // namespace heed
