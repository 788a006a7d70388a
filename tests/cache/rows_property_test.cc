// Properties of key/value caches, over random programs, chunk sizes and types: attention over a
// cache is masked attention over everything that went in; forks do not see each other; bytes are
// the formula's.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <random>

#include "cache/attend_states.h"
#include "io/error.h"
#include "op/attend.h"

namespace heed {
namespace rows_property_test {

constexpr int64_t kHeads = 3, kGroup = 2, kDim = 8;
const std::vector<HeadProgram> kPrograms = {{0, 0}, {37, 4}, {100, 0}};

double relative_error(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b.to(at::kDouble)).norm() / b.to(at::kDouble).norm()).item<double>();
}

struct Tokens {
  at::Tensor q, k, v;  // [N, H, D]
  Tokens part(int64_t begin, int64_t count) const {
    return {q.narrow(0, begin, count), k.narrow(0, begin, count), v.narrow(0, begin, count)};
  }
};

Tokens random_tokens(int64_t n, uint64_t seed) {
  at::manual_seed(seed);
  // Strided, as slices of one product are.
  const at::Tensor all = at::randn({n, kHeads * (kGroup + 2), kDim});
  return {all.narrow(1, 0, kHeads * kGroup), all.narrow(1, kHeads * kGroup, kHeads),
          all.narrow(1, kHeads * (kGroup + 1), kHeads)};
}

RowsPart part_of(const std::vector<HeadProgram>& programs, at::ScalarType type = at::kFloat) {
  RowsPart part;
  part.k_dim = part.v_dim = kDim;
  part.programs = programs;
  part.dtype = type;
  return part;
}

// Every property holds for pages and rings on the CPU, and for grouped rows as other devices have.
class Caches : public testing::TestWithParam<bool> {
 protected:
  std::unique_ptr<Rows> make(const std::vector<HeadProgram>& programs,
                             at::ScalarType type = at::kFloat) const {
    return make(part_of(programs, type));
  }
  std::unique_ptr<Rows> make(RowsPart part) const {
    part.grouped = GetParam();
    return std::make_unique<Rows>(std::move(part), at::kCPU);
  }
};

at::Tensor run(Rows& state, const Tokens& t) {
  const int64_t bounds[] = {0, t.q.size(0)};
  Rows* states[] = {&state};
  return attend_states(t.q, t.k, t.v, bounds, states, {}, 0.4);
}

// Straight from the definition of a program.
at::Tensor masked(const Tokens& t, const std::vector<HeadProgram>& programs) {
  op::AttendOptions options;
  options.causal = true;
  options.scale = 0.4;
  std::vector<int64_t> window, sinks;
  for (const HeadProgram& p : programs) {
    window.push_back(p.window);
    sinks.push_back(p.sinks);
  }
  options.head_window = at::tensor(window, at::kLong);
  options.head_sinks = at::tensor(sinks, at::kLong);
  const auto d = [](const at::Tensor& x) { return x.unsqueeze(0).to(at::kDouble); };
  return std::get<0>(op::attend_naive(d(t.q), d(t.k), d(t.v), options)).squeeze(0);
}

TEST_P(Caches, AnyChunksEqualOnePassOfMaskedAttention) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<HeadProgram> programs;
    for (int64_t h = 0; h < kHeads; ++h) {
      const bool full = random() % 3 == 0;
      programs.push_back(full ? HeadProgram{}
                              : HeadProgram{1 + static_cast<int64_t>(random() % 150),
                                            static_cast<int64_t>(random() % 20)});
    }
    const int64_t length = 1 + static_cast<int64_t>(random() % 300);
    const Tokens t = random_tokens(length, trial);
    const at::Tensor expected = masked(t, programs);
    const auto state = make(programs);
    std::vector<at::Tensor> parts;
    for (int64_t begin = 0; begin < length;) {
      const int64_t most = trial % 2 == 0 ? 90 : 3;
      const int64_t count =
          std::min<int64_t>(1 + static_cast<int64_t>(random() % most), length - begin);
      parts.push_back(run(*state, t.part(begin, count)));
      begin += count;
    }
    EXPECT_LT(relative_error(at::cat(parts), expected), 3e-6) << "trial " << trial;
    EXPECT_EQ(state->length(), length);
    // And without a state.
    const int64_t bounds[] = {0, length};
    EXPECT_LT(relative_error(attend_states(t.q, t.k, t.v, bounds, {}, programs, 0.4), expected),
              3e-6);
  }
}

