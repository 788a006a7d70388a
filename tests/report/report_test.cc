#include <gtest/gtest.h>

#include "report/evaluation.h"
#include "report/html.h"
#include "tiny_model.h"

namespace heed::report {
namespace report_test {

TEST(Html, HoldsItsDataAndCannotBeBrokenByThem) {
  const Json report = {{"model", {{"name", "</script><b>/*CHART_JS*/"}}}};
  const auto page = render_html(report);
  EXPECT_EQ(page.find("</script><b>"), std::string::npos);
  EXPECT_NE(page.find("\\u003c/script>"), std::string::npos);
  EXPECT_NE(page.find("Chart.js"), std::string::npos);
  EXPECT_EQ(page.find("src=\"http"), std::string::npos);
  EXPECT_EQ(page.find("/*REPORT_JSON*/null"), std::string::npos);
}

TEST(Evaluation, PlanThatKeepsEverythingEqualsDense) {
  const auto model = test::tiny_model();
  const auto corpus = test::tiny_corpus();
  const data::RecallGenerator generator(corpus, data::byte_codec());
  auto data = make_evaluation_data(generator, corpus, 600, 1, 1, 2, 3);
  data.decode_steps = 2;
  std::vector<eval::NeedleResult> needles;
  const auto dense = evaluate(model, data, nullptr, at::kHalf, needles);
  const auto full = plan::full_programs(model);
  const auto same = evaluate(model, data, &full, at::kHalf, needles);
  EXPECT_EQ(dense.perplexity, same.perplexity);
  EXPECT_EQ(dense.answer_nll, same.answer_nll);
  EXPECT_EQ(dense.kv_bytes, same.kv_bytes);
  EXPECT_EQ(same.kept, 1);
}

}  // namespace report_test
}  // namespace heed::report
