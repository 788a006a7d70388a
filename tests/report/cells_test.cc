#include "report/cells.h"

#include <gtest/gtest.h>

#include "report/eval_report.h"

namespace heed::report {
namespace cells_test {

// `hits` of n questions of a kind are hit.
struct Results {
  std::vector<data::NeedleDocument> documents{1};
  std::vector<eval::NeedleResult> dense, plan;
  void add(const std::string& kind, int n, int dense_hits, int plan_hits, double chance = 0) {
    for (int k = 0; k < n; ++k) {
      data::NeedleDocument::Needle needle;
      needle.kind = kind;
      needle.chance = chance;
      documents[0].needles.push_back(needle);
      const auto result = [k](int hits) {
        eval::NeedleResult r;
        r.hit = k < hits;
        r.right = r.hit ? 1 : 0.5;
        return r;
      };
      dense.push_back(result(dense_hits));
      plan.push_back(result(plan_hits));
    }
  }
};

TEST(Cells, KindsThatDenseCannotDoDoNotCount) {
  Results results;
  results.add("easy", 20, 20, 15);
  results.add("hard", 20, 4, 0);
  results.add("guessed", 20, 10, 0, 0.3);
  results.add("fair", 20, 10, 10, 0.2);
  const Json cells = task_cells(results.documents, results.dense, &results.plan);
  EXPECT_EQ(cells.at("easy").at("n"), 20);
  EXPECT_TRUE(cells.at("easy").at("discriminative"));
  EXPECT_FALSE(cells.at("hard").at("discriminative"));
  EXPECT_FALSE(cells.at("guessed").at("discriminative"));
  EXPECT_TRUE(cells.at("fair").at("discriminative"));
  EXPECT_DOUBLE_EQ(cells.at("easy").at("plan").at("exact"), 0.75);
  EXPECT_DOUBLE_EQ(cells.at("easy").at("plan").at("tokens"), 0.875);
  const Json& ratio = cells.at("easy").at("ratio").at("exact");
  EXPECT_DOUBLE_EQ(ratio.at("value"), 0.75);
  EXPECT_LT(ratio.at("low"), 0.75);
  EXPECT_GT(ratio.at("high"), 0.75);
  const Json head = headline(Json::array(), cells);
  EXPECT_EQ(head.at("kind").at("name"), "easy");
  EXPECT_EQ(head.at("kinds"), 2);
  EXPECT_DOUBLE_EQ(head.at("mean").at("exact"), 0.875);
  EXPECT_TRUE(head.at("text").is_null());
  const std::string table = cells_table(Json::array(), cells);
  EXPECT_NE(table.find("not discriminative"), std::string::npos) << table;
}

TEST(Cells, WithoutAPlanThereAreNoKeysOfOne) {
  Results results;
  results.add("easy", 4, 4, 4);
  const Json cells = task_cells(results.documents, results.dense, nullptr);
  EXPECT_FALSE(cells.at("easy").contains("plan"));
  EXPECT_FALSE(cells.at("easy").contains("ratio"));
  const Json texts = text_cells({"a"}, {{2.0, 2, {2.0}}}, nullptr);
  EXPECT_EQ(texts.dump(), Json::array({{{"name", "a"}, {"dense", std::exp(1.0)}}}).dump());
}

TEST(Cells, ATextIsAllItsPieces) {
  const std::vector<eval::TextResult::Text> dense = {{2, 2, {2}}, {6, 2, {6}}, {4, 4, {4}}};
  const std::vector<eval::TextResult::Text> plan = {{3, 2, {3}}, {7, 2, {7}}, {4, 4, {4}}};
  const Json cells = text_cells({"a", "a", "b"}, dense, &plan);
  ASSERT_EQ(cells.size(), 2u);
  EXPECT_DOUBLE_EQ(cells[0].at("dense"), std::exp(2.0));
  EXPECT_DOUBLE_EQ(cells[0].at("plan"), std::exp(2.5));
  EXPECT_NEAR(cells[0].at("ratio").at("value"), std::exp(0.5), 1e-12);
  EXPECT_DOUBLE_EQ(cells[1].at("ratio").at("value"), 1);
  const Json head = headline(cells, Json::object());
  EXPECT_EQ(head.at("text").at("name"), "a");
  EXPECT_TRUE(head.at("kind").is_null());
  EXPECT_NEAR(head.at("mean").at("perplexity"), std::exp(0.25), 1e-12);
}

TEST(Cells, ATextIsCalledAsItsFileWithoutTheEnding) {
  EXPECT_EQ(named_file("x/walden.txt.xz", "x/walden.txt.xz").name, "walden");
  EXPECT_EQ(named_file("/a/b.test.txt", "/a/b.test.txt").name, "b.test");
  EXPECT_EQ(named_file("/proc/1/fd/3", "standard input").name, "standard input");
  EXPECT_EQ(named_file("plain", "plain").name, "plain");
}

}  // namespace cells_test
}  // namespace heed::report
