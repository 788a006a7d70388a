#include "lab/demo.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "cache/plan/plan_file.h"
#include "small_builtin.h"

namespace heed::lab {
namespace demo_test {

// Notes which stages run, and stops the demo by Ctrl-C where a given one begins.
struct Stages : Progress {
  explicit Stages(std::string stop_at = "") : stop_at(std::move(stop_at)) {}
  void begin(std::string_view name, int64_t) override {
    all += std::string(name) + "\n";
    if (!stop_at.empty() && name.starts_with(stop_at)) g_interrupted = true;
  }
  bool has(const std::string& name) const { return all.find(name + "\n") != std::string::npos; }
  std::string stop_at, all;
};

TEST(Demo, AnotherRunKeepsWhatWasMeasuredAndSaysSo) {
  const std::string source = HEED_SOURCE_DIR;
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto out = std::filesystem::temp_directory_path() /
                   ("heed-demo-" + std::to_string(static_cast<int>(::getpid())));
  DemoOptions options;
  const auto model = out.string() + "-model";
  test::make_small_builtin(model);
  options.model = model;
  options.search_files = {source + "/tests/data/books.txt"};
  options.test_files = {source + "/tests/data/heldout.txt"};
  options.out = out.string();
  options.context = 256;
  options.budgets = {0.5};
  options.eval_documents = options.needles = options.controls = options.candidates = 1;
  options.repairs = 0;
  const std::string said = "kept from an earlier run";
  const auto same = [](Json a, Json b) {
    a.erase("earlier");
    b.erase("earlier");
    return a == b;
  };

  Stages stopped("5/6 shuffled 1");
  EXPECT_THROW(run_demo(options, stopped), Interrupted);
  g_interrupted = false;
  const Json partial = read_json((out / "report.json").string());
  EXPECT_TRUE(partial.at("partial"));
  EXPECT_FALSE(partial.at("dense").at("earlier"));
  EXPECT_FALSE(stopped.has("3/6 dense: " + said));

  Stages again;
  const Json second = run_demo(options, again);
  EXPECT_TRUE(again.has("3/6 dense: " + said)) << again.all;
  EXPECT_TRUE(again.has("4/6 plan 0.5: " + said)) << again.all;
  EXPECT_FALSE(again.has("5/6 shuffled 1: " + said));
  EXPECT_EQ(second.at("key"), partial.at("key"));
  EXPECT_TRUE(second.at("dense").at("earlier"));
  EXPECT_TRUE(same(second.at("dense"), partial.at("dense")));
  EXPECT_TRUE(same(second.at("plans")[0], partial.at("plans")[0]));
  EXPECT_FALSE(second.at("control")[0].at("earlier"));
  // A control can be run again: its plan is there, and it is the chosen one's programs dealt anew.
  const Json& control = second.at("control")[0];
  const Plan dealt = parse_plan(control.at("plan").dump(), "plan");
  EXPECT_EQ(dealt.heads.size(),
            parse_plan(second.at("plans")[0].at("plan").dump(), "plan").heads.size());
  EXPECT_EQ(control.at("kv_formula"), second.at("plans")[0].at("kv_formula"));
  const std::string table = demo_table(second);
  EXPECT_NE(table.find("dense * "), std::string::npos) << table;
  EXPECT_NE(table.find("plan 0.5 * "), std::string::npos);
  EXPECT_EQ(table.find("shuffled 1 *"), std::string::npos);
  EXPECT_NE(table.find("* " + said + " ("), std::string::npos);
  EXPECT_EQ(read_plan((out / "plan-0.5.json").string()).heads,
            parse_plan(partial.at("plans")[0].at("plan").dump(), "plan").heads);

  // Another budget is measured, beside what is there; its plan is the chosen one now.
  options.budgets = {0.3, 0.5};
  const Json third = run_demo(options);
  EXPECT_TRUE(third.at("dense").at("earlier"));
  EXPECT_FALSE(third.at("plans")[0].at("earlier"));
  EXPECT_TRUE(third.at("plans")[1].at("earlier"));
  EXPECT_FALSE(third.at("control")[0].at("earlier"));

  const auto nothing_kept = [](const Json& report) {
    for (const Json& rows :
         {Json::array({report.at("dense")}), report.at("plans"), report.at("control")}) {
      for (const Json& row : rows) EXPECT_FALSE(row.at("earlier"));
    }
    EXPECT_EQ(demo_table(report).find('*'), std::string::npos);
  };
  options.budgets = {0.5};
  options.seed = 2;
  const Json other = run_demo(options);
  EXPECT_NE(other.at("key"), second.at("key"));
  nothing_kept(other);
  options.fresh = true;
  nothing_kept(run_demo(options));
  std::filesystem::remove_all(out);
  std::filesystem::remove_all(model);
  at::set_num_threads(threads);
}

}  // namespace demo_test
}  // namespace heed::lab
