// Standard input and output, pipes, readers that go away, options that go together, thread counts,
// and models whose scores are not numbers.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "io/json.h"
#include "io/safetensors.h"
#include "run_heed.h"

namespace heed {
namespace streams_cli_test {

namespace fs = std::filesystem;

const std::string kModel = HEED_SOURCE_DIR "/models/builtin";

using test::expect_refused;
using test::Result;

class Streams : public test::CliTest {
 protected:
  Streams() { ::setenv("HEED_RECORDS", path("records.sqlite").c_str(), 1); }
  ~Streams() override { ::unsetenv("HEED_RECORDS"); }

  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name), std::ios::binary) << text;
  }
  std::string read(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(path(name), std::ios::binary).rdbuf();
    return text.str();
  }
  // A shell line in the test's folder, where $HEED is the program and $M the built-in model.
  Result shell(const std::string& line, const std::string& streams = "2>&1") const {
    const std::string command = "cd " + folder_.string() + "; HEED=" + HEED_BINARY_DIR +
                                "/bin/heed; M=" + kModel + "; { " + line + "; } " + streams;
    FILE* pipe = ::popen(command.c_str(), "r");
    std::string text;
    char buffer[4096];
    while (const size_t n = std::fread(buffer, 1, sizeof(buffer), pipe)) text.append(buffer, n);
    const int status = ::pclose(pipe);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text};
  }
  Result call(const std::string& arguments) const { return shell("$HEED " + arguments); }

  // A copy of the built-in model whose last norm multiplies by NaN.
  std::string broken_model() const {
    const fs::path folder = folder_ / "broken";
    fs::copy(kModel, folder);
    const TensorFile file = open_safetensors(kModel + "/model.safetensors");
    std::vector<TensorInfo> tensors = file.tensors;
    std::vector<std::byte> ruined;
    for (TensorInfo& tensor : tensors) {
      if (tensor.name != "model.norm.weight") continue;
      ruined.assign(tensor.bytes, std::byte{0xff});  // NaN in every floating type
      tensor.data = ruined.data();
    }
    EXPECT_FALSE(ruined.empty());
    write_safetensors((folder / "model.safetensors").string(), tensors, file.metadata);
    return folder.string();
  }
};

TEST_F(Streams, PromptsFromStandardInputAndPipes) {
  const Result plain = shell("$HEED generate $M -p 'It was a dark' -n 4", "2>/dev/null");
  ASSERT_EQ(plain.code, 0);
  for (const char* line : {"printf 'It was a dark' | $HEED generate $M -f - -n 4",
                           "printf 'It was a dark' | $HEED generate $M -f /dev/stdin -n 4",
                           "printf 'It was a dark' > t; $HEED generate $M -f - -n 4 < t",
                           "mkfifo p; (printf 'It was a dark' > p &) ; $HEED generate $M -f p -n 4",
                           "printf 'It was a dark' | xz | $HEED generate $M -f - -n 4"}) {
    const Result r = shell(line, "2>/dev/null");
    EXPECT_EQ(r.code, 0) << line;
    EXPECT_EQ(r.text, plain.text) << line;
  }
  expect_refused(shell("printf '' | $HEED generate $M -f - -n 1"), 2, "prompt is empty");
  expect_refused(shell("$HEED generate $M -f - -n 1 <&-"), 1, "standard input is closed");
  expect_refused(shell("$HEED generate $M -f - -n 1 < ."), 1, "standard input is a folder");
  expect_refused(shell("$HEED generate $M -f /dev/zero -n 1"), 1, "/dev/zero: is a device");
  // What is wrong with it is said of what the user named.
  expect_refused(shell("printf x | $HEED generate $M -p x --plan - -n 1"), 1, "standard input: ");
  expect_refused(shell("printf x | $HEED generate $M -f - --plan - -n 1"), 2,
                 "standard input can be read only once");
}

TEST_F(Streams, TokensThroughPipes) {
  EXPECT_EQ(shell("echo '[\"Hello there\", \"\"]' | $HEED tokenize $M --in - --out - | "
                  "$HEED tokenize $M --decode --in - --out -")
                .text,
            "[\"Hello there\",\"\"]\n");
  EXPECT_FALSE(fs::exists(folder_ / "-"));
  // What is appended to stays.
  write("log", "before\n");
  EXPECT_EQ(shell("echo '[]' | $HEED tokenize $M --in - --out - >> log").code, 0);
  EXPECT_EQ(read("log"), "before\n[]\n");
  expect_refused(shell("echo '{}' | $HEED tokenize $M --in - --out -"), 2,
                 "standard input: expected a JSON list");
}

