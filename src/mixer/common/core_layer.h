// An attention layer whose passes without states are the mechanism's own core (`heed apply`), with
// the layer's options as its settings.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "mixer/common/attention_layer.h"
#include "mixer/registry.h"

namespace heed::mixer {

class CoreLayer : public AttentionLayer {
 protected:
  // `settings`: those of the card that are options of the layer, under the same names.
  CoreLayer(const std::string& id, const LayerConfig& config, unsigned own,
            const std::vector<std::string>& settings);

  at::Tensor mix(Heads& h, op::AttendOptions options) override;
  // Adds what the core takes besides q, k and v; a setting "grid" has been set from the call.
  virtual void more_inputs(const Heads& h, const Sequences& part, CoreCall& call) {}

  // Over the states of the call: appends each sequence's rows to its first part, then asks f for
  // its result [1, T, Hq, Dv]. Keys and values are all that the state holds, as views
  // [1, N, Hk, D].
  static at::Tensor over_states(
      Heads& h, const std::function<at::Tensor(const Sequences&, State&, const at::Tensor& k,
                                               const at::Tensor& v)>& f);
  // The keys and values of a part of a state [1, N, Hk, D], in `dtype`.
  static std::pair<at::Tensor, at::Tensor> held(const Rows& rows, at::ScalarType dtype);

  const Settings& settings() const { return settings_; }

 private:
  Settings settings_;
};

}  // namespace heed::mixer
