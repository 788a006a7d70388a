// The engine `scan` against its reference, over options and sizes that are not round.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>

#include "kernel/parallel.h"
#include "kernel/scan_helper.h"

namespace heed::kernel::test {
namespace {

constexpr Decay kDecays[] = {Decay::kNone, Decay::kHead, Decay::kToken, Decay::kChannel};
constexpr Correction kCorrections[] = {Correction::kNone, Correction::kDelta, Correction::kGeneral};
constexpr Read kReads[] = {Read::kAfter, Read::kBefore};

void expect_forward(const ScanCase& c, double out_bound, double state_bound,
                    const heed_parallel* parallel = nullptr) {
  ScanRun run(c);
  ASSERT_EQ(scan_reference(run.reference_args()), HEED_OK) << scan_message();
  ASSERT_EQ(scan_forward(run.args(), parallel), HEED_OK) << scan_message();
  EXPECT_LE(relative_error(run.out.values(), run.out64.values()), out_bound) << c.name();
  EXPECT_LE(relative_error(run.final_state.values(), run.final64.values()), state_bound)
      << c.name();
}

template <typename Visit>
void for_every_option(Visit visit) {
  for (Decay decay : kDecays) {
    for (Correction correction : kCorrections) {
      for (Read read : kReads) {
        ScanCase c;
        c.decay = decay;
        c.correction = correction;
        c.read = read;
        c.bonus = read == Read::kBefore;
        visit(c);
      }
    }
  }
}

TEST(ScanForward, EqualsReferenceOverOptionsAndSizes) {
  const int64_t sizes[][3] = {{1, 1, 1},   {5, 3, 7},    {16, 16, 16},  {33, 20, 5},
                              {64, 8, 64}, {77, 65, 33}, {130, 48, 100}};
  ThreadPool threads(2);
  uint64_t seed = 1;
  for_every_option([&](ScanCase c) {
    for (const auto& [time, dk, dv] : sizes) {
      c.time = time;
      c.dk = dk;
      c.dv = dv;
      c.heads = time % 3 + 1;
      c.batch = time % 2 + 1;
      c.initial = seed % 3 != 0;
      c.beta = seed % 2 ? 1 : 2;
      c.seed = seed++;
      expect_forward(c, 2e-6, 2e-6, seed % 2 ? threads.parallel() : nullptr);
    }
  });
}

TEST(ScanForward, ExtremeDecays) {
  for_every_option([&](ScanCase c) {
    if (c.decay == Decay::kNone) return;
    c.time = 150;
    c.dk = 24;
    for (float extreme : {0.05f, 0.5f}) {
      for (float size : {0.0f, 1e-4f, 0.05f, 4.0f}) {
        c.extreme = extreme;
        c.log_decay = size;
        c.seed = static_cast<uint64_t>(extreme * 100 + size * 1e4);
        expect_forward(c, 2e-6, 2e-6);
      }
    }
  });
}

TEST(ScanForward, AnyChunk) {
  for_every_option([&](ScanCase c) {
    for (int32_t chunk : {1, 2, 3, 7, 16, 17, 32, 1000}) {
      c.chunk = chunk;
      c.time = 45;
      expect_forward(c, 2e-6, 2e-6);
    }
  });
}

TEST(ScanForward, StorageTypes) {
  for_every_option([&](ScanCase c) {
    for (int32_t dtype : {HEED_BFLOAT16, HEED_FLOAT16}) {
      c.dtype = dtype;
      c.time = 50;
      c.dk = 19;
      c.dv = 37;
      c.padding = 3;
      expect_forward(c, dtype == HEED_BFLOAT16 ? 3e-3 : 4e-4, 2e-6);
    }
  });
}

TEST(ScanForward, LongWithSlowDecay) {  // rounded factors of a slow, constant decay must not drift
  for (Decay decay : {Decay::kHead, Decay::kToken, Decay::kChannel}) {
    for (double size : {1e-5, 1e-3, 1e-2}) {
      ScanCase c;
      c.decay = decay;
      c.time = 4096;
      ScanRun run(c);
      for (int64_t i = 0; i < run.log_decay.count(); ++i) run.log_decay.set(i, -size);
      ASSERT_EQ(scan_reference(run.reference_args()), HEED_OK);
      ASSERT_EQ(scan_forward(run.args(), nullptr), HEED_OK);
      EXPECT_LE(relative_error(run.out.values(), run.out64.values()), 2e-6) << c.name() << size;
      EXPECT_LE(relative_error(run.final_state.values(), run.final64.values()), 2e-6) << c.name();
    }
  }
}

TEST(ScanForward, LongMemory) {  // what every token rounds must not add up
  for (Decay decay : {Decay::kNone, Decay::kHead, Decay::kToken, Decay::kChannel}) {
    for (Read read : kReads) {
      ScanCase c;
      c.decay = decay;
      c.read = read;
      c.time = 40000;
      c.heads = 1;
      c.batch = 1;
      c.dk = 9;
      c.dv = 21;
      ScanRun run(c);
      for (int64_t i = 0; i < run.log_decay.count(); ++i) {
        run.log_decay.set(i, i == 30000 ? -7.0 : -1e-6);
      }
      ASSERT_EQ(scan_reference(run.reference_args()), HEED_OK);
      ASSERT_EQ(scan_forward(run.args(), nullptr), HEED_OK);
      EXPECT_LE(relative_error(run.out.values(), run.out64.values()), 2e-6) << c.name();
      EXPECT_LE(relative_error(run.final_state.values(), run.final64.values()), 2e-6) << c.name();
    }
  }
}

TEST(ScanForward, LongDelta) {
  for (float beta : {1.0f, 2.0f}) {
    ScanCase c;
    c.correction = Correction::kDelta;
    c.beta = beta;
    c.time = 2048;
    c.dk = c.dv = 64;
    expect_forward(c, 2e-6, 2e-6);
    c.decay = Decay::kToken;
    c.log_decay = 0.01f;
    expect_forward(c, 2e-6, 2e-6);
    c.decay = Decay::kChannel;
    expect_forward(c, 2e-6, 2e-6);
  }
}

TEST(ScanForward, NanDecayIsSeenFromItsTokenOn) {
  for (Decay decay : {Decay::kToken, Decay::kChannel}) {
    ScanCase c;
    c.decay = decay;
    c.heads = 1;
    ScanRun clean(c), run(c);
    const int64_t token = 21, a_token = run.log_decay.count() / c.time;
    for (int64_t i = 0; i < a_token; ++i) {
      run.log_decay.set(token * a_token + i, std::numeric_limits<double>::quiet_NaN());
    }
    ASSERT_EQ(scan_forward(clean.args(), nullptr), HEED_OK);
    ASSERT_EQ(scan_forward(run.args(), nullptr), HEED_OK);
    for (int64_t i = 0; i < c.time * c.dv; ++i) {
      if (i / c.dv < token) {
        EXPECT_EQ(run.out.at(i), clean.out.at(i)) << c.name() << " token " << i / c.dv;
      } else {
        EXPECT_TRUE(std::isnan(run.out.at(i))) << c.name() << " token " << i / c.dv;
      }
    }
  }
}

TEST(ScanForward, PackEqualsSeparateSequences) {
  for_every_option([&](ScanCase c) {
    c.time = 60;
    c.cu_seqlens = {0, 0, 7, 40, 40, 59, 60, 60};
    c.extreme = 0.1f;
    expect_forward(c, 2e-6, 2e-6);
  });
}

TEST(ScanForward, NoTokensLeaveTheState) {
  for_every_option([&](ScanCase c) {
    c.time = 0;
    for (bool initial : {true, false}) {
      c.initial = initial;
      ScanRun run(c);
      ASSERT_EQ(scan_forward(run.args(), nullptr), HEED_OK) << scan_message();
      for (int64_t i = 0; i < run.final_state.count(); ++i) {
        EXPECT_EQ(run.final_state.at(i), initial ? run.initial_state.at(i) : 0.0);
      }
    }
  });
}

TEST(ScanForward, ThreadsChangeNoBit) {
  for_every_option([&](ScanCase c) {
    c.heads = 1;
    for (const auto& [dk, dv] : {std::pair{40, 120}, {120, 72}}) {
      c.dk = dk;
      c.dv = dv;
      ScanRun one(c);
      ASSERT_EQ(scan_forward(one.args(), nullptr), HEED_OK);
      for (int32_t count : {2, 3, 5, 16}) {
        ThreadPool threads(count);
        ScanRun many(c);
        ASSERT_EQ(scan_forward(many.args(), threads.parallel()), HEED_OK);
        EXPECT_EQ(one.out.bytes, many.out.bytes) << c.name() << " threads " << count;
        EXPECT_EQ(one.final_state.bytes, many.final_state.bytes) << c.name();
      }
    }
  });
}

// Tokens [begin, end) of a view.
heed_view part(heed_view view, int64_t begin, int64_t end) {
  if (view.data == nullptr || view.rank < 3) return view;
  const int64_t bytes = view.dtype == HEED_FLOAT32 ? 4 : 2;
  view.data = static_cast<char*>(view.data) + begin * view.strides[1] * bytes;
  view.sizes[1] = end - begin;
  return view;
}
ScanCall part(ScanCall args, int64_t begin, int64_t end) {
  for (heed_view* view : {&args.in.q, &args.in.k, &args.in.v, &args.in.p, &args.in.r, &args.in.beta,
                          &args.in.log_decay, &args.in.out}) {
    *view = part(*view, begin, end);
  }
  return args;
}

TEST(ScanForward, SplitSequenceCarriesTheState) {
  for_every_option([&](ScanCase c) {
    c.time = 71;
    c.extreme = 0.05f;
    ScanRun run(c);
    ASSERT_EQ(scan_reference(run.reference_args()), HEED_OK);
    const ScanCall all = run.args();
    ASSERT_EQ(scan_forward(part(all, 0, 30), nullptr), HEED_OK) << scan_message();
    ScanCall rest = part(all, 30, 71);
    rest.in.initial_state = all.in.final_state;  // in place
    ASSERT_EQ(scan_forward(rest, nullptr), HEED_OK) << scan_message();
    EXPECT_LE(relative_error(run.out.values(), run.out64.values()), 2e-6) << c.name();
    EXPECT_LE(relative_error(run.final_state.values(), run.final64.values()), 2e-6) << c.name();
  });
}

TEST(ScanStep, PrefillThenStepsEqualsOnePass) {
  ThreadPool threads(2);
  const int64_t sizes[][2] = {{16, 16}, {7, 5}, {33, 70}, {64, 128}, {20, 257}};
  for_every_option([&](ScanCase c) {
    for (const auto& [dk, dv] : sizes) {
      for (int32_t dtype : {HEED_FLOAT32, HEED_BFLOAT16}) {
        c.time = 40;
        c.dk = dk;
        c.dv = dv;
        c.heads = dk == 20 ? 1 : 3;
        c.batch = 2;
        c.extreme = 0.05f;
        c.dtype = dtype;
        ScanRun run(c);
        ASSERT_EQ(scan_reference(run.reference_args()), HEED_OK);
        const ScanCall all = run.args();
        ASSERT_EQ(scan_forward(part(all, 0, 20), nullptr), HEED_OK) << scan_message();
        for (int64_t t = 20; t < 40; ++t) {
          ScanCall step = part(all, t, t + 1);
          step.in.initial_state = all.in.final_state;
          ASSERT_EQ(scan_step(step, threads.parallel()), HEED_OK) << scan_message();
        }
        const double bound = dtype == HEED_FLOAT32 ? 2e-6 : 3e-3;
        EXPECT_LE(relative_error(run.out.values(), run.out64.values()), bound) << c.name();
        EXPECT_LE(relative_error(run.final_state.values(), run.final64.values()), 2e-6) << c.name();
      }
    }
  });
}

TEST(ScanStep, FromNothing) {
  for_every_option([&](ScanCase c) {
    c.time = 1;
    c.initial = false;
    c.dv = 21;
    ScanRun run(c);
    ASSERT_EQ(scan_reference(run.reference_args()), HEED_OK);
    ASSERT_EQ(scan_step(run.args(), nullptr), HEED_OK) << scan_message();
    EXPECT_LE(relative_error(run.out.values(), run.out64.values()), 2e-6) << c.name();
    EXPECT_LE(relative_error(run.final_state.values(), run.final64.values()), 2e-6) << c.name();
  });
}

TEST(ScanForward, SharedKeysOfHeadGroups) {  // stride 0 over heads, as Mamba-2's B and C
  ScanCase c;
  c.heads = 4;
  c.decay = Decay::kToken;
  ScanRun run(c), single(c);
  for (Stored* x : {&run.q, &run.k}) {
    for (int64_t i = 0; i < x->count(); ++i) {
      x->set(i, x->at(i / (c.heads * c.dk) * (c.heads * c.dk) + i % c.dk));
    }
  }
  ASSERT_EQ(scan_reference(run.reference_args()), HEED_OK);
  ScanCall args = run.args();
  args.in.q.strides[2] = args.in.k.strides[2] = 0;
  ASSERT_EQ(scan_forward(args, nullptr), HEED_OK);
  EXPECT_LE(relative_error(run.out.values(), run.out64.values()), 2e-6);
}

TEST(ScanArguments, WhatIsWrongIsSaid) {
  ScanCase c;
  ScanRun run(c);
  ScanCall args = run.args();
  args.in.k.sizes[3] += 1;
  EXPECT_EQ(scan_forward(args, nullptr), HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(scan_message(), "scan: k has shape [1,40,2,17], expected [B,T,H,K] = [1,40,2,16]");
  args = run.args();
  args.in.p = args.in.k;
  EXPECT_EQ(scan_forward(args, nullptr), HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(scan_message(), "scan: p and r come together");
  args = run.args();
  args.in.out = {};
  EXPECT_EQ(scan_forward(args, nullptr), HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(scan_message(), "scan: out [B,T,H,V] is missing");
  args = run.args();
  args.in.v.device = HEED_CUDA;
  EXPECT_EQ(scan_forward(args, nullptr), HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(scan_message(), "scan: v is not on the device of q");
  args = run.args();
  args.options.chunk = 0;
  EXPECT_EQ(scan_forward(args, nullptr), HEED_INVALID_ARGUMENT);
  args = run.args();
  EXPECT_EQ(scan_step(args, nullptr), HEED_INVALID_ARGUMENT);
  const int64_t bad[] = {0, 30, 20, 40};
  args.head.cu_seqlens = bad;
  args.head.sequences = 3;
  EXPECT_EQ(scan_forward(args, nullptr), HEED_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace heed::kernel::test
