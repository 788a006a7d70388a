// Aaren: what its entry says must hold, besides the properties of every mixer.
#include <gtest/gtest.h>

#include <chrono>

#include "io/error.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace aaren_test {

using testing::relative_error;

const std::vector<std::string> kForms = {"naive", "chunked", "recurrent"};

NamedTensors run(const NamedTensors& in, const std::string& form,
                 at::ScalarType dtype = at::kFloat) {
  return testing::run(find_mechanism("aaren"), in, form, {}, dtype);
}

NamedTensors inputs(int64_t tokens, double size = 1, uint64_t seed = 1) {
  at::manual_seed(seed);
  return {{"q", at::randn({3, 8}).mul(size)},
          {"k", at::randn({2, tokens, 3, 8})},
          {"v", at::randn({2, tokens, 3, 5})}};
}

at::Tensor scores(const NamedTensors& in) {
  return at::einsum("bthk,hk->bth", {in.at("k").to(at::kDouble), in.at("q").to(at::kDouble)})
      .div(std::sqrt(8.0));
}

TEST(Aaren, IsSoftmaxAttentionOverEveryPrefix) {
  const NamedTensors in = inputs(50);
  const at::Tensor s = scores(in), v = in.at("v").to(at::kDouble);
  std::vector<at::Tensor> rows;
  for (int64_t t = 1; t <= 50; ++t) {
    rows.push_back(at::softmax(s.slice(1, 0, t), 1).unsqueeze(-1).mul(v.slice(1, 0, t)).sum(1));
  }
  for (const std::string& form : kForms) {
    EXPECT_LE(relative_error(run(in, form).at("out"), at::stack(rows, 1)), 2e-6) << form;
  }
}

// Blocks of any length, folded to (m, u, w) one after the other.
TEST(Aaren, AnySplitGivesTheSame) {
  const NamedTensors in = inputs(60);
  const NamedTensors whole = run(in, "chunked");
  for (const std::string& form : kForms) {
    for (const int64_t block : {1, 7, 32}) {
      NamedTensors state;
      std::vector<at::Tensor> rows;
      for (int64_t t = 0; t < 60; t += block) {
        NamedTensors part = {{"q", in.at("q")}};
        for (const char* name : {"k", "v"}) {
          part[name] = in.at(name).slice(1, t, std::min<int64_t>(t + block, 60)).contiguous();
        }
        for (const auto& [name, tensor] : state) part["initial_" + name.substr(6)] = tensor;
        state = run(part, form);
        rows.push_back(state.at("out"));
        state.erase("out");
      }
      EXPECT_LE(relative_error(at::cat(rows, 1), whole.at("out")), 2e-6) << form << block;
      for (const auto& [name, tensor] : state) {
        EXPECT_LE(relative_error(tensor, whole.at(name)), 2e-6) << name;
      }
    }
  }
}

TEST(Aaren, LastOutputKnowsNoOrderAndScoresKnowNoShift) {
  const NamedTensors in = inputs(40);
  NamedTensors turned = in, shifted = in;
  for (const char* name : {"k", "v"}) turned[name] = in.at(name).flip(1);
  // One more entry of k, the same for all tokens, adds a constant to all scores.
  shifted["q"] = at::cat({in.at("q"), at::ones({3, 1})}, 1);
  shifted["k"] = at::cat({in.at("k"), at::full({2, 40, 3, 1}, 5.0)}, 3);
  for (const std::string& form : kForms) {
    const at::Tensor out = run(in, form).at("out");
    EXPECT_LE(relative_error(run(turned, form).at("out").select(1, 39), out.select(1, 39)), 2e-6);
    const auto same = testing::run(find_mechanism("aaren"), shifted, form,
                                   {{"scale", std::to_string(1 / std::sqrt(8.0))}});
    EXPECT_LE(relative_error(same.at("out"), out), 1e-5) << form;  // the scale has six digits
  }
}

TEST(Aaren, OutputsStayAmongTheValuesWithLargeScores) {
  NamedTensors in = inputs(80, 1e4);
  ASSERT_GT(scores(in).abs().max().item<double>(), 1e4);
  for (const std::string& form : kForms) {
    const at::Tensor out = run(in, form).at("out"), v = in.at("v");
    const at::Tensor low = std::get<0>(at::cummin(v, 1)), high = std::get<0>(at::cummax(v, 1));
    EXPECT_TRUE(at::isfinite(out).all().item<bool>()) << form;
    EXPECT_TRUE(out.ge(low.sub(1e-5)).logical_and(out.le(high.add(1e-5))).all().item<bool>())
        << form;
  }
}

TEST(Aaren, LongSequencesAreFastAndTheStateDoesNotGrow) {
  NamedTensors in = inputs(4096);
  const auto time = [&](const char* form, NamedTensors* out) {
    const auto start = std::chrono::steady_clock::now();
    *out = run(in, form);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  NamedTensors naive, fast;
  time("chunked", &fast);
  const double seconds = time("chunked", &fast);
  EXPECT_LT(3 * seconds, time("naive", &naive));
  EXPECT_LE(relative_error(fast.at("out"), run(in, "naive", at::kDouble).at("out")), 2e-6);
  EXPECT_EQ(fast.at("final_u").numel() + fast.at("final_m").numel() + fast.at("final_w").numel(),
            2 * 3 * (5 + 2));
}

// Not causal, every token reads what the last one of a causal pass does, whatever the order.
TEST(Aaren, NoncausalLayerReadsTheWholeSequence) {
  at::manual_seed(8);
  LayerConfig config;
  config.hidden = 12;
  config.heads = 2;
  const auto layer = make_layer("aaren", config);
  const at::Tensor x = at::randn({2, 9, 12});
  Call causal, whole;
  whole.pattern = Pattern::kNoncausalSelf;
  const at::Tensor last = layer->forward(x, causal).slice(1, 8);
  EXPECT_LE(relative_error(layer->forward(x, whole), last.expand({2, 9, 12})), 2e-6);
  EXPECT_LE(relative_error(layer->forward(x.flip(1), whole), last.expand({2, 9, 12})), 2e-6);
  const auto state = layer->make_state();
  whole.states = {state.get()};
  EXPECT_THROW(layer->forward(x.slice(0, 0, 1), whole), UsageError);
}

}  // namespace aaren_test
}  // namespace heed::mixer
