// Gradients of the engine `scan`: the reference against finite differences of the forward
// reference, the kernel against the reference.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernel/parallel.h"
#include "kernel/scan_helper.h"

namespace heed::kernel::test {
namespace {

constexpr Decay kDecays[] = {Decay::kNone, Decay::kHead, Decay::kToken, Decay::kChannel};
constexpr Correction kCorrections[] = {Correction::kNone, Correction::kDelta, Correction::kGeneral};
constexpr Read kReads[] = {Read::kAfter, Read::kBefore};

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

std::vector<Stored*> inputs_of(ScanRun& run) {
  return {&run.q,         &run.k,     &run.v,
          &run.p,         &run.r,     &run.beta,
          &run.log_decay, &run.bonus, &run.initial_state};
}

double loss(ScanRun& run, const ScanGradRun& grads) {
  EXPECT_EQ(scan_reference(run.reference_args()), HEED_OK) << scan_message();
  double sum = 0;
  for (int64_t i = 0; i < run.out64.count(); ++i) sum += run.out64.at(i) * grads.grad_out.at(i);
  for (int64_t i = 0; i < run.final64.count(); ++i) {
    sum += run.final64.at(i) * grads.grad_final_state.at(i);
  }
  return sum;
}

TEST(ScanBackwardReference, EqualsFiniteDifferences) {
  for_every_option([&](ScanCase c) {
    c.batch = 2;
    c.time = 5;
    c.dk = 3;
    c.dv = 4;
    ScanRun run(c);
    ScanGradRun grads(run);
    const std::vector<Stored*> inputs = inputs_of(run);
    for (Stored* x : inputs) {  // steps of 1e-5 need float64 inputs
      if (x->sizes.empty()) continue;
      Stored wide(HEED_FLOAT64, x->sizes);
      for (int64_t i = 0; i < x->count(); ++i) wide.set(i, x->at(i));
      *x = wide;
    }
    ASSERT_EQ(scan_backward_reference(run.args(), grads.reference_grads()), HEED_OK)
        << scan_message();
    for (size_t which = 0; which < inputs.size(); ++which) {
      Stored* x = inputs[which];
      if (x->sizes.empty()) continue;
      std::vector<double> numeric(x->count());
      for (int64_t i = 0; i < x->count(); ++i) {
        const double value = x->at(i), step = 1e-5;
        x->set(i, value + step);
        const double above = loss(run, grads);
        x->set(i, value - step);
        const double below = loss(run, grads);
        x->set(i, value);
        numeric[i] = (above - below) / (2 * step);
      }
      EXPECT_LE(relative_error(grads.results64[which].values(), numeric), 1e-8)
          << kScanGradNames[which] << " of " << c.name();
    }
  });
}

void expect_backward(const ScanCase& c, double bound, double gate_bound,
                     const heed_parallel* parallel = nullptr, bool with_final = true) {
  ScanRun run(c);
  ScanGradRun grads(run, with_final);
  ASSERT_EQ(scan_backward_reference(run.args(), grads.reference_grads()), HEED_OK)
      << scan_message();
  ASSERT_EQ(scan_backward(run.args(), grads.grads(), parallel), HEED_OK) << scan_message();
  for (size_t i = 0; i < grads.results.size(); ++i) {
    if (grads.results[i].sizes.empty()) continue;
    EXPECT_LE(relative_error(grads.results[i].values(), grads.results64[i].values()),
              i == 5 || i == 6 ? gate_bound : bound)
        << kScanGradNames[i] << " of " << c.name();
  }
}

TEST(ScanBackward, EqualsReferenceOverOptionsAndSizes) {
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
      expect_backward(c, 1e-5, 1e-5, seed % 2 ? threads.parallel() : nullptr, seed % 4 != 0);
    }
  });
}

TEST(ScanBackward, ExtremeDecays) {
  for_every_option([&](ScanCase c) {
    if (c.decay == Decay::kNone) return;
    c.time = 150;
    c.dk = 24;
    // With a decay a head the gradient is one sum a head, and some of them cancel: a norm over
    // many.
    if (c.decay == Decay::kHead) c.heads = 16;
    for (float extreme : {0.05f, 0.5f}) {
      for (float size : {0.0f, 1e-4f, 0.05f, 8.0f}) {
        c.extreme = extreme;
        c.log_decay = size;
        c.seed = static_cast<uint64_t>(extreme * 100 + size * 1e4);
        expect_backward(c, 1e-5, 1e-5);
      }
    }
  });
}

