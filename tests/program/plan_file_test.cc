// Plan files: reading, writing, windows, bytes, and the formats of published systems.
#include "cache/plan/plan_file.h"

#include <gtest/gtest.h>

#include "cache/plan/plan_formats.h"
#include "cache/plan/plan_programs.h"
#include "io/io_test_helper.h"

namespace heed {
namespace {

using testing::expect_error;
using testing::TempFolder;

const std::string kModel(64, 'a');

std::string example() {
  return R"json({"version":1,"model":")json" + kModel +
         R"json(","unit":"kv_head","lengths":[4096,16384],
    "programs":[{"id":"full","kind":"full"},
      {"id":"stream","kind":"window","sink":64,"window":{"alpha":256,"beta":0.0,"min":128,"round":64}},
      {"id":"razor","kind":"window","sink":4,"window":{"rule":"max(S0,N/C)","S0":4000,"C":5},
       "comp":{"count":1,"weight":"N_d"}}],
    "heads":[["full","stream"],["razor","full"]],"prefill":"dense","kv_bits":16,
    "provenance":{"method":"duo","loss":0.0123}})json";
}

// The example with one piece of text replaced.
std::string with(const std::string& from, const std::string& to) {
  std::string text = example();
  const size_t at = text.find(from);
  EXPECT_NE(at, text.npos) << from;
  return text.replace(at, from.size(), to);
}

WindowRule rule(double alpha, double beta, int64_t min, int64_t round) {
  return {.alpha = alpha, .beta = beta, .min = min, .round = round};
}

TEST(PlanFile, ReadsTheExample) {
  const Plan plan = parse_plan(example(), "p.json");
  EXPECT_EQ(plan.model, kModel);
  EXPECT_EQ(plan.lengths, (std::vector<int64_t>{4096, 16384}));
  ASSERT_EQ(plan.programs.size(), 3u);
  EXPECT_EQ(window_entry(plan.program(0, 1).entry).sink, 64);
  EXPECT_EQ(window_entry(plan.program(0, 1).entry).window.alpha, 256);
  EXPECT_EQ(window_entry(plan.program(1, 0).entry).window.s0, 4000);
  EXPECT_EQ(window_entry(plan.program(1, 0).entry).comp.count, 1);
  EXPECT_EQ(plan.prefill, Plan::Prefill::kDense);
  EXPECT_EQ(plan.provenance["loss"], 0.0123);
  EXPECT_FALSE(plan.all_full());
  EXPECT_TRUE(full_plan(2, 3, kModel).all_full());
  // 4096: full 4096, stream 64 + 256, razor 4 + 4000 + 1, full 4096.
  EXPECT_EQ(kv_bytes(plan, 4096, 64, 64, 2), (4096 + 320 + 4005 + 4096) * 2 * 64 * 2);
  EXPECT_EQ(kv_bytes(plan, 100, 64, 32, 4), 4 * 100 * (64 + 32) * 4);
}

TEST(PlanFile, DefaultsAndRoundTrip) {
  const Plan small = parse_plan(R"({"version":1,"model":")" + kModel +
                                    R"(","programs":[{"id":"w","kind":"window",
      "window":{"alpha":10}}],"heads":[["w"]]})",
                                "p");
  EXPECT_EQ(small.prefill, Plan::Prefill::kSame);
  EXPECT_EQ(small.kv_bits, 16);
  EXPECT_EQ(window_entry(small.programs[0].entry).sink, 0);
  EXPECT_EQ(kept_tokens(small.programs[0], 100), 10);
  TempFolder folder;
  for (const Plan& plan : {small, parse_plan(example(), "p"), full_plan(3, 2, kModel)}) {
    write_plan(plan, folder / "plan.json");
    const Plan again = read_plan(folder / "plan.json");
    EXPECT_EQ(plan_to_json(again), plan_to_json(plan));
    EXPECT_EQ(again.programs, plan.programs);
    EXPECT_EQ(again.heads, plan.heads);
    EXPECT_EQ(plan_text(again), testing::read_all(folder / "plan.json"));
    EXPECT_EQ(parse_json(plan_text(plan), "p"), plan_to_json(plan));
  }
  Plan broken = full_plan(1, 1, "nothing");
  expect_error([&] { write_plan(broken, folder / "x.json"); }, {"x.json", "'model'"});
  EXPECT_EQ(folder.files(), 1u);
}