// RazorAttention's equation, query by query: y = (N_d e^{q.k^} v^ + sum e^{q.k_n} v_n) / (N_d
// e^{q.k^} + sum e^{q.k_n}) over the keys n that are still there.
at::Tensor with_means(const Tokens& t, const std::vector<HeadProgram>& programs) {
  std::vector<at::Tensor> rows;
  for (int64_t p = 0; p < t.q.size(0); ++p) {
    for (int64_t h = 0; h < kHeads * kGroup; ++h) {
      const HeadProgram& program = programs[h / kGroup];
      const at::Tensor k = t.k.select(1, h / kGroup).to(at::kDouble);
      const at::Tensor v = t.v.select(1, h / kGroup).to(at::kDouble);
      at::Tensor keys = k.narrow(0, 0, p + 1), values = v.narrow(0, 0, p + 1);
      double bias = 0;
      const int64_t gone = program.full() ? 0 : p + 1 - program.window - program.sinks;
      if (gone > 0) {
        const auto kept = [&](const at::Tensor& x) {
          const at::Tensor recent = x.narrow(0, program.sinks + gone, program.window);
          std::vector<at::Tensor> parts = {x.narrow(0, 0, program.sinks), recent};
          if (program.dropped != Dropped::kGone) {
            parts.push_back(x.narrow(0, program.sinks, gone).mean(0, true));
          }
          return at::cat(parts);
        };
        keys = kept(keys), values = kept(values);
        if (program.dropped == Dropped::kMean) bias = std::log(static_cast<double>(gone));
      }
      at::Tensor logits = at::mv(keys, t.q[p][h].to(at::kDouble)).mul(0.4);
      if (gone > 0) logits[-1] += bias;
      rows.push_back(at::mv(values.t(), at::softmax(logits, 0)));
    }
  }
  return at::stack(rows).view({t.q.size(0), kHeads * kGroup, kDim});
}

TEST_P(Caches, MeansOfDroppedKeysFollowTheEquationInAnyChunks) {
  const std::vector<HeadProgram> programs = {
      {0, 0}, {37, 4, Dropped::kMean}, {20, 0, Dropped::kMeanAsOne}};
  const Tokens t = random_tokens(150, 21);
  const at::Tensor expected = with_means(t, programs);
  for (const int64_t chunk : {1, 7, 50, 150}) {
    const auto state = make(programs);
    std::vector<at::Tensor> parts;
    for (int64_t n = 0; n < 150; n += chunk) {
      parts.push_back(run(*state, t.part(n, std::min<int64_t>(chunk, 150 - n))));
    }
    EXPECT_LT(relative_error(at::cat(parts), expected), 3e-6) << "chunk " << chunk;
    EXPECT_GE(state->bytes(), state->part().formula_bytes(150));
  }
  // And without a state.
  const int64_t bounds[] = {0, 150};
  EXPECT_LT(relative_error(attend_states(t.q, t.k, t.v, bounds, {}, programs, 0.4), expected),
            3e-6);
}

TEST_P(Caches, EqualDroppedKeysAreReplacedExactlyByTheirMean) {
  Tokens t = random_tokens(100, 22);
  t.k.narrow(0, 4, 80).copy_(t.k.narrow(0, 4, 1).clone().expand({80, kHeads, kDim}));
  t.v.narrow(0, 4, 80).copy_(t.v.narrow(0, 4, 1).clone().expand({80, kHeads, kDim}));
  const HeadProgram head = {16, 4, Dropped::kMean};
  const auto state = make({head, head, head});
  run(*state, t.part(0, 99));
  const at::Tensor dense = masked(t, {{0, 0}, {0, 0}, {0, 0}});
  EXPECT_LT(relative_error(run(*state, t.part(99, 1)), dense.narrow(0, 99, 1)), 3e-6);
}