TEST(ScanBackward, AllDecaysStrong) {  // every gradient of a decay is small: none may drown
  for_every_option([&](const ScanCase& c) {
    if (c.decay == Decay::kNone) return;
    ScanRun run(c);
    ScanGradRun grads(run);
    for (int64_t i = 0; i < run.log_decay.count(); ++i) run.log_decay.set(i, -8);
    ASSERT_EQ(scan_backward_reference(run.args(), grads.reference_grads()), HEED_OK);
    ASSERT_EQ(scan_backward(run.args(), grads.grads(), nullptr), HEED_OK);
    EXPECT_LE(relative_error(grads.results[6].values(), grads.results64[6].values()), 1e-5)
        << c.name();
  });
}

TEST(ScanBackward, ResetsHaveNoGradient) {
  for (Decay decay : {Decay::kHead, Decay::kToken, Decay::kChannel}) {
    ScanCase c;
    c.decay = decay;
    c.extreme = 0.5f;
    ScanRun run(c);
    if (decay == Decay::kHead) run.log_decay.set(0, -std::numeric_limits<double>::infinity());
    ScanGradRun grads(run);
    ASSERT_EQ(scan_backward(run.args(), grads.grads(), nullptr), HEED_OK);
    for (int64_t i = 0; i < run.log_decay.count(); ++i) {
      if (std::isinf(run.log_decay.at(i))) {
        EXPECT_EQ(grads.results[6].at(i), 0.0);
      }
    }
  }
}

TEST(ScanBackward, LongSequence) {  // several segments of kept states
  for_every_option([&](ScanCase c) {
    c.time = 1100;
    c.heads = 1;
    c.extreme = 0.005f;
    c.log_decay = 0.02f;
    expect_backward(c, 1e-5, 1e-5);
  });
}

TEST(ScanBackward, MoreValuesThanAreKept) {  // corrected values of one segment at a time
  ScanCase c;
  c.correction = Correction::kDelta;
  c.decay = Decay::kToken;
  c.batch = c.heads = 1;
  c.time = 66000;
  c.dk = 2;
  c.dv = 64;
  expect_backward(c, 1e-5, 1e-5);
}

TEST(ScanBackward, Packs) {
  for_every_option([&](ScanCase c) {
    c.time = 60;
    c.cu_seqlens = {0, 0, 7, 40, 40, 59, 60, 60};
    c.extreme = 0.1f;
    expect_backward(c, 1e-5, 1e-5);
  });
}

TEST(ScanBackward, AnyChunk) {
  for_every_option([&](ScanCase c) {
    for (int32_t chunk : {1, 3, 16, 20}) {
      c.chunk = chunk;
      c.time = 45;
      expect_backward(c, 1e-5, 1e-5);
    }
  });
}

TEST(ScanBackward, StorageTypes) {  // results are float32; the inputs' own rounding is shared
  for_every_option([&](ScanCase c) {
    for (int32_t dtype : {HEED_BFLOAT16, HEED_FLOAT16}) {
      c.dtype = dtype;
      c.time = 50;
      c.dk = 19;
      c.dv = 37;
      c.padding = 3;
      expect_backward(c, 1e-5, 1e-5);
    }
  });
}

TEST(ScanBackward, NoTokensPassTheGradientOn) {
  for_every_option([&](ScanCase c) {
    c.time = 0;
    ScanRun run(c);
    ScanGradRun grads(run);
    ASSERT_EQ(scan_backward(run.args(), grads.grads(), nullptr), HEED_OK) << scan_message();
    EXPECT_EQ(grads.results[8].bytes, grads.grad_final_state.bytes);
  });
}

TEST(ScanBackward, SameThreadsSameBits) {
  ThreadPool threads(3);
  for_every_option([&](ScanCase c) {
    c.heads = 1;
    c.dv = 70;
    ScanRun run(c);
    ScanGradRun first(run), second(run);
    ASSERT_EQ(scan_backward(run.args(), first.grads(), threads.parallel()), HEED_OK);
    ASSERT_EQ(scan_backward(run.args(), second.grads(), threads.parallel()), HEED_OK);
    for (size_t i = 0; i < first.results.size(); ++i) {
      EXPECT_EQ(first.results[i].bytes, second.results[i].bytes) << kScanGradNames[i];
    }
    expect_backward(c, 1e-5, 1e-5, threads.parallel());
  });
}

}  // namespace
}  // namespace heed::kernel::test
