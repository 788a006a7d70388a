// The operator scan and its two naive forms against the token loop in float64.
#include "op/scan.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "io/error.h"

namespace heed::op {
namespace scan_test {

using at::Tensor;

double error(const Tensor& y, const Tensor& reference) {
  if (y.numel() == 0) return 0;
  const double norm = reference.to(at::kDouble).norm().item<double>();
  const double e = y.to(at::kDouble).sub(reference.to(at::kDouble)).norm().item<double>();
  return std::isnan(e) ? std::numeric_limits<double>::infinity() : e / (norm > 0 ? norm : 1);
}

enum class Decays { kNone, kHead, kToken, kChannel };
enum class Corrections { kNone, kDelta, kGeneral };

struct Problem {
  std::vector<Tensor>
      x;  // q, k, v, p, r, beta, log_decay, bonus, initial_state; undefined ones absent
  ScanOptions options;
  Tensor cu_seqlens;

  ScanInputs inputs() const { return {x[3], x[4], x[5], x[6], x[7], x[8], cu_seqlens}; }
  Problem with(const std::function<Tensor(const Tensor&, bool)>& f) const {
    Problem p = *this;
    for (size_t i = 0; i < x.size(); ++i) {
      if (x[i].defined()) p.x[i] = f(x[i], i < 5);
    }
    return p;
  }
};

Problem make(Decays decay, Corrections correction, bool before, bool resets, int64_t tokens = 83,
             int64_t key = 12, int64_t value = 10) {
  const int64_t b = 2, h = 3;
  Problem p;
  p.x.resize(9);
  p.x[0] = at::randn({b, tokens, h, key});
  p.x[1] = at::randn({b, tokens, h, key}).div(std::sqrt(key));
  p.x[2] = at::randn({b, tokens, h, value});
  const double inf = std::numeric_limits<double>::infinity();
  const auto decays = [&](at::IntArrayRef shape) {
    Tensor d = at::rand(shape).mul(-0.3);
    if (resets) {
      const Tensor pick = at::rand(shape);
      d = d.masked_fill(pick.gt(0.7), -8)
              .masked_fill(pick.gt(0.92), -inf)
              .masked_fill(pick.lt(0.1), 0);
    }
    return d;
  };
  if (decay == Decays::kHead) p.x[6] = at::rand({h}).mul(-0.3);
  if (decay == Decays::kToken) p.x[6] = decays({b, tokens, h});
  if (decay == Decays::kChannel) p.x[6] = decays({b, tokens, h, key});
  if (correction == Corrections::kDelta) {
    p.x[1] = p.x[1].div(p.x[1].norm(2, -1, true));
    p.x[5] = at::rand({b, tokens, h});
  }
  if (correction == Corrections::kGeneral) {
    p.x[3] = at::randn({b, tokens, h, key}).mul(-0.5 / std::sqrt(key));
    const Tensor r = at::randn({b, tokens, h, key});
    p.x[4] = r.div(r.norm(2, -1, true));
  }
  p.options.read_before = before;
  if (before) p.x[7] = at::randn({h, key});
  p.x[8] = at::randn({b, h, key, value});
  p.options.scale = 0.4;
  return p;
}

template <typename F>
void for_all(F&& f) {
  for (const Decays d : {Decays::kNone, Decays::kHead, Decays::kToken, Decays::kChannel}) {
    for (const Corrections c : {Corrections::kNone, Corrections::kDelta, Corrections::kGeneral}) {
      for (const bool before : {false, true}) {
        for (const bool resets : {false, true}) {
          if (resets && d != Decays::kToken && d != Decays::kChannel) continue;
          SCOPED_TRACE("decay " + std::to_string(static_cast<int>(d)) + " correction " +
                       std::to_string(static_cast<int>(c)) + (before ? " before" : " after") +
                       (resets ? " resets" : ""));
          f(make(d, c, before, resets));
        }
      }
    }
  }
}

using Form = std::function<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                      const ScanInputs&, const ScanOptions&)>;

// Outputs (2) and gradients (9, undefined where absent) of a form.
std::vector<Tensor> results(const Form& form, const Problem& problem, const Tensor& grad_out,
                            const Tensor& grad_state) {
  const at::AutoGradMode grad_mode(true);
  const Problem p =
      problem.with([](const Tensor& t, bool) { return t.detach().clone().requires_grad_(); });
  const auto [out, state] = form(p.x[0], p.x[1], p.x[2], p.inputs(), p.options);
  std::vector<Tensor> leaves;
  for (const Tensor& t : p.x) {
    if (t.defined()) leaves.push_back(t);
  }
  const auto grads = torch::autograd::grad(
      {out, state}, leaves, {grad_out.to(out.scalar_type()), grad_state.to(state.scalar_type())},
      std::nullopt, false, true);
  std::vector<Tensor> all = {out.detach(), state.detach()};
  size_t next = 0;
  for (const Tensor& t : p.x) all.push_back(t.defined() ? grads[next++] : Tensor());
  return all;
}

const char* const kNames[] = {"out",
                              "final_state",
                              "grad q",
                              "grad k",
                              "grad v",
                              "grad p",
                              "grad r",
                              "grad beta",
                              "grad decay",
                              "grad bonus",
                              "grad initial_state"};

void compare(const Form& form, const Problem& p, at::ScalarType dtype, double forward,
             double backward, double gates) {
  const Problem rounded =
      p.with([&](const Tensor& t, bool token) { return token ? t.to(dtype) : t; });
  const Tensor grad_out = at::randn(p.x[2].sizes()).to(dtype);
  const int64_t states = p.cu_seqlens.defined() ? p.cu_seqlens.size(0) - 1 : p.x[0].size(0);
  const Tensor grad_state = at::randn({states, p.x[0].size(2), p.x[0].size(3), p.x[2].size(3)});
  const auto y = results(form, rounded, grad_out, grad_state);
  const auto reference =
      results(scan_naive, rounded.with([](const Tensor& t, bool) { return t.to(at::kDouble); }),
              grad_out.to(at::kDouble), grad_state.to(at::kDouble));
  for (size_t i = 0; i < reference.size(); ++i) {
    if (!reference[i].defined()) continue;
    EXPECT_LE(error(y[i], reference[i]), i < 2 ? forward : i < 7 ? backward : gates) << kNames[i];
  }
}

TEST(Scan, IsTheTokenLoopInFloat32) {
  at::manual_seed(1);
  for_all([](const Problem& p) { compare(scan, p, at::kFloat, 2e-6, 1e-5, 1e-5); });
}

TEST(Scan, IsTheTokenLoopInBfloat16) {
  at::manual_seed(2);
  for_all([](const Problem& p) { compare(scan, p, at::kBFloat16, 6e-3, 1.5e-2, 3e-2); });
}

TEST(Scan, ChunkedNaiveIsTheTokenLoop) {
  at::manual_seed(3);
  for_all([](const Problem& p) { compare(scan_chunked_naive, p, at::kFloat, 4e-6, 1e-5, 1e-5); });
}

TEST(Scan, OrdinarySizes) {
  at::manual_seed(4);
  for (const Corrections c : {Corrections::kNone, Corrections::kDelta, Corrections::kGeneral}) {
    const Problem p = make(Decays::kChannel, c, false, false, 130, 64, 64);
    compare(scan, p, at::kFloat, 2e-6, 1e-5, 1e-5);
    compare(scan_chunked_naive, p, at::kFloat, 4e-6, 1e-5, 1e-5);
  }
}

TEST(Scan, LargeResults) {  // 2 MB and more go past the caches
  at::manual_seed(6);
  for (const Corrections c : {Corrections::kNone, Corrections::kDelta}) {
    const Problem p = make(Decays::kToken, c, false, false, 1400, 16, 64);
    compare(scan, p, at::kFloat, 2e-6, 1e-5, 1e-5);
  }
}

TEST(Scan, Packs) {
  at::manual_seed(5);
  Problem p = make(Decays::kToken, Corrections::kDelta, false, true);
  for (size_t i = 0; i < 7; ++i) {
    if (p.x[i].defined()) p.x[i] = p.x[i].slice(0, 0, 1);
  }
  p.cu_seqlens = at::tensor({0, 1, 1, 40, 83}, at::kLong);
  p.x[8] = at::randn({4, 3, 12, 10});
  compare(scan, p, at::kFloat, 2e-6, 1e-5, 1e-5);
  compare(scan_chunked_naive, p, at::kFloat, 4e-6, 1e-5, 1e-5);
  // The empty sequence keeps its state.
  EXPECT_TRUE(std::get<1>(scan(p.x[0], p.x[1], p.x[2], p.inputs(), p.options))[1].equal(p.x[8][1]));
}

TEST(Scan, StepsAreTheTokenLoop) {
  at::manual_seed(6);
  for_all([](const Problem& p) {
    Tensor state = p.x[8].clone();
    std::vector<Tensor> outs;
    for (int64_t t = 0; t < 20; ++t) {
      ScanInputs in = p.inputs();
      const auto cut = [&](const Tensor& u) { return u.defined() ? u.slice(1, t, t + 1) : u; };
      in.p = cut(in.p);
      in.r = cut(in.r);
      in.beta = cut(in.beta);
      if (in.log_decay.defined() && in.log_decay.dim() > 1) in.log_decay = cut(in.log_decay);
      outs.push_back(scan_step(cut(p.x[0]), cut(p.x[1]), cut(p.x[2]), in, p.options, state));
    }
    Problem head = p;
    for (const size_t i : {0, 1, 2, 3, 4, 5, 6}) {
      if (p.x[i].defined() && p.x[i].dim() > 1) head.x[i] = p.x[i].slice(1, 0, 20);
    }
    const Problem wide = head.with([](const Tensor& t, bool) { return t.to(at::kDouble); });
    const auto [out, last] =
        scan_naive(wide.x[0], wide.x[1], wide.x[2], wide.inputs(), wide.options);
    EXPECT_LE(error(at::cat(outs, 1), out), 2e-6);
    EXPECT_LE(error(state, last), 2e-6);
  });
}

TEST(Scan, NoTokensKeepTheState) {
  const Problem p = make(Decays::kToken, Corrections::kDelta, false, false, 0);
  const auto [out, state] = scan(p.x[0], p.x[1], p.x[2], p.inputs(), p.options);
  EXPECT_EQ(out.size(1), 0);
  EXPECT_TRUE(state.equal(p.x[8]));
}

TEST(Scan, NamesWhatDoesNotFit) {
  const Problem p = make(Decays::kToken, Corrections::kDelta, false, false, 5);
  const auto message = [&](const ScanInputs& in, const ScanOptions& options) {
    try {
      scan(p.x[0], p.x[1], p.x[2], in, options);
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  ScanInputs in = p.inputs();
  in.beta = at::zeros({2, 4, 3});
  EXPECT_NE(message(in, {}).find("beta has shape [2,4,3]"), std::string::npos);
  in = p.inputs();
  in.p = p.x[0];
  EXPECT_NE(message(in, {}).find("p and r"), std::string::npos);
  in = p.inputs();
  in.log_decay = at::zeros({2, 5, 3, 11});
  EXPECT_NE(message(in, {}).find("log_decay"), std::string::npos);
  in = p.inputs();
  in.bonus = at::zeros({3, 12});
  EXPECT_NE(message(in, {}).find("bonus"), std::string::npos);
  in = p.inputs();
  in.initial_state = at::zeros({1, 3, 12, 10});
  EXPECT_NE(message(in, {}).find("initial_state"), std::string::npos);
}

}  // namespace scan_test
}  // namespace heed::op
