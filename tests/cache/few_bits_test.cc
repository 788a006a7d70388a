// Caches that keep keys and values in few bits: attention over them is masked attention over the
// rows as they are kept, in any chunks; centres, exact rows, bytes, forks, going back, saving; and
// the operators that stand for the kernels elsewhere.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <random>

#include "cache/attend_states.h"
#include "cache/quantised.h"
#include "io/error.h"
#include "kernel/quant/quant.h"
#include "op/attend.h"

namespace heed {
namespace few_bits_test {

constexpr int64_t kHeads = 3, kGroup = 2, kDim = 64;

double relative_error(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b.to(at::kDouble)).norm() / b.to(at::kDouble).norm()).item<double>();
}

struct Tokens {
  at::Tensor q, k, v;  // [N, H, D]
  Tokens part(int64_t begin, int64_t count) const {
    return {q.narrow(0, begin, count), k.narrow(0, begin, count), v.narrow(0, begin, count)};
  }
};

Tokens random_tokens(int64_t n, uint64_t seed, int64_t dim = kDim) {
  at::manual_seed(seed);
  const at::Tensor all = at::randn({n, kHeads * (kGroup + 2), dim});
  const at::Tensor k = all.narrow(1, kHeads * kGroup, kHeads);
  k.select(2, 3).add_(12);  // a channel far from zero, as keys have
  return {all.narrow(1, 0, kHeads * kGroup), k, all.narrow(1, kHeads * (kGroup + 1), kHeads)};
}

HeadProgram program(int64_t window, int64_t sinks, int k_bits, int v_bits, bool centred = false) {
  HeadProgram p{window, sinks};
  p.k_bits = static_cast<int8_t>(k_bits), p.v_bits = static_cast<int8_t>(v_bits);
  if (centred) {
    Centre centre;
    centre.k.assign(kDim, 0.02f), centre.v.assign(kDim, -0.02f);
    centre.k[3] = 12;
    p.centre = std::make_shared<const Centre>(centre);
  }
  return p;
}

std::vector<HeadProgram> programs() {
  return {program(0, 16, 4, 3, true), program(37, 4, 2, 8), program(0, 0, 16, 5)};
}

RowsPart part_of(const std::vector<HeadProgram>& programs, at::ScalarType type, bool grouped) {
  RowsPart part;
  part.k_dim = part.v_dim = kDim;
  part.programs = programs;
  part.dtype = type;
  part.grouped = grouped;
  return part;
}

at::Tensor run(Rows& state, const Tokens& t) {
  const int64_t bounds[] = {0, t.q.size(0)};
  Rows* states[] = {&state};
  return attend_states(t.q, t.k, t.v, bounds, states, {}, 0.1);
}

// x [N, D] as a head keeps it.
at::Tensor kept(const at::Tensor& x, int bits, int64_t exact, const std::vector<float>& centre) {
  if (bits == 16) return x;
  const at::Tensor c =
      centre.empty() ? at::zeros({x.size(1)}) : rotated(at::tensor(centre).unsqueeze(0))[0];
  const at::Tensor again = rotated(decode(encode(rotated(x) - c, bits), bits, x.size(1)) + c);
  const int64_t first = std::min(exact, x.size(0));
  return at::cat({x.narrow(0, 0, first), again.slice(0, first)});
}

// Straight from the definition.
at::Tensor masked(const Tokens& t, const std::vector<HeadProgram>& programs) {
  op::AttendOptions options;
  options.causal = true;
  options.scale = 0.1;
  std::vector<int64_t> window, sinks;
  std::vector<at::Tensor> k, v;
  for (size_t h = 0; h < programs.size(); ++h) {
    const HeadProgram& p = programs[h];
    window.push_back(p.window);
    sinks.push_back(p.sinks);
    const Centre none, &centre = p.centre ? *p.centre : none;
    k.push_back(kept(t.k.select(1, static_cast<int64_t>(h)), p.k_bits, p.sinks, centre.k));
    v.push_back(kept(t.v.select(1, static_cast<int64_t>(h)), p.v_bits, p.sinks, centre.v));
  }
  options.head_window = at::tensor(window, at::kLong);
  options.head_sinks = at::tensor(sinks, at::kLong);
  const auto d = [](const at::Tensor& x) { return x.unsqueeze(0).to(at::kDouble); };
  return std::get<0>(op::attend_naive(d(t.q), d(at::stack(k, 1)), d(at::stack(v, 1)), options))
      .squeeze(0);
}