TEST_F(Streams, TensorsThroughPipes) {
  std::vector<float> values(2 * 5 * 8, 0.25f);
  std::vector<TensorInfo> tensors;
  for (const char* name : {"q", "k", "v"}) {
    TensorInfo info;
    info.name = name;
    info.shape = {1, 5, 2, 8};
    info.data = reinterpret_cast<const std::byte*>(values.data());
    info.bytes = values.size() * sizeof(float);
    tensors.push_back(info);
  }
  write_safetensors(path("in.safetensors"), tensors);
  ASSERT_EQ(call("apply softmax --in in.safetensors --out out.safetensors").code, 0);
  const Result r =
      shell("cat in.safetensors | $HEED apply softmax --in - --out - | cat > piped.safetensors");
  EXPECT_EQ(r.text, "");
  EXPECT_EQ(read("piped.safetensors"), read("out.safetensors"));
  EXPECT_GT(read("out.safetensors").size(), 320u);
}

TEST_F(Streams, TextsPlansAndReportsThroughPipes) {
  const std::string book = "xz -dc " HEED_SOURCE_DIR "/examples/books/walden.txt.xz | ";
  ASSERT_EQ(call("plan $M --budget 0.5 --method uniform --lengths 512 --out plan.json").code, 0);
  // The plan goes to standard output alone, the table to the other stream.
  const Result plan =
      shell("$HEED plan $M --budget 0.5 --method uniform --lengths 512 --out -", "2>/dev/null");
  EXPECT_EQ(plan.code, 0);
  EXPECT_EQ(plan.text, read("plan.json"));
  const Result eval = shell(book +
                                "$HEED eval $M --lengths 512 --data - --texts 1 --documents 1 "
                                "--kinds digits --plan plan.json --out -",
                            "2>/dev/null");
  ASSERT_EQ(eval.code, 0);
  const Json report = parse_json(eval.text, "the report");
  EXPECT_GT(report.at("lengths")[0].at("dense").at("perplexity").get<double>(), 1);
  EXPECT_EQ(report.at("texts")[0].at("name"), "standard input");
  EXPECT_TRUE(report.at("tasks").contains("digits"));
  EXPECT_LT(report.at("kv_bytes").at("plan"), report.at("kv_bytes").at("dense"));
  const Result figures = shell(
      book + "$HEED inspect $M --context 256 --no-importance --data - --out -", "2>/dev/null");
  ASSERT_EQ(figures.code, 0);
  EXPECT_EQ(parse_json(figures.text, "the figures").at("context"), 256);
  EXPECT_EQ(shell("cat plan.json | $HEED generate $M -p Hi -n 2 --plan -").code, 0);
  for (const char* verb : {"plan", "eval", "inspect"}) {
    expect_refused(call(std::string(verb) + " $M --json --out -"), 2, "--json and --out -");
  }
  expect_refused(call("demo --quick --model $M --out -"), 2, "name a folder");
  expect_refused(call("tokenizer train --data plan.json --out -"), 2, "name a folder");
  expect_refused(call("train --out - run.toml"), 2, "name a folder");
  expect_refused(shell("printf 'nonsense = 1' | $HEED train - --out run"), 2, "standard input");
}

TEST_F(Streams, AReaderThatGoesAway) {
  const auto begin = std::chrono::steady_clock::now();
  for (const char* how : {"", "--json "}) {
    // The reader takes nothing and leaves at once; without --json a few bytes.
    const Result r = shell(std::string("(timeout -s KILL 60 $HEED generate $M -p X -n 100000 ") +
                           how + "--context 200000 --ignore-eos; echo rc=$? >&2) | head -c 20 " +
                           (*how ? "< /dev/null | exit 0" : ""));
    EXPECT_NE(r.text.find("rc=1"), std::string::npos) << r.text;
    EXPECT_EQ(r.text.find("rc=137"), std::string::npos) << r.text;
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(40));
}

