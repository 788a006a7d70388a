// include/heed/ewscan.h: its structs follow the lists of fields, and its calls equal the backends.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <sstream>

#include "heed/ewscan.h"
#include "kernel/ewscan/ewscan.h"
#include "kernel/parallel.h"
#include "kernel/scan_helper.h"

namespace heed::kernel::test {
namespace {

// The members of a struct in the header, in order.
std::vector<std::string> members(const std::string& name) {
  std::ifstream file(std::string(HEED_SOURCE_DIR) + "/include/heed/ewscan.h");
  std::vector<std::string> list;
  std::string line;
  bool inside = false;
  while (std::getline(file, line)) {
    if (line == "typedef struct " + name + " {") {
      inside = true;
    } else if (inside && line.starts_with("}")) {
      break;
    } else if (inside && line.starts_with("  heed_view ")) {
      list.push_back(line.substr(12, line.find(';') - 12));
    }
  }
  return list;
}

TEST(EwscanCApi, StructsFollowTheLists) {
  const auto expect = [](const CallFields& fields, const std::string& name) {
    std::vector<std::string> names;
    for (const TensorField& field : fields.tensors) names.push_back(field.name);
    EXPECT_EQ(members(name), names) << name;
  };
  expect(kEwscan, "heed_ewscan_tensors");
  expect(kSelectiveScan, "heed_selective_scan_tensors");
  expect(kLseScan, "heed_lse_scan_tensors");
}

struct Problem {
  Stored x{HEED_FLOAT32, {1, 45, 6}}, dt{HEED_FLOAT32, {1, 45, 6}}, A{HEED_FLOAT32, {6, 4}};
  Stored B{HEED_FLOAT32, {1, 45, 1, 4}}, C{HEED_FLOAT32, {1, 45, 1, 4}};
  Stored out{HEED_FLOAT32, {1, 45, 6}}, out64{HEED_FLOAT64, {1, 45, 6}};
  heed_selective_scan_tensors tensors = {};

  Problem() {
    double value = 0.3;
    for (Stored* s : {&x, &dt, &A, &B, &C}) {
      for (int64_t i = 0; i < s->count(); ++i) {
        value = std::fmod(value * 7.1 + 0.17, 1.0);
        s->set(i, s == &A ? -value : s == &dt ? 0.1 * value : value - 0.5);
      }
    }
    tensors.x = x.view();
    tensors.dt = dt.view();
    tensors.A = A.view();
    tensors.B = B.view();
    tensors.C = C.view();
    tensors.out = out.view();
  }
};

TEST(EwscanCApi, SelectiveScanWithAWorkspaceOfItsSize) {
  Problem p;
  SelectiveCall call;
  std::memcpy(static_cast<void*>(&call.in), &p.tensors, sizeof(p.tensors));
  call.in.out = p.out64.view();
  heed_message error = {};
  ASSERT_EQ(selective_scan_reference(call, HEED_FORWARD, &error), HEED_OK) << error.text;
  ThreadPool pool(2);
  char message[200] = "";
  heed_run run = {};
  run.struct_size = sizeof(run);
  run.parallel = pool.parallel();
  run.message = message;
  run.message_size = sizeof(message);
  const int64_t bytes = heed_selective_scan_workspace(&p.tensors, nullptr, nullptr, &run);
  ASSERT_GT(bytes, 0) << message;
  std::vector<char> workspace(static_cast<size_t>(bytes) + 1, 0x7f);
  run.workspace = workspace.data();
  run.workspace_bytes = bytes;
  ASSERT_EQ(heed_selective_scan(&p.tensors, nullptr, nullptr, &run), HEED_OK) << message;
  EXPECT_EQ(workspace.back(), 0x7f);
  EXPECT_LE(relative_error(p.out.values(), p.out64.values()), 2e-6);
  run.workspace_bytes = bytes - 1;
  EXPECT_EQ(heed_selective_scan(&p.tensors, nullptr, nullptr, &run), HEED_INVALID_ARGUMENT);
  EXPECT_NE(std::string(message).find("the workspace has"), std::string::npos) << message;
}

TEST(EwscanCApi, SaysWhatIsWrong) {
  Problem p;
  char message[200] = "";
  heed_run run = {};
  run.struct_size = sizeof(run);
  run.message = message;
  run.message_size = sizeof(message);
  p.tensors.B = {};
  EXPECT_EQ(heed_selective_scan(&p.tensors, nullptr, nullptr, &run), HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(message, "selective_scan: B [B,T,G,K] is missing");
  EXPECT_EQ(heed_selective_scan_workspace(&p.tensors, nullptr, nullptr, &run), -1);
  EXPECT_EQ(heed_selective_scan(nullptr, nullptr, nullptr, &run), HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(message, "selective_scan: x [B,T,C] is missing");
  run.struct_size = 3;
  EXPECT_EQ(heed_selective_scan(&p.tensors, nullptr, nullptr, &run), HEED_INVALID_ARGUMENT);
  EXPECT_EQ(heed_lse_scan(nullptr, nullptr, nullptr), HEED_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace heed::kernel::test