TEST(PlanFile, WindowLength) {
  EXPECT_EQ(kept_tokens(Program{.id = "full"}, 77), 77);
  EXPECT_EQ(window_length(rule(256, 0, 128, 64), 4096), 256);
  EXPECT_EQ(window_length(rule(100, 0, 128, 64), 4096), 128);
  EXPECT_EQ(window_length(rule(257, 0, 1, 64), 4096), 320);
  EXPECT_EQ(window_length(rule(257, 0, 1, 64), 300), 300);
  EXPECT_EQ(window_length(rule(-512, 0.25, 1, 1), 4096), 512);
  EXPECT_EQ(window_length(rule(0, 0.1, 1, 1), 1005), 101) << "rounded up";
  EXPECT_EQ(window_length(rule(-100, 0, 0, 1), 50), 1) << "a token sees itself";
  EXPECT_EQ(window_length(rule(0, 1, 1, 1), 12345), 12345);
  EXPECT_EQ(kept_tokens(window_program("w", {4, rule(32, 0, 1, 1), {}}), 4096), 36);
  EXPECT_EQ(kept_tokens(window_program("w", {4, rule(32, 0, 1, 1), {}}), 33), 33);
  const WindowRule razor = {.kind = WindowRule::Kind::kRazor, .s0 = 4000, .c = 5};
  EXPECT_EQ(window_length(razor, 3000), 3000);
  EXPECT_EQ(window_length(razor, 10000), 4000);
  EXPECT_EQ(window_length(razor, 100001), 20000);
}

TEST(PlanFile, Refuses) {
  const auto refuse = [](const std::string& text, std::initializer_list<std::string> parts) {
    std::vector<std::string> all = {"p.json: "};
    all.insert(all.end(), parts);
    const std::string error = testing::error_of([&] { parse_plan(text, "p.json"); });
    for (const std::string& part : all) {
      EXPECT_NE(error.find(part), error.npos) << "'" << part << "' is not in: " << error;
    }
  };
  refuse("[]", {"object"});
  refuse("{}", {"'version' is missing"});
  refuse(with("\"version\":1", "\"version\":3"), {"version 3"});
  refuse(with("\"version\":1", "\"version\":2"), {"'kv_bits'", "k_bits"});
  refuse(with("\"kind\":\"full\"", "\"kind\":\"full\",\"k_bits\":4"), {"version 2"});
  refuse(with("\"version\":1", "\"version\":1,\"version\":1"), {"'version' stands twice"});
  refuse(with(kModel, "abc"), {"'model'", "64", "'abc'"});
  refuse(with(kModel, std::string(64, 'G')), {"'model'"});
  refuse(with("kv_head", "head"), {"'unit'"});
  refuse(with("\"lengths\":[4096", "\"lengths\":[0"), {"'lengths'", "found 0"});
  refuse(with("\"id\":\"stream\",", ""), {"programs[1]", "'id' is missing"});
  refuse(with("\"id\":\"stream\"", "\"id\":\"full\""), {"'heads[0][1]'", "'stream'"});
  refuse(with("\"id\":\"razor\"", "\"id\":\"stream\""), {"'razor'"});
  refuse(with("\"kind\":\"full\"", "\"kind\":\"magic\""), {"'full'", "'magic' is not known"});
  refuse(with("\"kind\":\"full\"", "\"kind\":\"full\",\"sink\":1"), {"'sink' is not known"});
  refuse(with("\"sink\":64", "\"sinks\":64"), {"programs[1]", "'sinks' is not known"});
  refuse(with("\"sink\":64", "\"sink\":-1"), {"programs[1]", "'sink'", "found -1"});
  refuse(with("\"alpha\":256", "\"alpha\":1e300"), {"'window.alpha'"});
  refuse(with("\"alpha\":256", "\"alpha\":\"256\""), {"'alpha' must be a number"});
  refuse(with("\"beta\":0.0", "\"beta\":2"), {"'window.beta'"});
  refuse(with("\"round\":64", "\"round\":0"), {"'window.round'"});
  refuse(with("\"min\":128", "\"min\":-1"), {"'window.min'"});
  refuse(with("\"min\":128", "\"minimum\":1"), {"'minimum' is not known"});
  refuse(with("max(S0,N/C)", "max(S0,N/D)"), {"rule 'max(S0,N/D)'"});
  refuse(with("\"C\":5", "\"C\":0"), {"'window.C'"});
  refuse(with("\"count\":1", "\"count\":-1"), {"'comp.count'"});
  refuse(with("\"weight\":\"N_d\"", "\"weight\":\"x\""), {"'comp.weight'"});
  refuse(with("[[\"full\",\"stream\"]", "[[\"full\",\"nope\"]"), {"'heads[0][1]'", "'nope'"});
  refuse(with("[[\"full\",\"stream\"]", "[[\"full\"]"), {"'heads[1]' has 2"});
  refuse(with("[[\"full\",\"stream\"],[\"razor\",\"full\"]]", "[]"), {"'heads'"});
  refuse(with("[[\"full\",\"stream\"],[\"razor\",\"full\"]]", "[1]"), {"'heads[0]'"});
  refuse(with("\"prefill\":\"dense\"", "\"prefill\":\"no\""), {"prefill 'no'"});
  refuse(with("\"provenance\":{", "\"provenance\":[]}"), {""});
  refuse(with("\"kv_bits\":16", "\"kv_bit\":16"), {"'kv_bit' is not known"});
  // What a plan may say but Heed does not run yet is wrong usage.
  for (const std::string& text :
       {with("\"kind\":\"full\"", "\"kind\":\"select\",\"unit\":1"),
        with("\"kind\":\"full\"", "\"kind\":\"linear\",\"phi\":\"hedgehog\""),
        with("\"prefill\":\"dense\"", "\"prefill\":\"dynamic\""),
        with("\"kv_bits\":16", "\"kv_bits\":4")}) {
    try {
      parse_plan(text, "p.json");
      ADD_FAILURE() << text;
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find("not supported yet"), std::string::npos);
    }
  }
}

