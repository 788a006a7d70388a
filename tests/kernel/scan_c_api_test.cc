// The C entry points, and every instruction set that this processor runs.
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstring>

#include "heed/scan.h"
#include "kernel/parallel.h"
#include "kernel/scan_helper.h"

namespace heed::kernel::test {
namespace {

heed_scan_tensors tensors_of(const ScanViews& x) {
  return {x.q,   x.k,          x.v, x.p, x.r, x.beta, x.log_decay, x.bonus, x.initial_state,
          x.out, x.final_state};
}

struct CRun {
  explicit CRun(ScanRun& run) : tensors(tensors_of(run.args().in)) {
    heed_scan_options_init(&options);
    options.scale = run.args().options.scale;
    about.struct_size = sizeof(about);
    about.message = message;
    about.message_size = sizeof(message);
  }
  heed_status operator()() { return heed_scan(&tensors, nullptr, &options, &about); }

  heed_scan_tensors tensors;
  heed_scan_options options;
  heed_run about = {};
  char message[200];
};

TEST(ScanCApi, EveryPass) {
  ScanCase c;
  c.decay = Decay::kToken;
  c.correction = Correction::kDelta;
  ScanRun run(c), same(c);
  CRun call(run);
  const int64_t bytes = heed_scan_workspace(&call.tensors, nullptr, &call.options, &call.about);
  ASSERT_GT(bytes, 0) << call.message;
  std::vector<char> workspace(bytes, 0x7f);
  call.about.workspace = workspace.data();
  call.about.workspace_bytes = bytes;
  ASSERT_EQ(call(), HEED_OK) << call.message;
  ASSERT_EQ(scan_forward(same.args(), nullptr), HEED_OK);
  EXPECT_EQ(run.out.bytes, same.out.bytes);
  EXPECT_EQ(run.final_state.bytes, same.final_state.bytes);

  ScanGradRun grads(run), same_grads(same);
  const heed_scan_tensors views = tensors_of(grads.grads());
  call.about.pass = HEED_BACKWARD;
  call.about.workspace = nullptr;
  ASSERT_EQ(heed_scan(&call.tensors, &views, &call.options, &call.about), HEED_OK) << call.message;
  ASSERT_EQ(scan_backward(same.args(), same_grads.grads(), nullptr), HEED_OK);
  for (size_t i = 0; i < grads.results.size(); ++i) {
    EXPECT_EQ(grads.results[i].bytes, same_grads.results[i].bytes) << kScanGradNames[i];
  }

  call.about.pass = HEED_STEP;
  EXPECT_EQ(call(), HEED_INVALID_ARGUMENT);
  EXPECT_NE(std::strstr(call.message, "T = 40"), nullptr) << call.message;
  ScanCase one = c;
  one.time = 1;
  ScanRun step(one), same_step(one);
  CRun step_call(step);
  step_call.about.pass = HEED_STEP;
  ASSERT_EQ(step_call(), HEED_OK) << step_call.message;
  ASSERT_EQ(scan_step(same_step.args(), nullptr), HEED_OK);
  EXPECT_EQ(step.out.bytes, same_step.out.bytes);
  EXPECT_EQ(step.final_state.bytes, same_step.final_state.bytes);
}

TEST(ScanCApi, WhatIsWrongIsSaid) {
  ScanRun run(ScanCase{});
  CRun call(run);
  const int64_t bytes = heed_scan_workspace(&call.tensors, nullptr, &call.options, &call.about);
  std::vector<char> workspace(bytes);
  call.about.workspace = workspace.data();
  call.about.workspace_bytes = bytes - 1;
  EXPECT_EQ(call(), HEED_INVALID_ARGUMENT);
  EXPECT_NE(std::strstr(call.message, "the workspace has"), nullptr) << call.message;
  call.about.workspace = nullptr;
  call.tensors.beta = call.tensors.q;
  EXPECT_EQ(call(), HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(call.message, "scan: beta has shape [1,40,2,16], expected [B,T,H]");
  EXPECT_EQ(heed_scan_workspace(&call.tensors, nullptr, &call.options, &call.about), -1);
  EXPECT_EQ(heed_scan(nullptr, nullptr, nullptr, &call.about), HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(call.message, "scan: q [B,T,H,K] is missing");
  call.about.struct_size = 1;
  EXPECT_EQ(call(), HEED_INVALID_ARGUMENT);
}

TEST(ScanCApi, WorkspaceOfSeveralThreads) {  // exactly as large as was asked for, at any address
  ScanCase c;
  c.heads = 5;
  ScanRun run(c), same(c);
  CRun call(run);
  ThreadPool threads(3);
  call.about.parallel = threads.parallel();
  const int64_t bytes = heed_scan_workspace(&call.tensors, nullptr, &call.options, &call.about);
  ASSERT_GT(bytes, 0) << call.message;
  std::vector<char> workspace(bytes + 2, 0x7f);
  call.about.workspace = workspace.data() + 1;
  call.about.workspace_bytes = bytes;
  ASSERT_EQ(call(), HEED_OK) << call.message;
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