class FewBits : public testing::TestWithParam<bool> {
 protected:
  std::unique_ptr<Rows> make(const std::vector<HeadProgram>& programs,
                             at::ScalarType type = at::kFloat) const {
    return std::make_unique<Rows>(part_of(programs, type, GetParam()), at::kCPU);
  }
};

TEST_P(FewBits, AnyChunksAreMaskedAttentionOverWhatIsKept) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 8; ++trial) {
    const int64_t length = 1 + static_cast<int64_t>(random() % 250);
    const Tokens t = random_tokens(length, trial);
    const at::Tensor expected = masked(t, programs());
    const auto state = make(programs());
    std::vector<at::Tensor> parts;
    for (int64_t begin = 0; begin < length;) {
      const int64_t most = trial % 2 == 0 ? 90 : 3;
      const int64_t count =
          std::min<int64_t>(1 + static_cast<int64_t>(random() % most), length - begin);
      parts.push_back(run(*state, t.part(begin, count)));
      begin += count;
    }
    EXPECT_LT(relative_error(at::cat(parts), expected), 3e-6) << "trial " << trial;
    const int64_t bounds[] = {0, length};
    EXPECT_LT(relative_error(attend_states(t.q, t.k, t.v, bounds, {}, programs(), 0.1), expected),
              3e-6);
  }
}

TEST_P(FewBits, CentresAndRotationHelpAndManyBitsAreNearlyExact) {
  const Tokens t = random_tokens(200, 3);
  const auto error = [&](int bits, bool centred) {
    const std::vector<HeadProgram> all(kHeads, program(0, 16, bits, bits, centred));
    return relative_error(run(*make(all), t), masked(t, std::vector<HeadProgram>(kHeads)));
  };
  EXPECT_LT(error(3, true), 0.8 * error(3, false));
  double before = error(2, true);
  for (const int bits : {3, 4, 5, 6, 8}) {
    const double now = error(bits, true);
    EXPECT_LT(now, 0.8 * before) << bits;
    before = now;
  }
  EXPECT_LT(before, 0.015);
}

TEST_P(FewBits, BytesAreTheFormulas) {
  for (const auto type : {at::kFloat, at::kHalf}) {
    const auto state =
        make({program(0, 16, 4, 3), program(512, 16, 2, 8), program(0, 0, 16, 16)}, type);
    int64_t length = 0;
    for (const int64_t chunk : {1, 63, 100, 900, 1, 1000, 2031}) {
      state->append(at::randn({chunk, kHeads, kDim}), at::randn({chunk, kHeads, kDim}));
      length += chunk;
      EXPECT_GE(state->bytes(), state->part().formula_bytes(length));
      EXPECT_EQ(state->bytes(), Rows::allocated(state->part(), length));
    }
    EXPECT_EQ(length, 4096);
    const int64_t e = type == at::kFloat ? 4 : 2, row = 2 * kDim * e;
    EXPECT_EQ(state->bytes(), 4096 * (32 + 24 + 4) + 528 * (16 + 64 + 4) + 32 * row + 4096 * row);
    EXPECT_EQ(state->bytes(), state->part().formula_bytes(4096));
  }
}

TEST_P(FewBits, ForksDoNotSeeEachOther) {
  for (const int64_t length : {5, 20, 130}) {
    const Tokens t = random_tokens(length, 4), more = random_tokens(90, 5);
    const auto a = make(programs());
    run(*a, t);
    Rows b = *a;
    run(b, random_tokens(90, 6));
    const at::Tensor on = run(*a, more);
    const Tokens both = {at::cat({t.q, more.q}), at::cat({t.k, more.k}), at::cat({t.v, more.v})};
    EXPECT_LT(relative_error(on, masked(both, programs()).slice(0, length)), 3e-6) << length;
  }
}