TEST_P(Caches, ADensePrefillLeavesTheMeanOfWhatItDrops) {
  const Tokens t = random_tokens(140, 23);
  const std::vector<HeadProgram> programs = {
      {30, 4, Dropped::kMean}, {10, 0, Dropped::kMean}, {0, 0}};
  RowsPart part = part_of(programs);
  part.dense_prefill = true;
  part.grouped = GetParam();
  Rows state(part, at::kCPU);
  const at::Tensor dense = masked(t, {{0, 0}, {0, 0}, {0, 0}});
  EXPECT_LT(relative_error(run(state, t.part(0, 130)), dense.narrow(0, 0, 130)), 3e-6);
  EXPECT_LT(relative_error(run(state, t.part(130, 10)), with_means(t, programs).narrow(0, 130, 10)),
            3e-6);
}

TEST_P(Caches, SequencesOfAPackGoTheirOwnWays) {
  const Tokens t = random_tokens(150, 12);
  const at::Tensor expected = masked(t, kPrograms);
  const auto state = make(kPrograms), other = make(kPrograms);
  Rows* states[] = {state.get(), other.get()};
  std::vector<at::Tensor> parts;
  for (int64_t n = 0; n < 150; n += 30) {  // two sequences at once, the second a token a time
    const Tokens part = t.part(n, 30);
    const auto join = [&](const at::Tensor& x) { return at::cat({x, x.narrow(0, n % 7, 1)}); };
    const int64_t bounds[] = {0, 30, 31};
    const Tokens both = {join(part.q), join(part.k), join(part.v)};
    parts.push_back(
        attend_states(both.q, both.k, both.v, bounds, states, {}, 0.4).narrow(0, 0, 30));
  }
  EXPECT_LT(relative_error(at::cat(parts), expected), 3e-6);
  EXPECT_EQ(other->length(), 5);
}

TEST(GroupedAttention, EqualsMaskedAttentionWithoutAStateToo) {
  const Tokens t = random_tokens(150, 12);
  const int64_t all[] = {0, 150};
  const at::Tensor out = attend_states_grouped(t.q, t.k, t.v, all, {}, kPrograms, 0.4);
  EXPECT_LT(relative_error(out, masked(t, kPrograms)), 3e-6);
}

TEST(GroupedAttention, WhatIsHeldIsWhatTheNextStepSees) {
  const Tokens t = random_tokens(150, 13);
  RowsPart part = part_of(kPrograms);
  part.grouped = true;
  Rows state(part, at::kCPU);
  const at::Tensor out = run(state, t);
  at::Tensor held = at::empty({kHeads * kGroup, kDim});
  attend_held(t.q[149], state, 0.4, held);
  EXPECT_LT(relative_error(held, out[149]), 3e-6);
}

TEST_P(Caches, BytesAreTheFormulas) {
  for (const auto type : {at::kFloat, at::kHalf, at::kBFloat16}) {
    const auto state = make({{0, 0}, {512, 16}, {64, 4}}, type);
    const int64_t element = type == at::kFloat ? 4 : 2;
    int64_t length = 0;
    for (const int64_t chunk : {1, 63, 100, 900, 1, 1000, 2031}) {
      state->append(at::randn({chunk, kHeads, kDim}), at::randn({chunk, kHeads, kDim}));
      length += chunk;
      const int64_t formula = state->part().formula_bytes(length);
      // Pages and rings grow by 64 rows.
      EXPECT_GE(state->bytes(), formula);
      EXPECT_EQ(state->bytes(), Rows::allocated(state->part(), length));
      EXPECT_LE(state->bytes(), formula + 2 * kHeads * 64 * 2 * kDim * element);
    }
    EXPECT_EQ(length, 4096);
    EXPECT_EQ(state->bytes(), state->part().formula_bytes(4096));
  }
}

