// torch.ops.heed.learn: the kernel against the naive form in float64, gradients through the inner
// loop against its autograd, states handed on inside chunks.
#include "op/learn.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "io/error.h"

namespace heed::op {
namespace learn_test {

using at::Tensor;

struct Case {
  bool norm, bias, momentum, decay, gain;
  int64_t chunk;
};
constexpr Case kCases[] = {{false, false, true, true, false, 1},
                           {false, false, true, true, false, 16},
                           {false, false, false, true, false, 4},
                           {true, true, false, false, true, 16},
                           {true, false, false, false, false, 8}};

LearnTensors inputs(const Case& c, int64_t batch, int64_t tokens, int64_t states) {
  at::manual_seed(3);
  const int64_t heads = 2, keys = 7, values = 6;
  LearnTensors x;
  x.q = at::randn({batch, tokens, heads, keys});
  x.k = at::randn({batch, tokens, heads, keys}).div(3);
  x.v = at::randn({batch, tokens, heads, values});
  const auto gate = [&] { return at::rand({batch, tokens, heads}); };
  x.theta = gate().mul(0.1);
  if (c.decay) x.alpha = gate().mul(0.3);
  if (c.momentum) x.eta = gate();
  if (c.gain) x.gain = gate();
  if (c.norm) {
    x.norm_weight = at::randn({heads, values}).mul(0.3).add(1);
    x.norm_bias = at::randn({heads, values}).mul(0.3);
  }
  x.initial_state = at::randn({states, heads, keys, values}).div(2);
  if (c.momentum) x.initial_momentum = at::randn({states, heads, keys, values}).div(5);
  if (c.bias) x.initial_bias = at::randn({states, heads, values}).div(2);
  return x;
}

LearnOptions options_of(const Case& c) { return {0.6, 1e-6, c.chunk, c.norm, c.bias}; }

constexpr size_t kInputs = offsetof(LearnTensors, out) / sizeof(Tensor);
Tensor* list(LearnTensors& x) { return reinterpret_cast<Tensor*>(&x); }

// All inputs as leaves of `type`.
LearnTensors leaves(LearnTensors x, at::ScalarType type) {
  for (size_t i = 0; i < kInputs; ++i) {
    if (list(x)[i].defined()) list(x)[i] = list(x)[i].detach().to(type).requires_grad_();
  }
  return x;
}

double error(const Tensor& x, const Tensor& y) {
  const double norm = y.norm().item<double>();
  const double difference = x.to(at::kDouble).sub(y).norm().item<double>();
  return norm > 0 ? difference / norm : difference;
}

TEST(Learn, EqualsNaiveInFloat64WithGradients) {
  for (const Case& c : kCases) {
    for (const bool packed : {false, true}) {
      SCOPED_TRACE(testing::Message() << "chunk " << c.chunk << " norm " << c.norm << packed);
      const Tensor offsets = packed ? at::tensor({0, 5, 5, 41}, at::kLong) : Tensor();
      const LearnTensors x = inputs(c, packed ? 1 : 2, 41, packed ? 3 : 2);
      LearnTensors fast = leaves(x, at::kFloat), slow = leaves(x, at::kDouble);
      learn(fast, options_of(c), offsets);
      learn_naive(slow, options_of(c), offsets);
      Tensor fast_loss = at::zeros({}), slow_loss = at::zeros({}, at::kDouble);
      for (Tensor LearnTensors::*output :
           {&LearnTensors::out, &LearnTensors::final_state, &LearnTensors::final_momentum,
            &LearnTensors::final_bias}) {
        ASSERT_TRUE((fast.*output).defined());
        EXPECT_LE(error(fast.*output, slow.*output), 2e-6);
        const Tensor weight = at::randn_like((slow.*output).detach());
        fast_loss = fast_loss.add((fast.*output).mul(weight.to(at::kFloat)).sum());
        slow_loss = slow_loss.add((slow.*output).mul(weight).sum());
      }
      fast_loss.backward();
      slow_loss.backward();
      for (size_t i = 0; i < kInputs; ++i) {
        if (!list(fast)[i].defined()) continue;
        EXPECT_LE(error(list(fast)[i].grad(), list(slow)[i].grad()), 1e-5)
            << kernel::kLearnTensors[i].name;
      }
    }
  }
}

// Two pieces cut anywhere, then steps: the states say where the chunk is.
TEST(Learn, PiecesAndStepsEqualOnePass) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << "chunk " << c.chunk << " norm " << c.norm);
    LearnTensors x = inputs(c, 2, 41, 2);
    LearnTensors whole = x;
    learn(whole, options_of(c));
    LearnTensors state = x;
    state.initial_running = state.initial_state.clone();
    if (c.bias) state.initial_running_bias = state.initial_bias.clone();
    state.initial_position = at::zeros({2});
    std::vector<Tensor> outs;
    int64_t from = 0;
    for (const int64_t length : {13, 20, 1, 1, 1, 5}) {
      LearnTensors piece = state;
      for (size_t i = 0; i < 7; ++i) {  // q .. gain
        if (list(piece)[i].defined()) list(piece)[i] = list(x)[i].slice(1, from, from + length);
      }
      if (length == 1) {
        learn_step(piece, options_of(c));
      } else {
        LearnTensors naive = piece;
        learn_naive(naive, options_of(c));
        learn(piece, options_of(c));
        EXPECT_LE(error(piece.out, naive.out.to(at::kDouble)), 4e-6);
        state.initial_state = piece.final_state, state.initial_running = piece.final_running;
        state.initial_position = piece.final_position;
        if (c.momentum) state.initial_momentum = piece.final_momentum;
        if (c.bias) {
          state.initial_bias = piece.final_bias;
          state.initial_running_bias = piece.final_running_bias;
        }
      }
      outs.push_back(piece.out);
      from += length;
      EXPECT_EQ(state.initial_position[0].item<int64_t>(), from % c.chunk);
    }
    EXPECT_LE(error(at::cat(outs, 1), whole.out.to(at::kDouble)), 4e-6);
  }
}

TEST(Learn, NoTokens) {
  const Case c = kCases[0];
  LearnTensors x = inputs(c, 2, 0, 2);
  learn(x, options_of(c));
  EXPECT_EQ(x.out.sizes(), at::IntArrayRef({2, 0, 2, 6}));
  EXPECT_TRUE(x.final_state.equal(x.initial_state));
  EXPECT_TRUE(x.final_momentum.equal(x.initial_momentum));
}

TEST(Learn, SaysWhatIsWrong) {
  LearnTensors x = inputs(kCases[0], 2, 5, 2);
  x.gain = x.theta;
  EXPECT_THROW(learn(x, options_of(kCases[0])), UsageError);
  x = inputs(kCases[0], 2, 5, 2);
  x.v = x.v.slice(1, 0, 4);
  EXPECT_THROW(learn(x, options_of(kCases[0])), UsageError);
}

}  // namespace learn_test
}  // namespace heed::op
