#include "plan/search.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "cache/plan/plan_programs.h"
#include "tiny_model.h"

namespace heed::plan {
namespace search_test {

constexpr int64_t kContext = 512;

SearchData tiny_data() {
  const auto corpus = test::tiny_corpus();
  const data::RecallGenerator generator(corpus, data::byte_codec());
  SearchData data;
  for (const auto& window : eval::spread_windows(corpus, 2, kContext)) {
    data.texts.push_back(text_sample(window, 64));
    data.check_texts.push_back(window);
  }
  data::Random random(5);
  const auto document = generator.needles(kContext - 128, 1, random);
  data.needles.push_back(needle_sample(document, kContext));
  data.check_needles.push_back(document);
  return data;
}

SearchOptions tiny_options() {
  SearchOptions options;
  options.grid = {4, {16, 64, 128}};
  options.lengths = {256, kContext};
  options.kv_dtype = at::kFloat;
  options.candidates = 3;
  options.repairs = 1;
  return options;
}

TEST(Search, KeepsTheBudgetAtEveryLength) {
  const auto model = test::tiny_model();
  Search search(model, tiny_data(), tiny_options());
  for (double budget : {0.5, 0.3}) {
    const auto found = search.find(budget);
    for (int64_t length : {int64_t{256}, kContext}) {
      EXPECT_LE(budget_of(model, found.programs, length), budget);
    }
    EXPECT_GE(budget_of(model, found.programs, kContext), 0.5 * budget);
    // The best of what was run is returned.
    for (const auto& candidate : search.tried()) EXPECT_LE(found.objective, candidate.objective);
    // Equal allocations are run once, and no more than were asked for.
    const auto& tried = search.tried();
    EXPECT_LE(tried.size(), 4u);
    for (size_t i = 0; i < tried.size(); ++i) {
      for (size_t j = i + 1; j < tried.size(); ++j) {
        EXPECT_NE(tried[i].programs.heads, tried[j].programs.heads) << i << " " << j;
      }
    }
  }
}

TEST(Search, RunsTenCandidatesAtMost) {
  // Heads and windows so many that the weights give different allocations, and room for repairs.
  ModelConfig config = test::tiny_config();
  config.layers = 6;
  config.windows.assign(6, 0);
  config.kv_heads = config.heads = 8;
  config.head_dim = 8;
  Decoder model = Decoder::random(config, 3);
  {
    at::NoGradGuard guard;
    for (auto& [name, tensor] : model.parameters()) {
      if (tensor.dim() == 2) tensor.mul_(6);
    }
  }
  auto options = tiny_options();
  options.grid.windows.clear();
  for (int64_t window = 8; window < 250; window += 6) options.grid.windows.push_back(window);
  options.candidates = 9;
  options.repairs = 9;
  Search search(model, tiny_data(), options);
  search.find(0.5);
  EXPECT_EQ(search.tried().size(), 10u);  // of the 18 that were asked for
}

TEST(Search, BudgetOneIsTheDenseModelBitForBit) {
  const auto model = test::tiny_model();
  Search search(model, tiny_data(), tiny_options());
  const auto found = search.find(1.0);
  for (const auto& layer : found.programs.heads) {
    for (const auto& head : layer) EXPECT_TRUE(head.full());
  }
  const auto texts = eval::spread_windows(test::tiny_corpus(), 1, kContext);
  eval::Setting dense, plan;
  plan.programs = &found.programs;
  EXPECT_EQ(eval::measure_text(model, texts, dense, 64).nll(),
            eval::measure_text(model, texts, plan, 64).nll());
}

TEST(Search, RefusesBudgetsThatMeanNothing) {
  const auto model = test::tiny_model();
  Search search(model, tiny_data(), tiny_options());
  EXPECT_THROW(search.find(0), UsageError);
  EXPECT_THROW(search.find(1.5), UsageError);
  EXPECT_THROW(search.find(0.01), UsageError);
}

TEST(Search, KeptScoresGiveTheSamePlan) {
  const auto model = test::tiny_model();
  const std::string file = testing::TempDir() + "/heed-search-test.sqlite";
  std::remove(file.c_str());
  data::Records records(file);
  auto options = tiny_options();
  options.repairs = 0;
  options.records = &records;
  Search first(model, tiny_data(), options), second(model, tiny_data(), options);
  EXPECT_EQ(first.text_scores().quadratic, second.text_scores().quadratic);
  EXPECT_EQ(first.find(0.4).programs.heads, second.find(0.4).programs.heads);
}

TEST(Search, ChoosesBitsAndWindowsByBytes) {
  const auto model = test::tiny_model();
  SearchData data = tiny_data();
  data::Random random(6);
  for (const auto& text : data.check_texts) data.copies.push_back(copy_sample(text, random));
  data.check_copies = data.copies;
  auto options = tiny_options();
  options.grid.bits = {8, 4, 2};
  options.repairs = 0, options.candidates = 2;
  Search search(model, data, options);
  for (const double budget : {0.4, 0.2}) {
    const auto found = search.find(budget);
    int few = 0;
    for (const auto& layer : found.programs.heads) {
      for (const HeadProgram& p : layer) few += p.in_few_bits();
    }
    EXPECT_GT(few, 0);
    for (int64_t length : {int64_t{256}, kContext}) {
      EXPECT_LE(budget_of(model, found.programs, length), budget);
    }
    // Written and read, the plan is the same, centres included.
    Plan plan = to_plan(model, found.programs, {kContext}, Json::object());
    plan.model = std::string(64, 'a');
    EXPECT_EQ(plan.version, 2);
    const Programs again = resolve_programs(parse_plan(plan_text(plan), "p.json"), kContext);
    EXPECT_EQ(again.heads, found.programs.heads);
    for (size_t l = 0; l < again.heads.size(); ++l) {
      for (size_t h = 0; h < again.heads[l].size(); ++h) {
        if (!again.heads[l][h].in_few_bits()) continue;
        ASSERT_TRUE(again.heads[l][h].centre);
        EXPECT_EQ(again.heads[l][h].centre->k, found.programs.heads[l][h].centre->k);
        EXPECT_EQ(again.heads[l][h].centre->v, found.programs.heads[l][h].centre->v);
      }
    }
  }
  // A plan in few bits has no gradients.
  const auto few = bits_plan(model, 4, {kContext}, 0.5);
  EXPECT_THROW(score_heads(model, data.texts, options.grid, &few), UsageError);
}

TEST(Methods, BitsAreTheMostThatFit) {
  const auto model = test::tiny_model();
  for (const double budget : {0.6, 0.4, 0.25}) {
    const Programs programs = bits_plan(model, 4, {kContext}, budget);
    EXPECT_LE(budget_of(model, programs, kContext), budget);
    EXPECT_EQ(programs.heads[0][0].k_bits, programs.heads[2][1].v_bits);
  }
  EXPECT_THROW(bits_plan(model, 4, {kContext}, 0.05), UsageError);
}

TEST(Methods, FitTheBudgetAndNameWhatTheyKeep) {
  const auto model = test::tiny_model();
  const std::vector<std::vector<double>> score{{0.1, 0.9}, {0.8, 0.2}, {0.3, 0.4}};
  const auto top = keep_top(model, score, {16, 4}, {kContext}, 0.4);
  EXPECT_LE(budget_of(model, top, kContext), 0.4);
  EXPECT_TRUE(top.heads[0][1].full());
  EXPECT_TRUE(top.heads[1][0].full());
  EXPECT_FALSE(top.heads[2][1].full());
  const auto razor = razor_plan(model, score, score, 4, {kContext}, 0.4);
  EXPECT_LE(budget_of(model, razor, kContext), 0.4);
  EXPECT_TRUE(razor.heads[0][1].full());
  const auto uniform = uniform_plan(model, 4, {kContext}, 0.25);
  EXPECT_EQ(uniform.heads[0][0].window, kContext / 4 - 4);
  EXPECT_THROW(uniform_plan(model, 4, {kContext}, 0.01), UsageError);
  EXPECT_THROW(method_from_name("best"), UsageError);
}

TEST(Methods, RazorsMeansAndDensePrefillSurviveThePlanFile) {
  const auto model = test::tiny_model();
  const std::vector<std::vector<double>> score{{0.1, 0.9}, {0.8, 0.2}, {0.3, 0.4}};
  const auto razor = razor_plan(model, score, score, 4, {kContext}, 0.4);
  EXPECT_TRUE(razor.dense_prefill);
  EXPECT_EQ(razor.heads[2][1].dropped, Dropped::kMean);
  EXPECT_EQ(uniform_plan(model, 4, {kContext}, 0.25).heads[2][1].dropped, Dropped::kGone);
  auto plan = to_plan(model, razor, {kContext}, Json::object());
  plan.model = std::string(64, 'a');  // the tiny model has none
  const auto again = resolve_programs(parse_plan(plan_text(plan), "plan.json"));
  EXPECT_EQ(again.heads, razor.heads);
  EXPECT_TRUE(again.dense_prefill);
  for (auto& program : plan.programs) {
    if (!program.full()) program.entry["comp"]["count"] = 2;
  }
  EXPECT_THROW(resolve_programs(plan), UsageError);
}

TEST(Methods, ShufflingKeepsThePrograms) {
  const auto model = test::tiny_model();
  const auto plan = keep_top(model, {{3, 1}, {2, 0}, {0, 0}}, {16, 4}, {kContext}, 0.5);
  const auto other = shuffled(plan, 1);
  const auto count = [](const Programs& programs) {
    int full = 0;
    for (const auto& layer : programs.heads) {
      full += static_cast<int>(
          std::count_if(layer.begin(), layer.end(), [](const auto& head) { return head.full(); }));
    }
    return full;
  };
  EXPECT_EQ(count(plan), count(other));
  EXPECT_EQ(budget_of(model, plan, kContext), budget_of(model, other, kContext));
}

TEST(Methods, GatesStayInRangeAndFallWithoutUse) {
  const auto model = test::tiny_model();
  auto data = tiny_data();
  GateOptions options;
  options.steps = 6;
  options.rate = 0.1;
  options.cost = 10;  // far more than any head is worth
  options.sinks = 2;
  options.window = 16;
  for (const auto& layer : train_gates(model, data.needles, options)) {
    for (double gate : layer) {
      EXPECT_GE(gate, 0);
      EXPECT_LT(gate, 1);
    }
  }
}

TEST(PlanFile, HoldsThePrograms) {
  const auto model = test::tiny_model();
  const auto programs = keep_top(model, {{3, 1}, {2, 0}, {0, 0}}, {16, 4}, {kContext}, 0.5);
  auto plan = to_plan(model, programs, {kContext}, {{"method", "test"}});
  plan.model = std::string(64, '0');  // a model that was never stored has no hash
  const auto again = parse_plan(plan_text(plan), "plan");
  ASSERT_EQ(again.heads.size(), 3u);
  for (size_t l = 0; l < 3; ++l) {
    for (size_t h = 0; h < 2; ++h) {
      const auto& program = again.program(l, h);
      EXPECT_EQ(program.full(), programs.heads[l][h].full());
      if (!programs.heads[l][h].full()) {
        EXPECT_EQ(window_entry(program.entry).sink, 4);
        EXPECT_EQ(kept_tokens(program, kContext), 20);
      }
    }
  }
}

}  // namespace search_test
}  // namespace heed::plan