TEST_F(Streams, ThreadCounts) {
  for (const char* verb :
       {"generate $M -p x", "inspect $M", "plan $M", "eval $M", "demo", "bench kernels",
        "bench model $M", "train c.toml", "apply gla --in i --out o"}) {
    for (const char* count : {"20000", "-1", "two"}) {
      const Result r = call(std::string(verb) + " --threads " + count);
      expect_refused(r, 2, "--threads: ");
      EXPECT_NE(r.text.find("cores"), std::string::npos) << r.text;
    }
  }
  EXPECT_EQ(call("generate $M -p x -n 1 --threads 3").code, 0);
}

TEST_F(Streams, OptionsThatHaveNoEffectAreRefused) {
  write("run.toml", "");
  const struct {
    const char *line, *says;
  } cases[] = {
      {"generate $M -p X --system 'Be kind'", "--system: goes with --chat"},
      {"generate $M -p X -f run.toml", "one of --prompt, --file and --prompts"},
      {"generate $M", "one of --prompt, --file and --prompts"},
      {"generate $M -p X --side-by-side 2", "--side-by-side: goes with several prompts"},
      {"generate $M -p X --force", "--force: goes with --plan"},
      {"generate $M -p X --top-k 5", "--top-k: has no effect at temperature 0"},
      {"generate $M -p X --top-p 0.5", "--top-p: has no effect at temperature 0"},
      {"generate $M -p X --min-p 0.5", "--min-p: has no effect at temperature 0"},
      {"generate $M -p X --stop ''", "--stop: the text is empty"},
      {"eval $M --force", "--force: goes with --plan"},
      {"eval $M --tasks run.toml --kinds words", "--kinds: is of Heed's tasks"},
      {"plan $M --steps 3", "--steps: has no effect with --method heed"},
      {"plan $M --method text --steps 3", "--steps: has no effect with --method text"},
      {"plan $M --method duo --windows 32", "--windows: has no effect with --method duo"},
      {"plan $M --method duo --sinks 4", "--sinks: has no effect"},
      {"plan $M --method razor --thorough", "--thorough: has no effect"},
      {"plan $M --method razor --candidates 3", "--candidates: has no effect"},
      {"plan $M --method uniform --data run.toml", "--data: has no effect"},
      {"plan $M --method uniform --seed 3", "--seed: has no effect"},
      {"plan $M --method best", "best"},
      {"bench kernels --list --json k.json", "--json: has no effect with --list"},
      {"bench model $M --force", "--force: goes with --plan"},
      {"bench model $M --quick --rounds 2", "--rounds: has no effect with --quick"},
      {"bench table --into run.toml --filter x", "--filter: has no effect with --into"},
      {"train --keys run.toml", "CONFIG: has no effect with --keys"},
      {"train --keys --json", "--json: has no effect with --keys"},
      {"apply gla --in i --out o --model $M", "go with `heed apply model`"},
      {"apply model --in i --out o --model $M --grad", "go with mixers"},
      {"apply model --in i --out o --model $M --set prefill=3", "without --set cache=true"},
      {"apply model --in i --out o --model $M --set greedy=-1", "--set greedy: -1 was given"},
      {"apply model --in i --out o --model $M --set greedy=1e9", "--set greedy: 1e9 was given"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.line);
    expect_refused(call(c.line), 2, c.says);
  }
  // Off is no request.
  EXPECT_EQ(call("generate $M -p X -n 1 --top-k 0 --top-p 1 --min-p 0").code, 0);
}

TEST_F(Streams, ScoresThatAreNotNumbers) {
  const std::string model = broken_model(), says = "not numbers";
  for (const char* how :
       {"", " --temperature 1", " --temperature 1 --top-k 3 --repetition-penalty 2"}) {
    expect_refused(call("generate " + model + " -p X -n 5" + how), 1, says);
  }
  expect_refused(call("eval " + model + " --lengths 256"), 1, says);
  expect_refused(call("inspect " + model + " --context 256"), 1, says);
  expect_refused(call("inspect " + model + " --context 256 --no-importance"), 1, says);
  for (const char* method : {"heed", "text", "duo", "razor"}) {
    expect_refused(call("plan " + model + " --lengths 256 --method " + method), 1, says);
  }
  EXPECT_FALSE(fs::exists(folder_ / "plan.json"));
}

}  // namespace streams_cli_test
}  // namespace heed