// Version 2: bits stand in each program, centres beside them.
std::string second(const std::string& programs, const std::string& more = "") {
  return "{\"version\":2,\"model\":\"" + std::string(64, 'a') + "\",\"programs\":[" + programs +
         "],\"heads\":[[\"a\",\"b\"]]" + more + "}";
}

const char* const kFewBits =
    R"({"id":"a","kind":"full","k_bits":4,"v_bits":3},)"
    R"({"id":"b","kind":"window","sink":16,"window":{"alpha":512},"v_bits":5})";

TEST(PlanFile, ProgramsHaveBitsAndCentres) {
  const Plan plan = parse_plan(
      second(kFewBits, R"(,"centres":{"k":[["3c00c000",""]],"v":[["00003800",""]]})"), "p.json");
  EXPECT_TRUE(plan.in_few_bits());
  EXPECT_FALSE(plan.all_full());
  EXPECT_EQ(plan_text(parse_plan(plan_text(plan), "p.json")), plan_text(plan));
  const Programs programs = resolve_programs(plan, 4096);
  const HeadProgram &a = programs.heads[0][0], &b = programs.heads[0][1];
  EXPECT_EQ(a.k_bits, 4);
  EXPECT_EQ(a.v_bits, 3);
  EXPECT_EQ(a.sinks, 16);
  ASSERT_TRUE(a.centre);
  EXPECT_EQ(a.centre->k, (std::vector<float>{1, -2}));
  EXPECT_EQ(a.centre->v, (std::vector<float>{0, 0.5}));
  EXPECT_EQ(b.k_bits, 16);
  EXPECT_EQ(b.v_bits, 5);
  EXPECT_EQ(b.window, 512);
  EXPECT_FALSE(b.centre);
  const int64_t exact = 16 * 128 * 2;
  EXPECT_EQ(kv_bytes(plan, 4096, 64, 64, 2),
            4096 * (32 + 24 + 4) + exact + 528 * (128 + 40 + 2) + exact);
}

