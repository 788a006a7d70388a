// What torch.ops.heed holds: every file NAME_op.cc registers an operator of its name, with all the
// keys that a user of PyTorch meets.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "kernel/call/check.h"
#include "op/attend.h"
#include "op/dispatch.h"
#include "op/library.h"
#include "op/operators_helper.h"
#include "op/scan.h"

namespace heed::op {
namespace operators_test {

using testing::expect_gradients;
using testing::run;
using testing::Sample;
using testing::sample_of;

TEST(Operators, EveryFileRegistersItsOperator) {
  const auto names = registered_operators();
  std::vector<std::string> files;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(HEED_SOURCE_DIR) + "/src/op")) {
    const std::string file = entry.path().filename().string();
    if (!file.ends_with("_op.cc")) continue;
    const std::string name = "heed::" + file.substr(0, file.size() - 6);
    EXPECT_TRUE(std::binary_search(names.begin(), names.end(), name)) << name;
    files.push_back(name);
  }
  // ewscan_op.cc holds the other two scans of its engine.
  for (const char* name : {"heed::selective_scan", "heed::lse_scan"}) {
    EXPECT_TRUE(std::binary_search(names.begin(), names.end(), name)) << name;
    files.push_back(name);
  }
  // And no operator comes from anywhere else: attend_backward is of attend_op.cc, say.
  for (const std::string& name : names) {
    EXPECT_TRUE(std::any_of(files.begin(), files.end(), [&](const std::string& file) {
      return name == file || name.starts_with(file + "_");
    })) << name;
  }
  // The dispatcher knows these and no others.
  std::vector<std::string> known;
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.name.starts_with("heed::")) known.push_back(name.name);
  }
  std::sort(known.begin(), known.end());
  EXPECT_EQ(known, names);
}

// Every operator has a kernel of its own for each key, none that falls through to another; what is
// called by its plain name is differentiable.
TEST(Operators, HaveEveryDispatchKey) {
  using c10::DispatchKey;
  for (const std::string& name : registered_operators()) {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
    std::vector<DispatchKey> keys = {DispatchKey::CPU, DispatchKey::CUDA, DispatchKey::Meta};
    const bool pass =
        name.ends_with("_forward") || name.ends_with("_backward") || name.ends_with("_step");
    if (!pass) keys.push_back(DispatchKey::Autograd);
    for (const DispatchKey key : keys) {
      EXPECT_TRUE(op.hasKernelForDispatchKey(key)) << name << " " << c10::toString(key);
    }
  }
  // All passes of every engine are there.
  const auto names = registered_operators();
  for (const Engine* engine : engines()) {
    std::vector<std::string> suffixes = {"", "_forward", "_backward"};
    if (engine->fields().traits.steps) suffixes.emplace_back("_step");
    for (const std::string& suffix : suffixes) {
      const std::string name = std::string("heed::") + engine->fields().engine + suffix;
      EXPECT_TRUE(std::binary_search(names.begin(), names.end(), name)) << name;
    }
  }
}

std::string describe(const std::vector<at::Tensor>& tensors) {
  std::string text;
  for (const at::Tensor& t : tensors) {
    text += t.defined() ? fmt::format("[{}] {}; ", fmt::join(t.sizes(), ","),
                                      c10::toString(t.scalar_type()))
                        : "none; ";
  }
  return text;
}

// What the compiler of PyTorch is told of an operator is what a call gives: sizes and dtypes of the
// results of forward and backward, in every dtype.
TEST(Operators, ShapesWithoutNumbersAreThoseOfACall) {
  at::manual_seed(2);
  for (const Engine* engine : engines()) {
    const std::string name = std::string("heed::") + engine->fields().engine;
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
      SCOPED_TRACE(name + " " + c10::toString(dtype));
      const Sample sample = sample_of(engine->fields());
      std::map<std::string, at::Tensor> real, meta;
      for (size_t i = 0; i < sample.names.size(); ++i) {
        const auto& field = engine->fields().tensors[engine->fields().find(sample.names[i])];
        const bool wide = dtype == at::kDouble;
        const at::Tensor t =
            sample.tensors[i].to(kernel::is_token(field.role) || wide ? dtype : at::kFloat);
        real[sample.names[i]] = t;
        meta[sample.names[i]] = t.to(at::kMeta);
      }
      const auto plain = run(name, real), plain_meta = run(name, meta);
      EXPECT_EQ(describe(plain), describe(plain_meta));
      auto forward = run(name + "_forward", real);
      forward.pop_back();  // what the backend keeps, which only the call knows
      EXPECT_EQ(describe(forward), describe(plain));
      size_t next = 0;
      for (const auto& field : engine->fields().tensors) {
        if (kernel::is_input(field.role)) continue;
        const at::Tensor& out = plain[next++];
        if (!out.defined()) continue;
        const std::string grad = std::string("grad_") + field.name;
        real[grad] = at::ones_like(out);
        meta[grad] = real[grad].to(at::kMeta);
        if (!engine->fields().traits.keeps_outputs) continue;
        real[field.name] = out;
        meta[field.name] = out.to(at::kMeta);
      }
      const auto grads = run(name + "_backward", real);
      EXPECT_EQ(describe(grads), describe(run(name + "_backward", meta)));
      for (size_t i = 0; i < grads.size(); ++i) {
        EXPECT_TRUE(!grads[i].defined() || grads[i].isfinite().all().item<bool>()) << i;
      }
    }
  }
}

TEST(Operators, AreDifferentiable) { expect_gradients(at::kCPU, at::kFloat); }
TEST(Operators, NaiveFormsAreDifferentiable) { expect_gradients(at::kCPU, at::kDouble); }

TEST(Operators, AttendThroughTheDispatcher) {
  at::manual_seed(1);
  const at::Tensor q = at::randn({1, 12, 4, 8}), k = at::randn({1, 12, 2, 8}),
                   v = at::randn({1, 12, 2, 8});
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("heed::attend", "");
  std::vector<c10::IValue> stack = {q, k, v};
  for (size_t i = 3; i < op.schema().arguments().size(); ++i) {
    const auto& argument = op.schema().arguments()[i];
    stack.push_back(argument.name() == "causal" ? c10::IValue(true) : *argument.default_value());
  }
  op.callBoxed(stack);
  AttendOptions o;
  o.causal = true;
  EXPECT_TRUE(stack[0].toTensor().equal(std::get<0>(attend(q, k, v, o))));

  std::vector<c10::IValue> meta = {q.to(at::kMeta), k.to(at::kMeta), v.to(at::kMeta)};
  for (size_t i = 3; i < op.schema().arguments().size(); ++i) {
    meta.push_back(*op.schema().arguments()[i].default_value());
  }
  op.callBoxed(meta);
  EXPECT_EQ(meta[0].toTensor().sizes(), q.sizes());
}

}  // namespace operators_test
}  // namespace heed::op
