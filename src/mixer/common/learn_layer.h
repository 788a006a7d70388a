// What the mechanisms on the engine `learn` share: traits and test card, and a layer whose memory
// begins with learned weights.
#pragma once

#include "mixer/common/recurrent_layer.h"
#include "mixer/registry.h"
#include "op/learn.h"

namespace heed::mixer {

// Causal self attention whose chunk is part of the mathematics: outputs `out`, final_state and the
// further states of these names and shapes, traits, and where prefill may be cut.
void set_learn_card(Mechanism& m, const std::string& value_dim,
                    const std::vector<std::pair<std::string, std::string>>& states, Sizes sizes);

// learn_naive for the form naive, else learn.
void run_learn(const std::string& form, op::LearnTensors& x, const op::LearnOptions& options);

// Its state is the memory of the open chunk's start, what has been learnt since, and the place in
// the chunk: it does not grow with the chunk.
class LearnLayer : public RecurrentLayer {
 public:
  Traits traits() const override;

 protected:
  using RecurrentLayer::RecurrentLayer;

  // The parameter "memory" [H,K,V], and with learn_.bias "memory_bias" [H,V]: what a sequence
  // begins with. `momentum`: the state holds one. learn_ must be set.
  void memory(int64_t heads, int64_t key_dim, int64_t value_dim, bool momentum);
  // Runs the engine from the states, or from the learned memory; x.out comes back.
  at::Tensor learn(RecurrentPass& pass, op::LearnTensors x);

  op::LearnOptions learn_;

 private:
  at::Tensor start_, start_bias_;
  bool momentum_ = false;
  size_t memory_part_ = 0, momentum_part_ = 0, running_ = 0, position_ = 0;
  size_t bias_part_ = 0, running_bias_ = 0;
};

}  // namespace heed::mixer
