// The C entry points, and every instruction set that this processor runs.
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstring>

#include "heed/scan.h"
#include "kernel/parallel.h"
#include "kernel/scan_helper.h"

namespace heed::kernel::test {
namespace {

heed_scan_tensors tensors_of(ScanRun& run) {
  const ScanArgs a = run.args();
  return {a.q,         a.k,           a.v,
          a.p,         a.r,           a.beta,
          a.log_decay, a.bonus,       a.initial_state,
          a.out,       a.final_state, a.cu_seqlens,
          a.sequences};
}

TEST(ScanCApi, ForwardAndStep) {
  ScanCase c;
  c.decay = Decay::kToken;
  c.correction = Correction::kDelta;
  ScanRun run(c), same(c);
  heed_scan_tensors tensors = tensors_of(run);
  heed_scan_options options;
  heed_scan_options_init(&options);
  options.decay = HEED_DECAY_TOKEN;
  options.correction = HEED_CORRECTION_DELTA;
  options.scale = same.args().scale;
  char message[200];
  const int64_t bytes = heed_scan_workspace(&tensors, &options, 1, 0, message, sizeof(message));
  ASSERT_GT(bytes, 0) << message;
  std::vector<char> workspace(bytes, 0x7f);
  ASSERT_EQ(heed_scan_forward(&tensors, &options, nullptr, workspace.data(), bytes, message,
                              sizeof(message)),
            HEED_OK)
      << message;
  ASSERT_EQ(scan_forward(same.args(), nullptr), HEED_OK);
  EXPECT_EQ(run.out.bytes, same.out.bytes);
  EXPECT_EQ(run.final_state.bytes, same.final_state.bytes);

  EXPECT_EQ(heed_scan_forward(&tensors, &options, nullptr, workspace.data(), bytes - 1, message,
                              sizeof(message)),
            HEED_INVALID_ARGUMENT);
  EXPECT_NE(std::strstr(message, "the workspace has"), nullptr) << message;
  EXPECT_EQ(heed_scan_step(&tensors, &options, nullptr, nullptr, 0, message, sizeof(message)),
            HEED_INVALID_ARGUMENT);
  EXPECT_NE(std::strstr(message, "T = 40"), nullptr) << message;
  options.version = 99;
  EXPECT_EQ(heed_scan_forward(&tensors, &options, nullptr, nullptr, 0, nullptr, 0),
            HEED_INVALID_ARGUMENT);
  EXPECT_EQ(heed_scan_forward(nullptr, &options, nullptr, nullptr, 0, nullptr, 0),
            HEED_INVALID_ARGUMENT);
}

TEST(ScanCApi, WorkspaceOfSeveralThreads) {  // exactly as large as was asked for, at any address
  ScanCase c;
  c.heads = 5;
  ScanRun run(c), same(c);
  heed_scan_tensors tensors = tensors_of(run);
  heed_scan_options options;
  heed_scan_options_init(&options);
  options.scale = same.args().scale;
  char message[200];
  const int64_t bytes = heed_scan_workspace(&tensors, &options, 3, 0, message, sizeof(message));
  ASSERT_GT(bytes, 0) << message;
  std::vector<char> workspace(bytes + 2, 0x7f);
  ThreadPool threads(3);
  ASSERT_EQ(heed_scan_forward(&tensors, &options, threads.parallel(), workspace.data() + 1, bytes,
                              message, sizeof(message)),
            HEED_OK)
      << message;
  EXPECT_EQ(workspace.front(), 0x7f);
  EXPECT_EQ(workspace.back(), 0x7f);
  ASSERT_EQ(scan_forward(same.args(), nullptr), HEED_OK);
  EXPECT_EQ(run.out.bytes, same.out.bytes);
}

TEST(ScanTargets, EveryInstructionSetEqualsTheReference) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    for (Decay decay : {Decay::kNone, Decay::kToken, Decay::kChannel}) {
      for (Correction correction : {Correction::kNone, Correction::kDelta, Correction::kGeneral}) {
        for (int32_t dtype : {HEED_FLOAT32, HEED_BFLOAT16, HEED_FLOAT16}) {
          ScanCase c;
          c.decay = decay;
          c.correction = correction;
          c.dtype = dtype;
          c.read = correction == Correction::kNone ? Read::kBefore : Read::kAfter;
          c.bonus = correction == Correction::kNone;
          c.time = 45;
          c.dk = 21;
          c.dv = 35;
          c.extreme = 0.05f;
          ScanRun run(c);
          ScanGradRun grads(run);
          ASSERT_EQ(scan_reference(run.reference_args()), HEED_OK);
          ASSERT_EQ(scan_backward_reference(run.args(), grads.reference_grads()), HEED_OK);
          ASSERT_EQ(scan_forward(run.args(), nullptr), HEED_OK) << scan_message();
          ASSERT_EQ(scan_backward(run.args(), grads.grads(), nullptr), HEED_OK);
          const double bound = dtype == HEED_FLOAT32 ? 2e-6 : dtype == HEED_BFLOAT16 ? 3e-3 : 4e-4;
          const std::string name = c.name() + " on " + hwy::TargetName(target);
          EXPECT_LE(relative_error(run.out.values(), run.out64.values()), bound) << name;
          EXPECT_LE(relative_error(run.final_state.values(), run.final64.values()), 2e-6) << name;
          for (size_t i = 0; i < grads.results.size(); ++i) {
            if (grads.results[i].sizes.empty()) continue;
            EXPECT_LE(relative_error(grads.results[i].values(), grads.results64[i].values()), 1e-5)
                << kScanGradNames[i] << " of " << name;
          }
          ScanCase step = c;
          step.time = 1;
          ScanRun one(step);
          ASSERT_EQ(scan_reference(one.reference_args()), HEED_OK);
          ASSERT_EQ(scan_step(one.args(), nullptr), HEED_OK);
          EXPECT_LE(relative_error(one.out.values(), one.out64.values()), bound) << name;
          EXPECT_LE(relative_error(one.final_state.values(), one.final64.values()), 2e-6) << name;
        }
      }
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace
}  // namespace heed::kernel::test
