#include "train/optimizer.h"

#include <ATen/ATen.h>

#include <cmath>

#include "io/error.h"

namespace heed::train {

AdamW::AdamW(Named parameters, const AdamWOptions& options) : options_(options) {
  at::NoGradGuard no_grad;
  for (auto& [name, parameter] : parameters) {
    (parameter.dim() >= 2 ? decayed_ : plain_).push_back(names_.size());
    names_.push_back(name);
    parameters_.push_back(parameter);
    masters_.push_back(parameter.scalar_type() == at::kFloat ? parameter.detach()
                                                             : parameter.detach().to(at::kFloat));
    gradients_.push_back(at::zeros_like(masters_.back()));
    m_.push_back(at::zeros_like(masters_.back()));
    v_.push_back(at::zeros_like(masters_.back()));
    counters_.push_back(at::zeros({}, masters_.back().options()));
  }
}

void AdamW::accumulate() {
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> sums, grads;
  for (size_t n = 0; n < parameters_.size(); ++n) {
    at::Tensor& grad = parameters_[n].mutable_grad();
    if (!grad.defined()) continue;
    sums.push_back(gradients_[n]);
    grads.push_back(grad.to(at::kFloat));
    grad.reset();
  }
  if (!sums.empty()) at::_foreach_add_(sums, grads);
}

double AdamW::step(double lr, int64_t passes) {
  at::NoGradGuard no_grad;
  if (passes > 1) at::_foreach_mul_(gradients_, 1.0 / static_cast<double>(passes));
  const double norm =
      at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients_))).item<double>();
  if (!std::isfinite(norm)) {
    at::_foreach_zero_(gradients_);
    return norm;
  }
  if (options_.clip > 0 && norm > options_.clip) {
    at::_foreach_mul_(gradients_, options_.clip / (norm + 1e-6));
  }
  at::_foreach_add_(counters_, 1.0);
  for (const auto* group : {&decayed_, &plain_}) {
    if (group->empty()) continue;
    auto pick = [group](const std::vector<at::Tensor>& all) {
      std::vector<at::Tensor> some;
      for (const size_t n : *group) some.push_back(all[n]);
      return some;
    };
    auto weights = pick(masters_), gradients = pick(gradients_), m = pick(m_), v = pick(v_),
         counters = pick(counters_);
    at::_fused_adamw_(weights, gradients, m, v, {}, counters, lr, options_.beta1, options_.beta2,
                      group == &decayed_ ? options_.weight_decay : 0.0, options_.eps,
                      /*amsgrad=*/false, /*maximize=*/false);
  }
  at::_foreach_zero_(gradients_);
  ++steps_;
  publish();
  return norm;
}

void AdamW::publish() {
  at::NoGradGuard no_grad;
  for (size_t n = 0; n < parameters_.size(); ++n) {
    if (parameters_[n].scalar_type() != at::kFloat) parameters_[n].detach().copy_(masters_[n]);
  }
}

std::map<std::string, at::Tensor> AdamW::weights() const {
  std::map<std::string, at::Tensor> out;
  for (size_t n = 0; n < names_.size(); ++n) out[names_[n]] = masters_[n];
  return out;
}

std::map<std::string, at::Tensor> AdamW::state() const {
  std::map<std::string, at::Tensor> out;
  for (size_t n = 0; n < names_.size(); ++n) {
    out[names_[n] + ".m"] = m_[n];
    out[names_[n] + ".v"] = v_[n];
  }
  return out;
}

namespace {

void take(const std::map<std::string, at::Tensor>& from, const std::string& name, at::Tensor to) {
  const auto found = from.find(name);
  if (found == from.end()) throw Error("there is no tensor {} to start from", name);
  if (found->second.sizes() != to.sizes()) {
    throw Error("the tensor {} to start from has another shape than the model's", name);
  }
  to.copy_(found->second);
}

}  // namespace

void AdamW::load_weights(const std::map<std::string, at::Tensor>& weights) {
  at::NoGradGuard no_grad;
  for (size_t n = 0; n < names_.size(); ++n) take(weights, names_[n], masters_[n]);
  publish();
}

void AdamW::load(const std::map<std::string, at::Tensor>& weights,
                 const std::map<std::string, at::Tensor>& state, int64_t steps) {
  at::NoGradGuard no_grad;
  for (size_t n = 0; n < names_.size(); ++n) {
    take(state, names_[n] + ".m", m_[n]);
    take(state, names_[n] + ".v", v_[n]);
    counters_[n].fill_(static_cast<double>(steps));
  }
  steps_ = steps;
  load_weights(weights);
}

}  // namespace heed::train
