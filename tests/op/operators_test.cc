// What torch.ops.heed holds: every file NAME_op.cc registers an operator of its name, with all the
// keys that a user of PyTorch meets.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "op/attend.h"
#include "op/library.h"
#include "op/scan.h"

namespace heed::op {
namespace operators_test {

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

TEST(Operators, HaveEveryDispatchKey) {
  for (const std::string& name : registered_operators()) {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
    for (const auto key : {c10::DispatchKey::CPU, c10::DispatchKey::CUDA, c10::DispatchKey::Meta}) {
      EXPECT_TRUE(op.hasKernelForDispatchKey(key)) << name << " " << c10::toString(key);
    }
  }
}

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
