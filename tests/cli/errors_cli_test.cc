// What a user meets when something is wrong: one line that says what and where, the exit code, and
// nothing left behind.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <tuple>

#include "io/json.h"
#include "run_heed.h"

namespace heed {
namespace errors_cli_test {

namespace fs = std::filesystem;

const std::string kModel = HEED_SOURCE_DIR "/models/builtin";

using test::expect_refused;
using test::Result;

class Errors : public test::CliTest {
 protected:
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name), std::ios::binary) << text;
  }

  // Runs the program in the folder, with its standard output going to `output`; reads its errors.
  Result call(const std::string& arguments, const std::string& output = "/dev/null",
              const std::string& before = "") const {
    return test::run_heed(arguments, "2>&1 >" + output, "cd " + folder_.string() + "; " + before);
  }

  // A copy of the built-in model.
  std::string copy() const {
    fs::remove_all(folder_ / "model");
    fs::copy(kModel, folder_ / "model");
    return path("model");
  }
};

TEST_F(Errors, WrongUsage) {
  expect_refused(call("tokenize " + kModel), 2, "`heed tokenize --help` lists the options");
  expect_refused(call("nonsense"), 2, "`heed --help`");
  expect_refused(call("inspect " + kModel + " --data none.txt"), 2, "none.txt");
  expect_refused(call("inspect " + kModel + " --context many"), 2, "--context");
  expect_refused(call("train"), 2, "configuration");
}

TEST_F(Errors, OutputThatNobodyCouldRead) {
  expect_refused(call("list", "/dev/full"), 1, "the output cannot be written");
  expect_refused(call("info " + kModel, "/dev/full"), 1, "the output cannot be written");
  const Result r = call("generate " + kModel + " -p Hi -n 2", "/dev/full");
  EXPECT_EQ(r.code, 1);
  EXPECT_NE(r.text.find("the output cannot be written"), std::string::npos) << r.text;
}

TEST_F(Errors, FilesThatCannotBeWritten) {
  write("texts.json", R"(["Hi"])");
  const std::string tokenize = "tokenize " + kModel + " --in texts.json --out ";
  expect_refused(call(tokenize + "/dev/full"), 1, "/dev/full: cannot be written");
  expect_refused(call(tokenize + "no/ids.json"), 1, "the folder no does not exist");
  expect_refused(call(tokenize + folder_.string()), 1, "it is a folder");
  // A limit on the size of files, met as a full disk is.
  std::string texts = "[";
  for (int i = 0; i < 3000; ++i) texts += "\"a long list of texts\",";
  write("texts.json", texts + "\"\"]");
  expect_refused(call(tokenize + "ids.json", "/dev/null", "ulimit -f 1; "), 1, "ids.json");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
  // Long work asks first.
  for (const char* verb : {"inspect ", "eval ", "plan "}) {
    expect_refused(call(verb + kModel + " --out no/report.json"), 1,
                   "the folder no does not exist");
  }
  write("file", "");
  expect_refused(call("demo --quick --model " + kModel + " --out file/report"), 1, "file/report");
}

TEST_F(Errors, ADemoThatCannotBeginLeavesNothing) {
  expect_refused(call("demo --quick --model /nonexistent --out report"), 1, "/nonexistent");
  EXPECT_FALSE(fs::exists(folder_ / "report"));
  write("short.txt", "A text of a few words.");
  expect_refused(call("demo --quick --model " + kModel + " --data short.txt --out report"), 2,
                 "room for 0 windows");
  EXPECT_FALSE(fs::exists(folder_ / "report"));
}

TEST_F(Errors, LayersThatAreWrittenWrongly) {
  write("text.txt", "A text of a few words.");
  const auto refused = [&](const std::string& mixers, const std::string& what) {
    write("run.toml", "[model]\nhidden = 32\nheads = 2\n[model.mixers]\n" + mixers +
                          "\n[data]\ntrain = [\"text.txt\"]\nlength = 64\n[train]\nsteps = 1\n");
    expect_refused(call("train run.toml --out run"), 2, what);
    EXPECT_FALSE(fs::exists(folder_ / "run"));
  };
  refused("\"1\" = { mixer = \"softmax\", window = 20 }", "unknown key window");
  refused("\"1\" = \"gla\"", "expected { mixer");
  refused("\"+1\" = { mixer = \"gla\" }", "no such layer");
  refused("\"01\" = { mixer = \"gla\" }", "no such layer");
  refused("\"1\" = { mixer = \"gla\", options = { gate_normalizer = 0 } }", "a number above 0");
  refused("\"1\" = { mixer = \"nsa\", options = { heads = 4 } }", "rotation");
  refused("\"1\" = { mixer = \"fna\", options = { window = 1 } }", "window");
  write("run.toml", "[model]\nfrom = \"" + kModel +
                        "\"\n[model.mixers]\n\"1\" = { mixer = \"gla\" }\n[data]\ntrain = "
                        "[\"text.txt\"]\n");
  expect_refused(call("train run.toml --out run"), 2, "model.from");
}