TEST_P(Caches, ForksDoNotShareMeans) {
  const std::vector<HeadProgram> programs(kHeads, {20, 2, Dropped::kMean});
  const Tokens common = random_tokens(60, 5), left = random_tokens(30, 6),
               right = random_tokens(30, 7);
  const auto state = make(programs);
  run(*state, common);
  Rows fork = *state;
  std::vector<at::Tensor> a, b;
  for (int64_t n = 0; n < 30; ++n) {
    a.push_back(run(*state, left.part(n, 1)));
    b.push_back(run(fork, right.part(n, 1)));
  }
  for (const auto& [more, out] : {std::pair{&left, &a}, std::pair{&right, &b}}) {
    const Tokens all = {at::cat({common.q, more->q}), at::cat({common.k, more->k}),
                        at::cat({common.v, more->v})};
    EXPECT_LT(relative_error(at::cat(*out), with_means(all, programs).narrow(0, 60, 30)), 3e-6);
  }
}

TEST_P(Caches, ForksDoNotSeeEachOther) {
  for (const int64_t prefix : {1, 64, 100, 130}) {
    const Tokens common = random_tokens(prefix, 5), left = random_tokens(90, 6),
                 right = random_tokens(90, 7);
    const auto join = [](const Tokens& a, const Tokens& b) {
      return Tokens{at::cat({a.q, b.q}), at::cat({a.k, b.k}), at::cat({a.v, b.v})};
    };
    const auto state = make(kPrograms);
    run(*state, common);
    Rows other = *state;
    std::vector<at::Tensor> a, b;
    for (int64_t n = 0; n < 90; n += 9) {  // in turns, a chunk and steps
      a.push_back(run(*state, left.part(n, 8)));
      b.push_back(run(other, right.part(n, 8)));
      a.push_back(run(*state, left.part(n + 8, 1)));
      b.push_back(run(other, right.part(n + 8, 1)));
    }
    EXPECT_LT(
        relative_error(at::cat(a), masked(join(common, left), kPrograms).narrow(0, prefix, 90)),
        3e-6);
    EXPECT_LT(
        relative_error(at::cat(b), masked(join(common, right), kPrograms).narrow(0, prefix, 90)),
        3e-6);
  }
}

TEST_P(Caches, SavedStatesGoOnBitForBit) {
  const std::vector<HeadProgram> kPrograms = {{0, 0}, {37, 4}, {100, 0, Dropped::kMean}};
  for (const int64_t length : {0, 3, 50, 200}) {
    const Tokens t = random_tokens(length, 8), more = random_tokens(5, 9);
    const auto state = make(kPrograms, at::kHalf);
    if (length > 0) run(*state, t);
    NamedTensors saved;
    state->save(saved, "a.");
    const auto again = make(kPrograms, at::kHalf);
    again->load(saved, "a.");
    EXPECT_EQ(again->length(), length);
    EXPECT_EQ(again->bytes(), state->bytes());
    for (int64_t n = 0; n < 5; ++n) {
      EXPECT_LT(relative_error(run(*again, more.part(n, 1)), run(*state, more.part(n, 1))), 1e-6);
    }
    saved.erase("a.h1.k");
    EXPECT_THROW(again->load(saved, "a."), Error);
    saved["a.h1.k"] = at::zeros({1, 3});
    EXPECT_THROW(again->load(saved, "a."), Error);
  }
}

TEST_P(Caches, CutStatesGoOnAsIfNothingHadHappened) {
  const Tokens t = random_tokens(200, 10);
  const std::vector<HeadProgram> roomy = {{0, 0}, {180, 20}, {0, 0}};
  for (const int64_t cut : {0, 10, 64, 130, 200}) {
    const auto state = make(roomy);
    run(*state, t);
    state->truncate(cut);
    EXPECT_EQ(state->length(), cut);
    if (cut == 200) continue;
    EXPECT_LT(relative_error(run(*state, t.part(cut, 200 - cut)),
                             masked(t, roomy).narrow(0, cut, 200 - cut)),
              3e-6);
  }
  const auto state = make(kPrograms);
  run(*state, t);
  EXPECT_THROW(state->truncate(100), Error);
  EXPECT_THROW(state->truncate(300), Error);
  EXPECT_EQ(state->length(), 200);
}