TEST(PlanFile, RefusesWrongBitsAndCentres) {
  const auto refuse = [](const std::string& text, const char* part) {
    const std::string error = testing::error_of([&] { parse_plan(text, "p.json"); });
    EXPECT_NE(error.find(part), error.npos) << "'" << part << "' is not in: " << error;
  };
  const auto bits = [](const std::string& text) {
    return second(R"({"id":"a","kind":"full",)" + text + R"(},{"id":"b","kind":"full"})");
  };
  refuse(bits(R"("k_bits":7)"), "'k_bits' must be");
  refuse(bits(R"("v_bits":0)"), "'v_bits' must be");
  refuse(bits(R"("v_bits":-4)"), "found -4");
  refuse(bits(R"("v_bits":1e99)"), "'v_bits'");
  refuse(bits(R"("k_bits":"4")"), "'k_bits'");
  refuse(bits(R"("k_bits":4,"exact":65)"), "'exact'");
  refuse(second(R"({"id":"a","kind":"full"},{"id":"b","kind":"window","window":{"alpha":9},)"
                R"("comp":{"count":1},"k_bits":4})"),
         "'comp'");
  const auto centres = [](const std::string& text) {
    return second(kFewBits, ",\"centres\":" + text);
  };
  refuse(centres("[]"), "'centres'");
  refuse(centres(R"({"k":[["3c0",""]]})"), "k[0][0]");
  refuse(centres(R"({"k":[["3c0g",""]]})"), "'g'");
  refuse(centres(R"({"k":[["7e00",""]]})"), "not finite");
  refuse(centres(R"({"k":[["",""]],"v":[]})"), "layers");
  refuse(centres(R"({"k":[[""]]})"), "one entry a layer");
  refuse(centres(R"({"q":[]})"), "'q'");
}

TEST(PlanFile, FitsItsModelAlone) {
  const Plan plan = parse_plan(example(), "p.json");
  const std::string other(64, 'b');
  EXPECT_NO_THROW(check_plan_fits(plan, "p.json", kModel, 2, 2, false));
  EXPECT_NO_THROW(check_plan_fits(plan, "p.json", other, 2, 2, true));
  expect_error([&] { check_plan_fits(plan, "p.json", other, 2, 2, false); }, {other, "--force"});
  expect_error([&] { check_plan_fits(plan, "p.json", kModel, 3, 2, true); },
               {"2 layers of 2 KV heads", "3 of 2"});
  try {
    check_plan_fits(plan, "p.json", other, 2, 2, false);
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), 2);
  }
}