TEST_F(Errors, ARunThatCannotBeginLeavesNothing) {
  write("run.toml", "[data]\ntrain = [\"none.txt\"]\n");
  expect_refused(call("train run.toml --out run"), 1, "none.txt");
  EXPECT_FALSE(fs::exists(folder_ / "run"));
  write("text.txt", "A text of a few words.");
  write("run.toml", "[model]\nhidden = 1000000\nheads = 8\n[data]\ntrain = [\"text.txt\"]\n");
  const auto begin = std::chrono::steady_clock::now();
  const Result r = call("train run.toml --out run");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
  expect_refused(r, 2, "this run needs at least");
  EXPECT_NE(r.text.find("lower model.hidden"), std::string::npos) << r.text;
  EXPECT_FALSE(fs::exists(folder_ / "run"));
  write("run.toml", "[data]\ntrain = [");
  expect_refused(call("train run.toml --out run"), 2, "run.toml:");
}

TEST_F(Errors, TextsThatAreTooShortOrMissing) {
  write("short.txt", "A text of a few words.");
  write("empty.txt", "");
  expect_refused(call("inspect " + kModel + " --data short.txt"), 2, "room for 0 windows");
  expect_refused(call("eval " + kModel + " --lengths 512 --data short.txt"), 2,
                 "room for 0 windows");
  expect_refused(call("eval " + kModel + " --lengths 512 --data empty.txt"), 1, "empty.txt");
  expect_refused(call("eval " + kModel + " --data short.txt ./short.txt"), 2,
                 "two files are called short");
  expect_refused(call("eval " + kModel + " --kinds words,word"), 2, "word: there is no such kind");
  expect_refused(call("eval " + kModel + " --kinds lists"), 2, "plans are searched on");
  write("tasks.jsonl", "{\"kind\": \"k\", \"prompt\": \"p\", \"answer\": \"a\"}\n{\"kind\": 1}\n");
  expect_refused(call("eval " + kModel + " --lengths 256 --tasks tasks.jsonl"), 1, "tasks.jsonl:2");
  expect_refused(call("generate " + kModel + " --file none.txt"), 1, "none.txt");
  expect_refused(call("generate " + kModel + " --file empty.txt"), 2, "prompt is empty");
}

TEST_F(Errors, BrokenModels) {
  const std::string model = copy();
  fs::resize_file(model + "/model.safetensors", 100'000);
  expect_refused(call("generate " + model + " -p Hi"), 1, "cut short");
  write("model/model.safetensors", std::string("\xff\xff\xff\xff\xff\xff\xff\x7f{", 9));
  expect_refused(call("info " + model), 1, "model.safetensors");
  copy();
  Json config = read_json(model + "/config.json");
  for (const auto& [key, value, part] :
       {std::tuple{"hidden_size", Json(640), "has shape"},
        {"model_type", Json("mamba"), "mamba"},
        {"num_hidden_layers", Json(9000), "is missing"},
        {"vocab_size", Json(1 << 23), "has shape"},
        {"num_hidden_layers", Json(int64_t{1} << 62), "number of layers"}}) {
    Json changed = config;
    changed[key] = value;
    write("model/config.json", changed.dump());
    const Result r = call("generate " + model + " -p Hi");
    expect_refused(r, 1, part);
    EXPECT_EQ(call("info " + model).text, r.text);
  }
  write("model/config.json", "[]");
  expect_refused(call("info " + model), 1, "must be a JSON object");
  copy();
  write("model/tokenizer.json", R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})");
  expect_refused(call("inspect " + model), 2, "the tokenizer cannot write");
  write("model/tokenizer.json", "{");
  expect_refused(call("generate " + model + " -p Hi"), 1, "tokenizer.json");
  write("cut.gguf",
        std::string("GGUF\3\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f\1\0\0\0\0\0\0\0", 24));
  expect_refused(call("info cut.gguf"), 1, "cut short");
}

}  // namespace errors_cli_test
}  // namespace heed
