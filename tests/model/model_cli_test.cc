// heed apply model, info, models and generate as a user calls them: files in, files out, exit
// codes, one-line messages.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "cache/plan/plan_file.h"
#include "cache/tensor_io.h"
#include "io/json.h"
#include "run_heed.h"

namespace heed {
namespace model_cli_test {

const std::string kFixtures = HEED_SOURCE_DIR "/tests/model/fixtures/";

using test::expect_refused;
using test::Result;

Result call(const std::string& arguments) { return test::run_heed(arguments); }

double relative_error(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b.to(at::kDouble)).norm() / b.to(at::kDouble).norm()).item<double>();
}

class ModelCli : public test::CliTest {
 protected:
  void SetUp() override {
    test::CliTest::SetUp();
    expected_ = read_tensors(kFixtures + "llama/expected.safetensors");
    write_tensors(path("in"), {{"input_ids", expected_.at("input_ids")}});
    hash_ = Json::parse(call("info --json " + kFixtures + "llama").text)["plan_hash"];
  }
  std::string apply(const std::string& more) const {
    return "apply model --in " + path("in") + " --out " + path("out") + " --model " + kFixtures +
           "llama " + more;
  }
  // A plan file of the fixture; returns its option.
  std::string plan(const std::string& hash, bool windows) const {
    Plan p = full_plan(2, 2, hash);
    if (windows) {
      p.programs.push_back(window_program("window", {2, {.alpha = 5}, {}}));
      p.heads[1][0] = 1;
    }
    write_plan(p, path("plan.json"));
    return "--plan " + path("plan.json");
  }

  NamedTensors expected_;
  std::string hash_;
};

TEST_F(ModelCli, AppliesAModel) {
  at::Tensor dense;
  for (const char* settings : {"", "--set cache=true", "--set cache=true --set prefill=3"}) {
    const Result r = call(apply(settings));
    ASSERT_EQ(r.code, 0) << r.text;
    const NamedTensors out = read_tensors(path("out"));
    ASSERT_EQ(out.size(), 1u);
    EXPECT_LT(relative_error(out.at("logits"), expected_.at("logits")), 1e-5);
    if (!dense.defined()) dense = out.at("logits");
  }
  ASSERT_EQ(call(apply("--set greedy=4")).code, 0);
  const NamedTensors greedy = read_tensors(path("out"));
  EXPECT_EQ(greedy.at("tokens").sizes(), (at::IntArrayRef{2, 4}));
  EXPECT_TRUE(at::equal(greedy.at("tokens").select(1, 0), dense.select(1, 29).argmax(-1)));

  ASSERT_EQ(call(apply(plan(hash_, false))).code, 0);
  EXPECT_TRUE(at::equal(read_tensors(path("out")).at("logits"), dense));
  ASSERT_EQ(call(apply(plan(hash_, true))).code, 0);
  const at::Tensor planned = read_tensors(path("out")).at("logits");
  EXPECT_GT(relative_error(planned, dense), 1e-4);
  ASSERT_EQ(call(apply(plan(hash_, true) + " --set cache=true")).code, 0);
  EXPECT_LT(relative_error(read_tensors(path("out")).at("logits"), planned), 1e-5);
}

TEST_F(ModelCli, RefusesWhatDoesNotFit) {
  expect_refused(call(apply(plan(std::string(64, '0'), true))), 2, "plan");
  expect_refused(call(apply("--set speed=3")), 2, "speed");
  expect_refused(call(apply("--set greedy=-1")), 2, "greedy");
  expect_refused(call(apply("--set prefill=31 --set cache=true")), 2, "prefill is 31");
  expect_refused(call(apply("--grad")), 2, "--grad");
  at::Tensor ids = expected_.at("input_ids").clone();
  ids[1][3] = 64;
  write_tensors(path("in"), {{"input_ids", ids}});
  expect_refused(call(apply("")), 2, "token id 64 is outside the vocabulary (0 to 63)");
  write_tensors(path("in"), {{"ids", ids}});
  expect_refused(call(apply("")), 2, "tensor ids is not expected");
  write_tensors(path("in"), {{"input_ids", ids.to(at::kFloat)}});
  expect_refused(call(apply("")), 2, "int64");
  expect_refused(call("info " + path("nowhere.gguf")), 1, "nowhere.gguf");
  expect_refused(call("info no-such-name"), 1, "no-such-name");
  std::ofstream(path("junk.gguf")) << "GGUF and then nothing";
  expect_refused(call("info " + path("junk.gguf")), 1, "junk.gguf");
  expect_refused(call("generate " + kFixtures + "llama"), 2, "--prompt");
  EXPECT_FALSE(std::filesystem::exists(path("out")));
}

TEST_F(ModelCli, GeneratesWithTheBuiltInModel) {
  const std::string words =
      "generate " HEED_SOURCE_DIR "/models/builtin -p 'It was a' -n 8 --json ";
  const Result dense = call(words);
  ASSERT_EQ(dense.code, 0) << dense.text;
  const Json report = Json::parse(dense.text);
  EXPECT_EQ(report["tokens"].size(), 8u);
  EXPECT_GT(report["kv_bytes"].get<int64_t>(), 0);
  EXPECT_EQ(Json::parse(call(words + "--chunk 1").text)["tokens"], report["tokens"]);
  expect_refused(call(words + "--chat"), 2, "chat template");
  expect_refused(call(words + "--top-p 2 --temperature 1"), 2, "top-p");
}

}  // namespace model_cli_test
}  // namespace heed
