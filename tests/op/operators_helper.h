// Small calls of every engine's operator, and a check of its gradients, on any device.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "kernel/call/check.h"
#include "op/dispatch.h"

namespace heed::op::testing {

// A call of an engine with small sizes: the tensors that it must have, and its states.
struct Sample {
  std::vector<std::string> names;
  std::vector<at::Tensor> tensors;
};

inline int64_t size_of(std::string_view name) {
  constexpr std::pair<std::string_view, int64_t> kSizes[] = {
      {"B", 2},  {"N", 2}, {"T", 6}, {"Tq", 5}, {"Tk", 7}, {"Hq", 4},
      {"Hk", 2}, {"H", 4}, {"J", 2}, {"C", 12}, {"G", 3},  {"L", 3}};
  const kernel::SizeName asked(name);
  for (const auto& [known, size] : kSizes) {
    if (kernel::SizeName(known).key == asked.key) return size + asked.more;
  }
  return 3;  // of a head
}

inline Sample sample_of(const kernel::CallFields& fields) {
  Sample sample;
  for (const auto& field : fields.tensors) {
    if (!kernel::is_input(field.role) || !field.required) continue;
    std::vector<int64_t> sizes;
    kernel::first_shape(field.shape).for_each([&](std::string_view name, int64_t literal) {
      sizes.push_back(literal >= 0 ? literal : size_of(name));
    });
    sample.names.push_back(field.name);
    sample.tensors.push_back(at::rand(sizes).neg());  // decays and rates are below 0
  }
  return sample;
}

// Runs an operator: the tensors by name, None and defaults else.
inline std::vector<at::Tensor> run(const std::string& name,
                                   const std::map<std::string, at::Tensor>& given) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
  std::vector<c10::IValue> stack;
  for (const auto& argument : op.schema().arguments()) {
    const auto at = given.find(argument.name());
    if (at != given.end()) {
      stack.emplace_back(at->second);
    } else {
      stack.push_back(argument.default_value().value_or(c10::IValue()));
    }
  }
  op.callBoxed(stack);
  std::vector<at::Tensor> outputs;
  for (const auto& value : stack)
    outputs.push_back(value.isNone() ? at::Tensor() : value.toTensor());
  return outputs;
}

// Through the dispatcher, gradients are those of the C++ functions' autograd: of every required
// tensor, and of no integer. In float64, which no kernel takes, by the naive form.
inline void expect_gradients(at::Device device, at::ScalarType dtype) {
  at::manual_seed(3);
  for (const Engine* engine : engines()) {
    const std::string name = std::string("heed::") + engine->fields().engine;
    SCOPED_TRACE(name);
    const Sample sample = sample_of(engine->fields());
    std::map<std::string, at::Tensor> given;
    for (size_t i = 0; i < sample.names.size(); ++i) {
      given[sample.names[i]] = sample.tensors[i].to(device, dtype, false, true).requires_grad_();
    }
    const at::Tensor out = run(name, given)[0];
    ASSERT_TRUE(out.requires_grad());
    const at::Tensor weight = at::rand_like(out);
    out.mul(weight).sum().backward();
    std::map<std::string, at::Tensor> plain = given;
    for (auto& [key, t] : plain) t = t.detach();
    const auto outputs = run(name, plain);
    plain["grad_out"] = weight;
    size_t next = 0;
    for (const auto& field : engine->fields().tensors) {
      if (kernel::is_input(field.role)) continue;
      if (engine->fields().traits.keeps_outputs) plain[field.name] = outputs[next];
      ++next;
    }
    const auto grads = run(name + "_backward", plain);
    next = 0;
    for (const auto& field : engine->fields().tensors) {
      if (!kernel::takes_gradient(field.role)) continue;
      const at::Tensor& grad = grads[next++];
      const auto at = given.find(field.name);
      if (at == given.end()) continue;
      ASSERT_TRUE(at->second.grad().defined()) << field.name;
      EXPECT_TRUE(at->second.grad().equal(grad)) << field.name;
      EXPECT_GT(grad.abs().max().item<double>(), 0) << field.name;
    }
  }
}

}  // namespace heed::op::testing
