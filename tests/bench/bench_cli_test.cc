// heed bench as a user calls it: a file of records, a table, one-line errors, exit codes.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "io/json.h"

namespace heed {
namespace {

struct Result {
  int code;
  std::string text;  // stdout and stderr together
};

Result call(const std::string& arguments) {
  const std::string command =
      std::string(HEED_BINARY_DIR) + "/bin/heed bench " + arguments + " 2>&1";
  FILE* pipe = ::popen(command.c_str(), "r");
  std::string text;
  char buffer[4096];
  while (const size_t n = std::fread(buffer, 1, sizeof(buffer), pipe)) text.append(buffer, n);
  const int status = ::pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text};
}

void expect_refused(const std::string& arguments, int code, const std::string& text) {
  const Result r = call(arguments);
  EXPECT_EQ(r.code, code) << r.text;
  EXPECT_NE(r.text.find(text), std::string::npos) << r.text;
  EXPECT_EQ(std::count(r.text.begin(), r.text.end(), '\n'), 1) << r.text;
}

class BenchCli : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("heed_bench_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const char* name) const { return (folder_ / name).string(); }

  std::filesystem::path folder_;
};

TEST_F(BenchCli, QuickKernelsLeaveRecordsAndATable) {
  const Result r = call("kernels --quick --json " + path("k.json"));
  ASSERT_EQ(r.code, 0) << r.text;
  const Json file = read_json(path("k.json"));
  EXPECT_GT(file["machine"]["copy_gbps"].get<double>(), 0);
  EXPECT_EQ(file["records"].size() + 3,
            static_cast<size_t>(std::count(r.text.begin(), r.text.end(), '\n')));
  for (const Json& record : file["records"]) {
    EXPECT_NE(r.text.find(record["name"].get<std::string>()), std::string::npos);
    EXPECT_FALSE(record["peers"].empty());
  }
  const Result table = call("table --filter decode " + path("k.json"));
  EXPECT_EQ(table.code, 0) << table.text;
  EXPECT_NE(table.text.find("| --- |"), std::string::npos) << table.text;
  EXPECT_EQ(table.text, call("table --filter decode " + path("k.json")).text);
}

TEST_F(BenchCli, QuickModel) {
  const std::string model = HEED_SOURCE_DIR "/tests/model/fixtures/llama";
  const Result r =
      call("model " + model + " --context 32 --steps 4 --quick --json " + path("m.json"));
  ASSERT_EQ(r.code, 0) << r.text;
  const Json file = read_json(path("m.json"));
  ASSERT_EQ(file["records"].size(), 3u);
  EXPECT_EQ(file["records"][0]["shape"]["model"], "llama");
  EXPECT_GT(file["records"][1]["tokens_per_second"].get<double>(), 0);
}

TEST_F(BenchCli, WrongCallsAreOneLine) {
  expect_refused("kernels --quick --filter '('", 2, "regular expression");
  expect_refused("kernels --quick --filter nothing", 2, "no benchmark matches");
  expect_refused("kernels --quick --peers someone", 2, "someone");
  expect_refused("kernels --quick --filter gla/decode --json " + path("no/k.json"), 1, "no/k.json");
  expect_refused("model no-such-model", 1, "no-such-model");
  expect_refused("table", 2, "FILES");
  EXPECT_EQ(call("kernels --list --filter '^scan/gla'").code, 0);
}

}  // namespace
}  // namespace heed
