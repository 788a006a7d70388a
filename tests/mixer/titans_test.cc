// Titans' memory: the cases in which it is known what it must be.
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace titans_test {

using at::Tensor;
using testing::relative_error;

constexpr int64_t kT = 45, kH = 2, kK = 7, kV = 5;

NamedTensors inputs() {
  at::manual_seed(7);
  const auto gate = [] { return at::rand({2, kT, kH}); };
  const Tensor k = at::randn({2, kT, kH, kK});
  return {{"q", at::randn({2, kT, kH, kK})},
          {"k", k.div(k.norm(2, -1, true))},
          {"v", at::randn({2, kT, kH, kV})},
          {"alpha", gate()},
          {"eta", gate()},
          {"theta", gate().mul(0.3)},
          {"initial_state", at::randn({2, kH, kK, kV})},
          {"initial_momentum", at::randn({2, kH, kK, kV})}};
}

NamedTensors titans(const NamedTensors& in, const std::string& form,
                    const SettingList& settings = {}) {
  return testing::run(find_mechanism("titans"), in, form, settings);
}

TEST(Titans, WithoutMomentumAndForgettingItIsDeltaNet) {
  NamedTensors in = inputs();
  in["alpha"].zero_(), in["eta"].zero_(), in["initial_momentum"].zero_();
  NamedTensors delta = {{"q", in["q"]},
                        {"k", in["k"]},
                        {"v", in["v"]},
                        {"beta", in["theta"].mul(2)},
                        {"initial_state", in["initial_state"]}};
  const NamedTensors expected =
      testing::run(find_mechanism("deltanet"), delta, "naive", {{"scale", "1"}}, at::kDouble);
  for (const char* form : {"naive", "chunked", "recurrent"}) {
    const NamedTensors y = titans(in, form);
    EXPECT_LE(relative_error(y.at("out"), expected.at("out")), 2e-6) << form;
    EXPECT_LE(relative_error(y.at("final_state"), expected.at("final_state")), 2e-6) << form;
  }
}

TEST(Titans, WithoutARateTheMemoryDecays) {
  NamedTensors in = inputs();
  in["theta"].zero_(), in["initial_momentum"].zero_();
  in["alpha"].mul_(0.1);
  const Tensor left = at::prod(in["alpha"].to(at::kDouble).neg().add(1), 1);  // [B,H]
  const Tensor expected = in["initial_state"].mul(left.unsqueeze(-1).unsqueeze(-1));
  for (const char* form : {"naive", "chunked", "recurrent"}) {
    for (const char* chunk : {"1", "16"}) {
      const NamedTensors y = titans(in, form, {{"chunk", chunk}});
      EXPECT_LE(relative_error(y.at("final_state"), expected), 2e-6) << form << chunk;
    }
  }
}

TEST(Titans, ForgettingEverythingLeavesTheMomentum) {
  NamedTensors in = inputs();
  in["alpha"].fill_(1);
  for (const char* form : {"naive", "chunked", "recurrent"}) {
    const NamedTensors y = titans(in, form);
    EXPECT_LE(relative_error(y.at("final_state"), y.at("final_momentum")), 1e-6) << form;
  }
}

// The closed form of a chunk against the loop of its definition, written here once more.
TEST(Titans, AChunksGradientsAreTakenAtItsStart) {
  const NamedTensors in = inputs();
  const auto wide = [&](const char* name) { return in.at(name).to(at::kDouble); };
  const auto gate = [&](const char* name, int64_t t) {
    return wide(name).select(1, t).unsqueeze(-1).unsqueeze(-1);
  };
  Tensor m = wide("initial_state"), z = wide("initial_momentum"), start;
  std::vector<Tensor> outs;
  for (int64_t t = 0; t < kT; ++t) {
    if (t % 4 == 0) start = m;
    const Tensor k = wide("k").select(1, t).unsqueeze(-2), q = wide("q").select(1, t).unsqueeze(-2);
    const Tensor error = k.matmul(start).sub(wide("v").select(1, t).unsqueeze(-2));
    z = z.mul(gate("eta", t)).sub(k.transpose(-1, -2).matmul(error).mul(2).mul(gate("theta", t)));
    m = m.mul(gate("alpha", t).neg().add(1)).add(z);
    outs.push_back(q.matmul(m).squeeze(-2));
  }
  for (const char* form : {"naive", "chunked", "recurrent"}) {
    const NamedTensors y = titans(in, form, {{"chunk", "4"}});
    EXPECT_LE(relative_error(y.at("out"), at::stack(outs, 1)), 2e-6) << form;
    EXPECT_LE(relative_error(y.at("final_state"), m), 2e-6) << form;
    EXPECT_LE(relative_error(y.at("final_momentum"), z), 2e-6) << form;
  }
}

}  // namespace titans_test
}  // namespace heed::mixer