TEST(PlanFile, SurvivesDamage) {
  testing::survive_damage(example(), 20000, [](std::span<const std::byte> bytes) {
    const Plan plan =
        parse_plan({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, "damaged");
    EXPECT_GT(kv_bytes(plan, 4096, 64, 64, 2), 0);
    EXPECT_EQ(plan_to_json(parse_plan(plan_text(plan), "again")), plan_to_json(plan));
  });
}

TEST(PlanFormats, DuoAttention) {
  const std::string tsv = "1.0\t0.2\n0.5\t0.9\n0.1\t0.5\n";
  // numpy.quantile(gates, 0.5) = 0.5: heads at or above it, ties in order.
  const auto rows = [&](double sparsity) {
    return plan_from_duo(tsv, "a.tsv", kModel, {.sparsity = sparsity}).heads;
  };
  using Heads = std::vector<std::vector<int>>;
  EXPECT_EQ(rows(0), (Heads{{0, 0}, {0, 0}, {0, 0}}));
  EXPECT_EQ(rows(1), (Heads{{1, 1}, {1, 1}, {1, 1}}));
  EXPECT_EQ(rows(0.5), (Heads{{0, 1}, {0, 0}, {1, 1}}));
  EXPECT_EQ(rows(0.2), (Heads{{0, 0}, {0, 0}, {1, 0}}));
  EXPECT_EQ(rows(0.6), (Heads{{0, 1}, {0, 0}, {1, 1}}));
  EXPECT_EQ(rows(0.75), (Heads{{0, 1}, {1, 0}, {1, 1}}));
  const Plan plan = plan_from_duo(tsv, "a.tsv", kModel, {.sparsity = 0.5, .sink = 4, .window = 60});
  EXPECT_EQ(window_entry(plan.programs[1].entry).sink, 4);
  EXPECT_EQ(kept_tokens(plan.programs[1], 4096), 64);
  EXPECT_EQ(duo_from_plan(plan), "1\t0\n1\t1\n0\t0\n");
  EXPECT_EQ(plan_from_duo(duo_from_plan(plan), "b", kModel, {.sparsity = 0.5}).heads, plan.heads);
  expect_error([&] { duo_from_plan(parse_plan(example(), "p")); }, {"one window"});
  expect_error([&] { plan_from_duo("", "a.tsv", kModel); }, {"a.tsv: holds no heads"});
  expect_error([&] { plan_from_duo("1\t2\n3\n", "a.tsv", kModel); }, {"layer 1 has 1 heads"});
  expect_error([&] { plan_from_duo("1\tx\n", "a.tsv", kModel); }, {"line 1, column 2", "'x'"});
  expect_error([&] { plan_from_duo("1\tnan\n", "a.tsv", kModel); }, {"not a number"});
  expect_error([&] { plan_from_duo("1\t\n", "a.tsv", kModel); }, {"column 2"});
}

TEST(PlanFormats, Moa) {
  const std::string json = R"({"alphas":[[512,0,-1024,64],[0,1024,2048,100]],
                               "betas":[[0,1,0.5,0],[0.25,0,0,0]]})";
  const Plan plan = plan_from_moa(json, "m.json", kModel, 0, 4096);
  ASSERT_EQ(plan.heads[0].size(), 4u);
  // 64 sinks and a ring: ceil(max(alpha + beta N, 128) / 64) * 64 in all.
  EXPECT_EQ(kept_tokens(plan.program(0, 0), 4096), 512);
  EXPECT_TRUE(plan.program(0, 1).full());
  EXPECT_EQ(kept_tokens(plan.program(0, 2), 4096), 1024);
  EXPECT_EQ(kept_tokens(plan.program(0, 3), 4096), 128);
  EXPECT_EQ(kept_tokens(plan.program(1, 0), 4096), 1024);
  EXPECT_EQ(kept_tokens(plan.program(1, 0), 8192), 2048);
  const Plan again = plan_from_moa(moa_from_plan(plan), "m.json", kModel, 0, 4096);
  for (const int64_t n : {100, 1000, 4096, 5000, 100000}) {
    EXPECT_EQ(kv_bytes(again, n, 64, 64, 2), kv_bytes(plan, n, 64, 64, 2)) << n;
  }
  const Plan grouped = plan_from_moa(json, "m.json", kModel, 2, 4096);
  ASSERT_EQ(grouped.heads[0].size(), 2u);
  EXPECT_TRUE(grouped.program(0, 0).full());
  EXPECT_EQ(kept_tokens(grouped.program(0, 1), 4096), 1024);
  expect_error([&] { plan_from_moa(json, "m.json", kModel, 3, 4096); }, {"over 3 KV heads"});
  expect_error([&] { plan_from_moa("{}", "m.json", kModel, 0, 1); }, {"'alphas' is missing"});
  expect_error([&] { plan_from_moa(R"({"alphas":[[1]],"betas":[[1,2]]})", "m", kModel, 0, 1); },
               {"differ in shape"});
  expect_error([&] { moa_from_plan(parse_plan(example(), "p")); }, {"'razor'", "64 sinks"});
}

TEST(PlanFormats, RazorAttention) {
  const Plan plan = plan_from_razor(R"({"0":[1],"2":[0,1]})", "r.json", kModel, 3, 2);
  using Heads = std::vector<std::vector<int>>;
  EXPECT_EQ(plan.heads, (Heads{{1, 0}, {1, 1}, {0, 0}}));
  EXPECT_EQ(kept_tokens(plan.programs[1], 50000), 4 + 10000 + 1);
  EXPECT_EQ(razor_from_plan(plan), "{\"0\":[1],\"2\":[0,1]}\n");
  EXPECT_EQ(plan_from_razor("{}", "r", kModel, 1, 1).heads, (Heads{{1}}));
  const auto read = [](const std::string& text) {
    plan_from_razor(text, "r.json", std::string(64, 'a'), 3, 2);
  };
  expect_error([&] { read(R"({"3":[0]})"); }, {"r.json: '3' is not one of the model's 3 layers"});
  expect_error([&] { read(R"({"x":[0]})"); }, {"'x'"});
  expect_error([&] { read(R"({"0":[2]})"); }, {"layer 0 names KV head 2"});
  expect_error([&] { read(R"({"0":1})"); }, {"'0' must be an array"});
  expect_error([&] { read("[]"); }, {"must be a JSON object"});
}

}  // namespace
}  // namespace heed
