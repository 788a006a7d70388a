// KDA: with one decay for all channels it is the gated delta rule, without a write it only decays.
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace kda_test {

using testing::relative_error;

NamedTensors inputs(uint64_t seed) {
  Try one;
  one.sizes = {{"B", 1}, {"H", 2}, {"K", 16}, {"V", 12}};
  return testing::make_inputs(find_mechanism("kda"), one, 70, seed);
}

TEST(Kda, WithOneDecayForAllChannelsIsTheGatedDeltaRule) {
  NamedTensors in = inputs(1), one = in;
  const at::Tensor decay = in.at("log_decay").select(-1, 0).contiguous();
  one["log_decay"] = decay;
  in["log_decay"] = decay.unsqueeze(-1).expand_as(in.at("k")).contiguous();
  for (const char* form : {"naive", "chunked", "recurrent"}) {
    const NamedTensors a = testing::run(find_mechanism("kda"), in, form, {});
    const NamedTensors b =
        testing::run(find_mechanism("gated-deltanet"), one, "naive", {}, at::kDouble);
    for (const auto& [name, t] : b) EXPECT_LE(relative_error(a.at(name), t), 2e-6) << form << name;
  }
}

// S' = diag(a) S, S = S' + beta k^T (v - k S'): the correction reads after the decay.
TEST(Kda, IsTheTokenLoopOfItsEquation) {
  const NamedTensors in = inputs(2);
  const auto at_token = [&](const char* name, int64_t t) {
    return in.at(name).select(1, t).to(at::kDouble);
  };
  at::Tensor state = in.at("initial_state").to(at::kDouble);
  std::vector<at::Tensor> outs;
  for (int64_t t = 0; t < 70; ++t) {
    const at::Tensor k = at_token("k", t);
    state = at_token("log_decay", t).exp().unsqueeze(-1).mul(state);
    const at::Tensor error = at_token("v", t).sub(k.unsqueeze(-1).mul(state).sum(-2));
    const at::Tensor write = at_token("beta", t).unsqueeze(-1).mul(k);
    state = state.add(write.unsqueeze(-1).mul(error.unsqueeze(-2)));
    outs.push_back(at_token("q", t).unsqueeze(-1).mul(state).sum(-2).mul(0.25));
  }
  for (const char* form : {"naive", "chunked", "recurrent"}) {
    const NamedTensors y = testing::run(find_mechanism("kda"), in, form, {});
    EXPECT_LE(relative_error(y.at("out"), at::stack(outs, 1)), 2e-6) << form;
    EXPECT_LE(relative_error(y.at("final_state"), state), 2e-6) << form;
  }
}

TEST(Kda, WithUnitKeysReadsBackWhatItWrote) {
  NamedTensors in = inputs(3);
  in["k"] = in.at("k").div(in.at("k").norm(2, -1, true));
  in["q"] = in.at("k");
  in["beta"] = at::ones_like(in.at("beta"));
  for (const char* form : {"naive", "chunked", "recurrent"}) {
    const at::Tensor y = testing::run(find_mechanism("kda"), in, form, {{"scale", "1"}}).at("out");
    EXPECT_LE(relative_error(y, in.at("v")), 1e-5) << form;
  }
}

}  // namespace kda_test
}  // namespace heed::mixer
