// The card language and the suite on mechanisms that no registry has: one that uses all of the
// language must pass, and every way of being wrong must be found.
#include <gtest/gtest.h>

#include "io/error.h"
#include "mixer/common/rows.h"
#include "mixer/property_helper.h"

namespace heed::mixer {
namespace card_language_property_test {

using testing::Findings;

constexpr int64_t kKept = 3;

// out_t = sum over s in `shifts` of phi(x_{t-s}) mask_{t-s} + bias + extra_a - extra_b; the state
// is the last three of these inputs. `positive` tells where the first channel is above 0.
NamedTensors shifted_sum(const CoreCall& call) {
  const at::Tensor x = call.get("x"), initial = call.get("initial_last");
  const auto compute = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor y = x.to(compute);
  if (call.settings.is("phi", "exp")) y = y.mul(0.2).exp();
  y = y.mul(call.get("mask").unsqueeze(-1).unsqueeze(-1));
  const int64_t tokens = call.size("T");
  at::Tensor kept = initial.defined()
                        ? initial.to(compute)
                        : at::zeros({y.size(0), kKept, y.size(2), y.size(3)}, y.options());
  at::Tensor out;
  if (call.form == "chunked") {
    const at::Tensor all = at::cat({kept, y}, 1);
    out = at::zeros_like(y);
    for (const int64_t s : call.settings.ints("shifts")) {
      out = out.add(all.slice(1, kKept - s, kKept - s + tokens));
    }
    kept = all.slice(1, tokens);
  } else {
    std::vector<at::Tensor> outs = {y.slice(1, 0, 0)};
    for (int64_t t = 0; t < tokens; ++t) {
      kept = at::cat({kept, y.slice(1, t, t + 1)}, 1);
      at::Tensor sum = at::zeros_like(kept.slice(1, 0, 1));
      for (const int64_t s : call.settings.ints("shifts")) {
        sum = sum.add(kept.slice(1, kKept - s, kKept - s + 1));
      }
      outs.push_back(sum);
      kept = kept.slice(1, 1);
    }
    out = at::cat(outs, 1);
  }
  if (call.get("bias").defined()) out = out.add(call.get("bias").unsqueeze(-1));
  if (call.get("extra_a").defined()) out = out.add(call.get("extra_a")).sub(call.get("extra_b"));
  return {{"out", out.to(x.scalar_type())},
          {"positive", x.select(3, 0).gt(0).to(at::kLong)},
          {"final_last", kept}};
}

Mechanism shifted() {
  Mechanism m;
  m.card.id = "shifted";
  m.card.state_size = "3 H D";
  ApplyRow& row = m.card.apply;
  row.inputs = {token("x", "B,T,H,D"),
                index("mask", "B,T", "2"),
                gate("bias", "1|H").maybe(),
                gate("extra_a", "H,D").together("extra"),
                gate("extra_b", "H,D").together("extra"),
                gate("wave", "T+P-1").maybe().constant().only("phi=exp"),
                gate("initial_last", "Ns,3,H,D").maybe()};
  row.settings = {word_setting("phi", {"identity", "exp"}),
                  ints_setting("shifts").needed().at_least(0).trying({"1", "3x0x1"})};
  row.settings[1].most = kKept;
  row.outputs = {output("out", "B,T,H,D"), index_output("positive", "B,T,H"),
                 output("final_last", "Ns,3,H,D")};
  row.forms = {"chunked", "naive", "recurrent"};
  m.card.tests.sizes = {{"D", 4}};
  m.card.tests.always = {{"shifts", "0x2"}};
  m.card.tests.lengths = {0, 1, 5, 12};
  m.traits.state = StateGrowth::kFixed;
  m.core = shifted_sum;
  return m;
}

// out_t = x_t + the mean over all tokens: causal in name only.
Mechanism leaky() {
  Mechanism m;
  m.card.id = "leaky";
  m.card.state_size = "H D T";
  m.card.apply.inputs = {token("x", "B,T,H,D")};
  m.card.apply.outputs = {output("out", "B,T,H,D")};
  m.card.apply.forms = {"parallel", "naive"};
  m.card.tests.lengths = {1, 5};
  m.traits.causality = Causality::kLeaky;
  m.core = [](const CoreCall& call) {
    const at::Tensor x = call.get("x");
    return NamedTensors{{"out", x.add(x.mean(1, true))}};
  };
  return m;
}

// The properties that do not hold.
std::vector<std::string> broken(const Mechanism& m) {
  std::vector<std::string> names;
  for (const testing::Property& property : testing::properties()) {
    Findings found(m.card.id);
    try {
      property.check(m, found);
    } catch (const std::exception& e) {
      found.add(e.what());
    }
    if (!found.empty()) names.emplace_back(property.name);
  }
  return names;
}

bool finds(const Mechanism& m, const std::string& property) {
  const std::vector<std::string> names = broken(m);
  return std::find(names.begin(), names.end(), property) != names.end();
}

// The same mechanism with its outputs changed by `change`, which is told the form.
template <typename F>
Mechanism wrong(F&& change) {
  Mechanism m = shifted();
  m.core = [change](const CoreCall& call) {
    NamedTensors out = shifted_sum(call);
    change(call, out);
    return out;
  };
  return m;
}

TEST(CardLanguage, MechanismsThatAreAsTheySayPass) {
  for (const Mechanism& m : {shifted(), leaky()}) {
    for (const testing::Property& property : testing::properties()) {
      Findings found(m.card.id);
      property.check(m, found);
      EXPECT_TRUE(found.empty()) << property.name << ": " << found.text();
    }
  }
}

TEST(CardLanguage, TriesComeFromTheCard) {
  std::vector<std::string> texts;
  for (const Try& one : testing::tries(shifted())) texts.push_back(testing::describe(one.settings));
  EXPECT_EQ(texts, (std::vector<std::string>{"shifts=0x2 ", "phi=exp shifts=0x2 ", "shifts=1 ",
                                             "shifts=3x0x1 "}));
}

TEST(CardLanguage, ALeakyMechanismDeclaredStrictIsFound) {
  Mechanism m = leaky();
  m.traits.causality = Causality::kStrict;
  EXPECT_EQ(broken(m), std::vector<std::string>{"CausalityIsAsDeclared"});
  m.traits.causality = Causality::kSelectionLeaky;
  EXPECT_EQ(broken(m), std::vector<std::string>{"CausalityIsAsDeclared"});
}

TEST(CardLanguage, AStrictMechanismDeclaredLeakyIsFound) {
  Mechanism m = shifted();
  m.traits.causality = Causality::kLeaky;
  EXPECT_TRUE(finds(m, "CausalityIsAsDeclared"));
}

TEST(CardLanguage, FormsThatDisagreeAreFound) {
  EXPECT_TRUE(finds(wrong([](const CoreCall& call, NamedTensors& out) {
                      if (call.form == "chunked") out["out"] = out["out"].mul(1.00001);
                    }),
                    "FormsAgree"));
}

TEST(CardLanguage, AStateSizeThatLiesIsFound) {
  Mechanism m = shifted();
  m.card.state_size = "2 H D";
  EXPECT_EQ(broken(m), std::vector<std::string>{"StateSizeIsAsDeclared"});
  m = shifted();
  m.traits.state = StateGrowth::kGrows;
  EXPECT_EQ(broken(m), std::vector<std::string>{"StateSizeIsAsDeclared"});
}

TEST(CardLanguage, AStateThatDoesNotGoOnIsFound) {
  EXPECT_TRUE(finds(wrong([](const CoreCall& call, NamedTensors& out) {
                      out["final_last"] = out["final_last"].flip(1);
                    }),
                    "PrefillAndStepsEqualOnePass"));
}

TEST(CardLanguage, HeadsThatMixAreFound) {
  EXPECT_TRUE(finds(wrong([](const CoreCall& call, NamedTensors& out) {
                      out["out"] = out["out"].add(out["out"].mean(2, true));
                    }),
                    "BatchesAndHeadsAreIndependent"));
}

TEST(CardLanguage, AWrongGradientIsFound) {
  EXPECT_TRUE(finds(wrong([](const CoreCall& call, NamedTensors& out) {
                      out["out"] = out["out"].detach().add(call.get("x").mul(0.0));
                    }),
                    "NaiveGradientsAreThoseOfFiniteDifferences"));
}

TEST(CardLanguage, OutputsOfAnotherTypeAreFound) {
  EXPECT_TRUE(finds(wrong([](const CoreCall& call, NamedTensors& out) {
                      out["positive"] = out["positive"].to(at::kFloat);
                    }),
                    "OutputsAreAsDeclared"));
  EXPECT_TRUE(finds(wrong([](const CoreCall& call, NamedTensors& out) { out.erase("positive"); }),
                    "OutputsAreAsDeclared"));
}

// What a caller is told: the tensor or setting, and what was expected.
TEST(CardLanguage, ErrorsSayWhatWasExpected) {
  const Mechanism m = shifted();
  const NamedTensors in = testing::make_inputs(m, testing::tries(m)[0], 5, 1);
  const auto told = [&](NamedTensors inputs, const SettingList& settings) -> std::string {
    try {
      testing::run(m, inputs, "", settings);
    } catch (const UsageError& e) {
      return e.what();
    }
    return "no error";
  };
  const SettingList good = {{"shifts", "0x2"}};
  NamedTensors wrong_mask = in, wrong_bias = in, wrong_group = in, surplus = in;
  wrong_mask["mask"] = in.at("mask").add(2);
  wrong_bias["bias"] = at::zeros({2});
  wrong_group.erase("extra_b");
  surplus["wave"] = at::zeros({9});
  const std::pair<std::string, const char*> cases[] = {
      {told(in, {}), "setting shifts is missing, expected whole numbers as 7x13 from 0 to 3"},
      {told(in, {{"shifts", "0x4"}}), "setting shifts=0x4: expected whole numbers as 7x13"},
      {told(in, {{"shifts", "0"}, {"phi", "relu"}}), "phi=relu: expected one of identity, exp"},
      {told(wrong_mask, good), "tensor mask holds 3, expected whole numbers from 0 to 1"},
      {told(wrong_bias, good), "tensor bias has shape [2], expected [1] or [H=3]"},
      {told(wrong_group, good), "tensor extra_b is missing; it comes together with extra_a"},
      {told(surplus, good), "tensor wave is not an input with these settings"}};
  for (const auto& [message, part] : cases) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
}

}  // namespace card_language_property_test
}  // namespace heed::mixer
