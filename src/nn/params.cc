// See params.h.
#include "nn/params.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "io/error.h"
#include "nn/init.h"

namespace heed {

void Params::add(const std::string& name, at::Tensor& member) {
  std::vector<Parameter> sorted;  // a Parameter refers to a member, so it is never assigned to
  const auto before = [&](const Parameter& p) { return order_ == Order::kAsMade || p.name < name; };
  for (const Parameter& p : all_) {
    if (p.name == name) throw Error("a layer has two parameters {}", name);
    if (before(p)) sorted.push_back(p);
  }
  sorted.push_back({name, member});
  for (const Parameter& p : all_) {
    if (!before(p)) sorted.push_back(p);
  }
  all_.swap(sorted);
}

void Params::matrix(Weight& member, const std::string& name, int64_t out, int64_t in) {
  matrix(member, name, init_projection(out, in));
}

void Params::matrix(Weight& member, const std::string& name, at::Tensor value) {
  member.data = std::move(value);
  matrices_.push_back(&member);
  add(name, member.data);
}

void Params::tensor(at::Tensor& member, const std::string& name, at::Tensor value) {
  member = std::move(value);
  add(name, member);
}

at::Tensor& Params::at(const std::string& name) const {
  const auto found =
      std::find_if(all_.begin(), all_.end(), [&](const Parameter& p) { return p.name == name; });
  if (found == all_.end()) throw Error("a layer has no parameter {}", name);
  return found->value;
}

at::TensorOptions Params::options() const {
  return all_.empty() ? init_options() : all_.front().value.options();
}

int64_t Params::flops(int64_t tokens) const {
  int64_t sum = 0;
  for (const Parameter& p : all_) {
    if (p.value.dim() >= 2) sum += 2 * p.value.numel() * tokens;
  }
  return sum;
}

}  // namespace heed
