// HGRN2: gated linear attention with k = 1 - a.
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace hgrn2_test {

using testing::relative_error;

NamedTensors inputs(uint64_t seed) {
  Try one;
  one.sizes = {{"B", 1}, {"H", 2}, {"K", 16}, {"V", 12}};
  return testing::make_inputs(find_mechanism("hgrn2"), one, 70, seed);
}

TEST(Hgrn2, IsGatedLinearAttentionWithTiedInputGate) {
  const NamedTensors in = inputs(1);
  NamedTensors gla = in;
  gla["k"] = in.at("log_decay").exp().neg().add(1.0);
  for (const char* form : {"naive", "chunked", "recurrent"}) {
    const NamedTensors a = testing::run(find_mechanism("hgrn2"), in, form, {});
    const NamedTensors b = testing::run(find_mechanism("gla"), gla, form, {{"scale", "1"}});
    for (const auto& [name, t] : b) EXPECT_LE(relative_error(a.at(name), t), 2e-6) << form << name;
  }
}

// A gate of 1 keeps and writes nothing; one of 0 forgets all and takes the value in.
TEST(Hgrn2, GatesAtTheirEnds) {
  NamedTensors in = inputs(2);
  in["log_decay"] = at::zeros_like(in.at("log_decay"));
  for (const char* form : {"naive", "chunked", "recurrent"}) {
    EXPECT_TRUE(testing::run(find_mechanism("hgrn2"), in, form, {})
                    .at("final_state")
                    .equal(in.at("initial_state")))
        << form;
  }
  in["log_decay"] = at::full_like(in.at("log_decay"), -std::numeric_limits<double>::infinity());
  const at::Tensor own = in.at("q").sum(-1, true).mul(in.at("v"));
  for (const char* form : {"naive", "chunked", "recurrent"}) {
    EXPECT_LE(relative_error(testing::run(find_mechanism("hgrn2"), in, form, {}).at("out"), own),
              2e-6)
        << form;
  }
}

}  // namespace hgrn2_test
}  // namespace heed::mixer
