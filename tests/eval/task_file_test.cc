#include "eval/task_file.h"

#include <gtest/gtest.h>

#include <fstream>

#include "eval/measure.h"
#include "io/error.h"
#include "small_builtin.h"
#include "temp_folder.h"

namespace heed::eval {
namespace task_file_test {

class TaskFile : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new test::TempFolder;
    test::make_small_builtin(*folder_ / "model");
    bench_ = new Workbench(open_workbench(*folder_ / "model"));
  }
  static void TearDownTestSuite() {
    delete bench_;
    delete folder_;
  }
  static std::vector<data::NeedleDocument> read(const std::string& text) {
    std::ofstream(*folder_ / "tasks.jsonl") << text;
    return read_tasks(*folder_ / "tasks.jsonl", *bench_);
  }
  // The message of the error that `text` is.
  static std::string refused(const std::string& text) {
    try {
      read(text);
    } catch (const Error& e) {
      EXPECT_EQ(e.exit_code(), 1);
      return e.what();
    }
    ADD_FAILURE() << "taken: " << text;
    return {};
  }
  static inline test::TempFolder* folder_ = nullptr;
  static inline Workbench* bench_ = nullptr;
};

// Loss and hit of one prompt and answer, in one pass without states.
NeedleResult alone(const Workbench& bench, const std::string& prompt, const std::string& answer) {
  std::vector<int64_t> ids;
  for (const int32_t id : begin_of(bench.tokenizer)) ids.push_back(id);
  for (const int32_t id : bench.tokenizer.encode(prompt)) ids.push_back(id);
  const auto first = std::ssize(ids);
  for (const int32_t id : bench.tokenizer.encode(answer)) ids.push_back(id);
  at::NoGradGuard guard;
  Pass pass;
  const auto input = at::tensor(ids, at::kLong).unsqueeze(0);
  const auto logits = bench.model.forward(input, pass)[0].slice(0, first - 1, -1).to(at::kDouble);
  const auto targets = input[0].slice(0, first);
  NeedleResult result;
  const auto right = logits.argmax(1) == targets;
  result.hit = right.all().item<bool>();
  result.right = right.to(at::kDouble).mean().item<double>();
  result.nll = (at::logsumexp(logits, 1) - logits.gather(1, targets.unsqueeze(1)).squeeze(1))
                   .sum()
                   .item<double>();
  return result;
}

TEST_F(TaskFile, PromptsOfOneBeginningEqualPromptsAlone) {
  const std::string passage =
      "It was a bright morning, and the boat lay in the harbour. The captain said that the boat ";
  const std::pair<std::string, std::string> tasks[] = {
      {passage + "was", " ready"},
      {passage + "lay in the harbour, and the captain", " said that"},
      {"A", "b c"},
      {"Once upon a", " time"}};
  std::string text;
  for (const auto& [prompt, answer] : tasks) {
    text +=
        Json{{"kind", "k"}, {"prompt", prompt}, {"answer", answer}, {"id", 3}}.dump() + "\r\n\n";
  }
  const auto documents = read(text);
  EXPECT_EQ(documents.size(), 3u);
  EXPECT_EQ(documents[0].needles.size(), 2u);
  Setting setting;
  setting.kv_dtype = at::kFloat;
  const auto results = measure_needles(bench_->model, documents, setting);
  ASSERT_EQ(results.size(), 4u);
  for (size_t n = 0; n < results.size(); ++n) {
    const auto expected = alone(*bench_, tasks[n].first, tasks[n].second);
    EXPECT_NEAR(results[n].nll, expected.nll, 1e-3 * expected.nll) << n;
    EXPECT_EQ(results[n].hit, expected.hit) << n;
    EXPECT_DOUBLE_EQ(results[n].right, expected.right) << n;
  }
}

TEST_F(TaskFile, ABadLineIsAnErrorThatNamesIt) {
  const std::string good = "{\"kind\": \"k\", \"prompt\": \"p\", \"answer\": \"a\"}\n";
  const auto expect = [&](const std::string& line, const std::string& says) {
    const std::string message = refused(good + "\n" + line + "\n" + good);
    EXPECT_NE(message.find("tasks.jsonl:3"), std::string::npos) << message;
    EXPECT_NE(message.find(says), std::string::npos) << message;
  };
  expect("{\"kind\": \"k\", \"prompt\": \"p\"}", "answer");
  expect("{\"kind\": \"k\", \"prompt\": \"p\", \"answer\": 3}", "answer");
  expect("{\"kind\": \"k\", \"prompt\": \"\", \"answer\": \"a\"}", "prompt is empty");
  expect("{\"kind\": \"k\", \"prompt\": \"p\", \"answer\": \"\"}", "answer is empty");
  expect("{\"kind\": \"\", \"prompt\": \"p\", \"answer\": \"a\"}", "kind is empty");
  expect("[1]", "object");
  expect("{\"kind\": \"k\"", "");
  expect(Json{{"kind", "k"}, {"prompt", std::string(3000, 'x')}, {"answer", "a"}}.dump(),
         "the model was made for 256");
  EXPECT_NE(refused("\n \n").find("no task"), std::string::npos);
}

}  // namespace task_file_test
}  // namespace heed::eval
