// heed bench as a user calls it: a file of records, a table, one-line errors, exit codes.
#include <gtest/gtest.h>

#include "io/json.h"
#include "run_heed.h"

namespace heed {
namespace bench_cli_test {

using test::Result;

Result call(const std::string& arguments) { return test::run_heed("bench " + arguments); }

void expect_refused(const std::string& arguments, int code, const std::string& text) {
  test::expect_refused(call(arguments), code, text);
}

class BenchCli : public test::CliTest {};

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

}  // namespace bench_cli_test
}  // namespace heed
