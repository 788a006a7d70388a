// TTT-linear: its inner gradient is the one that autograd finds, and the variants meet where they
// must.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace ttt_linear_test {

using at::Tensor;
using testing::relative_error;

constexpr int64_t kT = 37, kH = 2, kK = 8;

NamedTensors inputs(int64_t tokens = kT) {
  at::manual_seed(11);
  return {{"q", at::randn({2, tokens, kH, kK})},
          {"k", at::randn({2, tokens, kH, kK}).div(3)},
          {"v", at::randn({2, tokens, kH, kK})},
          {"ln_weight", at::rand({kH, kK}).add(0.5)},
          {"ln_bias", at::randn({kH, kK})},
          {"lr", at::rand({2, tokens, kH}).mul(0.2)},
          {"initial_state", at::randn({2, kH, kK, kK})},
          {"initial_bias", at::randn({2, kH, kK})}};
}

NamedTensors ttt(const NamedTensors& in, const std::string& form,
                 const SettingList& settings = {}) {
  return testing::run(find_mechanism("ttt-linear"), in, form, settings);
}

// W - lr dL/dW, b - lr dL/db for one token, by autograd of 1/2 |LN(k W + b) - (v - k)|^2.
TEST(TttLinear, OneTokenIsOneGradientStep) {
  const NamedTensors in = inputs(1);
  const auto wide = [&](const char* name) { return in.at(name).to(at::kDouble); };
  const at::AutoGradMode grad(true);
  const Tensor w = wide("initial_state").requires_grad_(),
               b = wide("initial_bias").requires_grad_();
  const Tensor k = wide("k").select(1, 0), v = wide("v").select(1, 0);
  const Tensor y = k.unsqueeze(-2).matmul(w).squeeze(-2).add(b);
  const Tensor normed = at::layer_norm(y, {kK}, {}, {}, 1e-6).mul(wide("ln_weight"));
  const Tensor loss = normed.add(wide("ln_bias")).sub(v.sub(k)).square().sum().mul(0.5);
  const auto grads = torch::autograd::grad({loss}, {w, b});
  const Tensor rate = wide("lr").select(1, 0).unsqueeze(-1);
  for (const char* form : {"naive", "chunked"}) {
    const NamedTensors result = ttt(in, form);
    EXPECT_LE(
        relative_error(result.at("final_state"), w.detach().sub(grads[0].mul(rate.unsqueeze(-1)))),
        2e-6);
    EXPECT_LE(relative_error(result.at("final_bias"), b.detach().sub(grads[1].mul(rate))), 2e-6);
  }
}

TEST(TttLinear, TauIsOneOverThePlaceInTheChunk) {
  NamedTensors in = inputs();
  const Tensor expected = ttt(in, "naive").at("out");
  in["tau"] = at::arange(1, 17).to(at::kFloat).reciprocal();
  for (const char* form : {"naive", "chunked"}) {
    EXPECT_LE(relative_error(ttt(in, form).at("out"), expected), 1e-5) << form;
  }
}

// With tau = 1 and one rate for all tokens both variants train alike, and differ by what they add
// to the norm.
TEST(TttLinear, VariantsMeet) {
  NamedTensors paper = inputs(), fla = paper;
  fla.erase("lr");
  paper["lr"].fill_(0.05), paper["tau"] = at::ones({16});
  fla["eta"] = paper["lr"];
  for (const char* form : {"naive", "chunked"}) {
    const NamedTensors x = ttt(paper, form),
                       y = ttt(fla, form, {{"variant", "fla"}, {"scale", "1"}});
    EXPECT_LE(relative_error(y.at("final_state"), x.at("final_state")), 1e-5) << form;
    EXPECT_LE(relative_error(y.at("final_bias"), x.at("final_bias")), 1e-5) << form;
    const Tensor normed = x.at("out").sub(paper["q"]);  // LN(o)
    const Tensor o = y.at("out").sub(normed);
    const Tensor again = at::layer_norm(o, {kK}, {}, {}, 1e-6).mul(paper["ln_weight"]);
    EXPECT_LE(relative_error(again.add(paper["ln_bias"]), normed), 1e-4) << form;
  }
}

}  // namespace ttt_linear_test
}  // namespace heed::mixer