TEST_P(Caches, HalfPrecisionChunksSeeWhatStepsSee) {
  // The chunk's own keys are rounded to the cache's type before they are used, so chunk sizes do
  // not matter.
  const Tokens t = random_tokens(120, 11);
  for (const auto type : {at::kHalf, at::kBFloat16}) {
    const auto a = make(kPrograms, type), b = make(kPrograms, type);
    const at::Tensor whole = run(*a, t);
    std::vector<at::Tensor> steps;
    for (int64_t n = 0; n < 120; ++n) steps.push_back(run(*b, t.part(n, 1)));
    EXPECT_LT(relative_error(at::cat(steps), whole), 3e-6);
  }
}

// A bias beside every key, a value that is a part of its key, values wider than keys.
TEST_P(Caches, ColumnsAndUnequalWidthsFollowTheirRows) {
  constexpr int64_t kValues = 5;
  for (const bool v_in_k : {false, true}) {
    for (const int64_t width : {1, static_cast<int>(kGroup)}) {
      RowsPart part = part_of({{0, 0}, {37, 4}, {0, 0}});
      part.v_dim = kValues;
      part.v_in_k = v_in_k;
      part.columns = {{"bias", width}};
      const auto state = make(part);
      const Tokens t = random_tokens(150, 31);
      const at::Tensor v = v_in_k ? t.k.narrow(2, 0, kValues) : at::randn({150, kHeads, kValues});
      const at::Tensor bias = at::randn({150, kHeads, width});
      Rows* states[] = {state.get()};
      std::vector<at::Tensor> parts;
      NamedTensors saved;
      for (int64_t begin = 0; begin < 150;) {
        const int64_t count = begin % 3 == 0 ? 1 : std::min<int64_t>(40, 150 - begin);
        const auto rows = [&](const at::Tensor& x) { return x.narrow(0, begin, count); };
        const int64_t bounds[] = {0, count};
        parts.push_back(
            attend_states(rows(t.q), rows(t.k), rows(v), bounds, states, {}, 0.4, rows(bias)));
        begin += count;
      }
      op::AttendOptions options;
      options.causal = true;
      options.scale = 0.4;
      options.head_window = at::tensor({0, 37, 0}, at::kLong);
      options.head_sinks = at::tensor({0, 4, 0}, at::kLong);
      options.key_bias = bias.expand({150, kHeads, kGroup}).reshape({1, 150, kHeads * kGroup});
      const auto d = [](const at::Tensor& x) { return x.unsqueeze(0).to(at::kDouble); };
      const at::Tensor expected =
          std::get<0>(op::attend_naive(d(t.q), d(t.k), d(v), options)).squeeze(0);
      EXPECT_LT(relative_error(at::cat(parts), expected), 3e-6) << v_in_k << " " << width;
      EXPECT_EQ(state->bytes(), Rows::allocated(state->part(), 150));
      state->save(saved, "");
      const auto again = make(part);
      again->load(saved, "");
      EXPECT_TRUE(at::equal(again->runs(1)[1].columns[0], state->runs(1)[1].columns[0]));
    }
  }
}

TEST_P(Caches, RefuseWhatDoesNotHoldTogether) {
  RowsPart part = part_of({{10, 0, Dropped::kMean}});
  part.columns = {{"bias", 1}};
  EXPECT_THROW(make(part), UsageError);
  part = part_of({{-1, 0}});
  EXPECT_THROW(make(part), UsageError);
  part = part_of({{0, 0}});
  part.v_in_k = true;
  part.v_dim = kDim + 1;
  EXPECT_THROW(make(part), UsageError);
  part = part_of({{0, 0}});
  part.columns = {{"bias", 1}};
  const auto state = make(part);
  EXPECT_THROW(state->append(at::zeros({1, 1, kDim}), at::zeros({1, 1, kDim})), Error);
}

INSTANTIATE_TEST_SUITE_P(Layouts, Caches, testing::Bool(),
                         [](const auto& info) { return info.param ? "Grouped" : "PagesAndRings"; });

}  // namespace rows_property_test
}  // namespace heed
