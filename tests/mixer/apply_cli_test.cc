// heed apply, list and show as a user calls them: files in, files out, exit codes, messages.
#include <gtest/gtest.h>

#include <filesystem>

#include "cache/tensor_io.h"
#include "io/json.h"
#include "mixer/sampling_helper.h"
#include "run_heed.h"

namespace heed::mixer {
namespace apply_cli_test {

using test::Result;

Result call(const std::string& arguments) { return test::run_heed(arguments); }

class ApplyCli : public test::CliTest {
 protected:
  std::string files() const { return " --in " + path("in") + " --out " + path("out") + " "; }
};

// The try line of every ready card, its file names replaced, in every form that goes with it.
TEST_F(ApplyCli, RunsTheTryLineOfEveryMixerInEveryForm) {
  for (const Mechanism& m : registry().all()) {
    std::string line = m.card.try_line;
    SettingList settings;
    for (size_t at = line.find("--set "); at != std::string::npos;
         at = line.find("--set ", at + 1)) {
      const size_t end = std::min(line.find(' ', at + 6), line.size());
      const std::string text = line.substr(at + 6, end - at - 6);
      settings.emplace_back(text.substr(0, text.find('=')), text.substr(text.find('=') + 1));
    }
    for (const auto& [word, file] :
         {std::pair{"IN.safetensors", "in"}, {"OUT.safetensors", "out"}}) {
      ASSERT_NE(line.find(word), std::string::npos) << line;
      line.replace(line.find(word), std::string(word).size(), path(file));
    }
    ASSERT_TRUE(line.starts_with("heed apply ")) << line;
    Try one;
    one.settings = settings;
    const NamedTensors in =
        testing::make_inputs(m, one, testing::lengths_of(m, one, {19}).front(), 3);
    write_tensors(path("in"), in);
    const NamedTensors reference = testing::run(m, in, "naive", settings, at::kDouble);
    for (const std::string& form : testing::forms_of(m, settings, in)) {
      const Result r = call(line.substr(5) + " --form " + form);
      ASSERT_EQ(r.code, 0) << line << " " << form << ": " << r.text;
      for (const auto& [name, t] : read_tensors(path("out"))) {
        EXPECT_NE(t.scalar_type(), at::kDouble);
        EXPECT_LE(testing::relative_error(t, reference.at(name)), m.card.tests.bound.forward)
            << m.card.id << " " << form << " " << name;
      }
    }
  }
}

TEST_F(ApplyCli, Float64AndGradients) {
  const Mechanism& m = find_mechanism("gated-deltanet");
  NamedTensors in = testing::make_inputs(m, Try(), 9, 4);
  in["grad_out"] = at::randn({2, 9, 3, 5});
  write_tensors(path("in"), in);
  const Result r = call("apply gated-deltanet" + files() +
                        "--grad --dtype float64 --form naive --set scale=0.5");
  ASSERT_EQ(r.code, 0) << r.text;
  const NamedTensors out = read_tensors(path("out"));
  for (const char* name :
       {"out", "final_state", "grad_q", "grad_log_decay", "grad_initial_state"}) {
    ASSERT_TRUE(out.count(name)) << name;
    EXPECT_EQ(out.at(name).scalar_type(), at::kDouble);
  }
}

TEST_F(ApplyCli, WrongUseIsExitTwoWithOneLine) {
  const NamedTensors in = testing::make_inputs(find_mechanism("gla"), Try(), 5, 5);
  write_tensors(path("in"), in);
  std::string planned;
  for (const Card& card : cards()) {
    if (!card.ready) planned = card.id;
  }
  const std::pair<std::string, const char*> wrong[] = {
      {"apply glaa", "gla"},
      {"apply " + planned, "planned"},
      {"apply retnet", "log_decay"},
      {"apply rwkv6", "tensor r [B,T,H,K] is missing"},
      {"apply gla --set colour=3", "colour"},
      {"apply gla --set scale=x", "a number"},
      {"apply gla --set scale", "KEY=VALUE"},
      {"apply gla --form parallel", "parallel"},
      {"apply gla --form sideways", "sideways"},
      {"apply gla --dtype float64 --form chunked", "naive"},
      {"apply gla --grad", "grad_out"},
      {"apply gla --grad --form recurrent", "recurrent"},
      {"apply gla --model x", "--model"}};
  for (const auto& [arguments, part] : wrong) {
    const Result r = call(arguments + files());
    EXPECT_EQ(r.code, 2) << arguments << ": " << r.text;
    EXPECT_NE(r.text.find(part), std::string::npos) << arguments << ": " << r.text;
    EXPECT_FALSE(std::filesystem::exists(path("out"))) << arguments;
  }
  EXPECT_EQ(call("apply gla --in " + path("in")).code, 2);
  EXPECT_EQ(call("apply gla --in " + path("absent") + " --out " + path("out")).code, 1);
}

TEST_F(ApplyCli, ListAndShow) {
  const Result list = call("list --json");
  ASSERT_EQ(list.code, 0) << list.text;
  const Json rows = parse_json(list.text, "heed list");
  EXPECT_EQ(rows.size(), cards().size());
  const Result ready = call("list --status ready --json");
  EXPECT_EQ(parse_json(ready.text, "heed list").size(), registry().all().size());
  EXPECT_EQ(call("list --family nonsense").code, 2);
  std::string ids;
  for (const Card& card : cards()) ids += " " + card.id;
  const Result show = call("show" + ids);
  EXPECT_EQ(show.code, 0) << show.text;
  const Json shown = parse_json(call("show" + ids + " --json").text, "heed show");
  ASSERT_EQ(shown.size(), cards().size());
  size_t i = 0;
  for (const Card& card : cards()) {
    EXPECT_NE(show.text.find("title      " + card.title + "\n"), std::string::npos) << card.id;
    EXPECT_EQ(shown[i++].at("id"), card.id);
  }
  EXPECT_EQ(parse_json(call("show gla --json").text, "heed show").at("id"), "gla");
  EXPECT_EQ(call("show nonsense").code, 2);
  EXPECT_EQ(call("show gla nonsense").code, 2);
}

}  // namespace apply_cli_test
}  // namespace heed::mixer