TEST_P(FewBits, SavedStatesGoOnBitForBit) {
  for (const int64_t length : {0, 3, 50, 200}) {
    const Tokens t = random_tokens(length, 8), more = random_tokens(5, 9);
    const auto state = make(programs(), at::kHalf), again = make(programs(), at::kHalf);
    if (length > 0) run(*state, t);
    NamedTensors saved;
    state->save(saved, "a.");
    again->load(saved, "a.");
    EXPECT_EQ(again->length(), length);
    EXPECT_EQ(again->bytes(), state->bytes());
    for (int64_t n = 0; n < 5; ++n) {
      EXPECT_TRUE(run(*again, more.part(n, 1)).equal(run(*state, more.part(n, 1)))) << length;
    }
    for (const char* name : {"a.h0.k", "a.h0.k_scale", "a.h1.exact_v", "a.h2.v"}) {
      NamedTensors damaged = saved;
      damaged.erase(name);
      EXPECT_THROW(again->load(damaged, "a."), Error) << name;
      damaged[name] = at::zeros({1, 3});
      EXPECT_THROW(again->load(damaged, "a."), Error) << name;
    }
  }
}

TEST_P(FewBits, CutStatesGoOnAsIfNothingHadHappened) {
  const Tokens t = random_tokens(200, 10);
  const std::vector<HeadProgram> roomy = {program(0, 16, 4, 4), program(180, 20, 5, 3),
                                          program(0, 16, 8, 16)};
  for (const int64_t cut : {0, 10, 64, 130}) {
    const auto state = make(roomy);
    run(*state, t);
    state->truncate(cut);
    EXPECT_LT(relative_error(run(*state, t.part(cut, 200 - cut)),
                             masked(t, roomy).narrow(0, cut, 200 - cut)),
              3e-6)
        << cut;
  }
}

TEST_P(FewBits, WhatDoesNotHoldTogetherIsRefused) {
  const auto with = [&](HeadProgram p) { make(std::vector<HeadProgram>(kHeads, p)); };
  EXPECT_THROW(with(program(0, 16, 7, 4)), UsageError);
  EXPECT_THROW(with(program(0, 65, 4, 4)), UsageError);
  HeadProgram mean = program(30, 4, 4, 4);
  mean.dropped = Dropped::kMean;
  EXPECT_THROW(with(mean), UsageError);
  HeadProgram centre = program(0, 16, 4, 4);
  centre.centre = std::make_shared<const Centre>(Centre{{1, 2, 3}, {}});
  EXPECT_THROW(with(centre), UsageError);
  RowsPart part =
      part_of(std::vector<HeadProgram>(kHeads, program(0, 16, 4, 4)), at::kFloat, GetParam());
  part.columns = {{"bias", 1}};
  EXPECT_THROW(Rows(part, at::kCPU), UsageError);
}

INSTANTIATE_TEST_SUITE_P(All, FewBits, testing::Bool(), [](const auto& info) {
  return std::string(info.param ? "Grouped" : "Pages");
});

// Queries in bfloat16 and an odd width.
TEST(FewBitsRows, OperatorsGiveWhatTheKernelsGive) {
  for (const int64_t dim : {1, 7, 24, 64, 80, 200}) {
    at::manual_seed(12);
    const at::Tensor x = at::randn({5, 3, dim});
    EXPECT_LT(relative_error(rotated(rotated(x)), x), 1e-6);
    for (const int bits : kernel::kQuantBits) {
      const QuantisedRows a = encode(x, bits), b = encode_with_operators(x, bits);
      EXPECT_EQ(a.codes.sizes(), b.codes.sizes());
      const at::Tensor y = decode(a, bits, dim);
      EXPECT_LT(relative_error(decode_with_operators(a, bits, dim), y), 1e-6) << bits;
      // A sum in another order may move a number that lies between two levels.
      EXPECT_LT(relative_error(decode(b, bits, dim), y), 0.02) << bits << " " << dim;
    }
  }
}

}  // namespace few_bits_test
}  // namespace heed
