// The operators on a GPU against their naive forms in float64 on the CPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "op/attend.h"
#include "op/cuda_plugin.h"
#include "op/operators_helper.h"
#include "op/scan.h"

namespace heed::op {
namespace operators_gpu_test {

using at::Tensor;

class OperatorsOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string obstacle = cuda_obstacle(); !obstacle.empty()) GTEST_SKIP() << obstacle;
    open_cuda();
    at::manual_seed(1);
  }
};

double error(const Tensor& y, const Tensor& reference) {
  const Tensor a = y.detach().cpu().to(at::kDouble), b = reference.detach();
  return ((a - b).norm() / b.norm()).item<double>();
}

struct Case {
  const char* name;
  int64_t tq, tk;
  AttendOptions options;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](const char* name, int64_t tq, int64_t tk, auto... set) {
    Case c{name, tq, tk, {}};
    c.options.causal = true;
    (set(c.options), ...);
    all.push_back(std::move(c));
  };
  const auto window = [](AttendOptions& o) { o.window = 17; };
  const auto sinks = [](AttendOptions& o) { o.sinks = 3; };
  const auto cross = [](AttendOptions& o) { o.causal = false; };
  const auto per_head = [](AttendOptions& o) {
    o.head_window = at::tensor({int64_t{9}, int64_t{0}});
    o.head_sinks = at::tensor({int64_t{2}, int64_t{0}});
  };
  const auto pack = [](AttendOptions& o) {
    o.cu_seqlens_q = at::tensor({int64_t{0}, int64_t{31}, int64_t{77}});
  };
  add("causal", 77, 77);
  add("chunk after others", 20, 77);
  add("cross", 33, 77, cross);
  add("window", 77, 77, window);
  add("window and sinks", 77, 77, window, sinks);
  add("window and sinks, chunk", 20, 77, window, sinks);
  add("per head", 77, 77, per_head);
  add("pack", 77, 77, pack);
  add("pack, window and sinks", 77, 77, pack, window, sinks);
  return all;
}

TEST_F(OperatorsOnGpu, AttendEqualsItsNaiveForm) {
  for (const auto& c : cases()) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      SCOPED_TRACE(std::string(c.name) + " " + c10::toString(dtype));
      const auto leaf = [](const Tensor& t) { return t.detach().clone().requires_grad_(); };
      std::vector<Tensor> wide, fast;
      for (const auto& [tokens, heads] :
           {std::pair<int64_t, int64_t>{c.tq, 4}, {c.tk, 2}, {c.tk, 2}}) {
        const Tensor t = at::randn({1, tokens, heads, 32}).to(dtype);
        wide.push_back(leaf(t.to(at::kDouble)));
        fast.push_back(leaf(t.to(at::kCUDA)));
      }
      const at::AutoGradMode grad_mode(true);
      const auto [ref, ref_lse] = attend_naive(wide[0], wide[1], wide[2], c.options);
      const auto [out, lse] = attend(fast[0], fast[1], fast[2], c.options);
      const bool half = dtype != at::kFloat;
      EXPECT_TRUE(out.is_cuda());
      EXPECT_LE(error(out, ref), half ? 6e-3 : 2e-6);
      EXPECT_LE(error(lse, ref_lse), half ? 6e-3 : 2e-6);
      const Tensor grad = at::randn(ref.sizes()).to(dtype);
      const auto expected = torch::autograd::grad({ref}, wide, {grad.to(at::kDouble)});
      const auto got = torch::autograd::grad({out}, fast, {grad.to(at::kCUDA)});
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_LE(error(got[i], expected[i]), half ? 1.5e-2 : 1e-5) << i;
      }
    }
  }
}

TEST_F(OperatorsOnGpu, MasksOfLongTextsGoInBlocks) {
  // 9 heads x 3072 x 3072 x 4 bytes: more than one block of the bias.
  const Tensor q = at::randn({1, 3072, 9, 16}), k = at::randn({1, 3072, 3, 16}),
               v = at::randn({1, 3072, 3, 16});
  AttendOptions options;
  options.causal = true;
  options.head_window = at::tensor({int64_t{100}, int64_t{0}, int64_t{1000}});
  options.head_sinks = at::tensor({int64_t{4}, int64_t{0}, int64_t{16}});
  const auto [out, lse] = attend(q.cuda(), k.cuda(), v.cuda(), options);
  const auto [ref, ref_lse] = attend(q, k, v, options);
  EXPECT_LE(error(out, ref.to(at::kDouble)), 4e-6);
  EXPECT_LE(error(lse, ref_lse.to(at::kDouble)), 4e-6);
}

TEST_F(OperatorsOnGpu, ScanEqualsItsNaiveForm) {
  const int64_t t = 150, h = 2, dk = 16, dv = 24;
  const auto make = [&](std::initializer_list<int64_t> sizes) { return at::randn(sizes); };
  const Tensor q = make({1, t, h, dk}), k = make({1, t, h, dk}).div(4), v = make({1, t, h, dv});
  struct Kind {
    const char* name;
    ScanInputs inputs;
  };
  std::vector<Kind> kinds(4);
  kinds[0].name = "no decay";
  kinds[1].name = "decay a token";
  kinds[1].inputs.log_decay = make({1, t, h}).abs().neg();
  kinds[2].name = "decay a channel";
  kinds[2].inputs.log_decay = make({1, t, h, dk}).abs().neg().mul(0.2);
  kinds[3].name = "delta";
  kinds[3].inputs.beta = at::sigmoid(make({1, t, h}));
  for (const auto& kind : kinds) {
    SCOPED_TRACE(kind.name);
    ScanInputs wide, fast;
    for (auto member : {&ScanInputs::log_decay, &ScanInputs::beta}) {
      const Tensor& x = kind.inputs.*member;
      if (!x.defined()) continue;
      wide.*member = x.to(at::kDouble);
      fast.*member = x.cuda();
    }
    const auto [ref, ref_state] =
        scan_naive(q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble), wide);
    const auto [out, state] = scan(q.cuda(), k.cuda(), v.cuda(), fast);
    EXPECT_LE(error(out, ref), 2e-6);
    EXPECT_LE(error(state, ref_state.to(at::kDouble)), 2e-6);
  }
}

TEST_F(OperatorsOnGpu, EveryEngineHasGradients) {
  for (const auto dtype : {at::kFloat, at::kDouble}) testing::expect_gradients(at::kCUDA, dtype);
}

}  // namespace operators_gpu_test
}  // namespace heed::op
