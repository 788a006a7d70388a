#include "io/machine_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace heed {
namespace {

namespace fs = std::filesystem;

// A folder that stands for "/".
class MachineMemory : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("heed-memory-" + std::to_string(::getpid()));
    fs::remove_all(root_);
  }
  void TearDown() override { fs::remove_all(root_); }
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
  }
  int64_t told() const { return machine_memory(root_.string()); }

  fs::path root_;
};

TEST_F(MachineMemory, IsTheRamOrTheLowestLimit) {
  EXPECT_EQ(told(), 0);
  write("proc/meminfo", "MemTotal:       24684084 kB\nMemFree:        20993092 kB\n");
  EXPECT_EQ(told(), int64_t{24684084} * 1024);
  write("proc/self/cgroup", "0::/user/shell\n");
  write("sys/fs/cgroup/user/shell/memory.max", "max\n");
  EXPECT_EQ(told(), int64_t{24684084} * 1024);
  write("sys/fs/cgroup/user/memory.max", "4000000000\n");
  EXPECT_EQ(told(), 4000000000);
  write("sys/fs/cgroup/user/shell/memory.max", "3000000000\n");
  EXPECT_EQ(told(), 3000000000);
}

TEST_F(MachineMemory, ReadsTheFirstVersionOfGroups) {
  write("proc/meminfo", "MemTotal: 8000000 kB\n");
  write("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/box\n0::/\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(told(), int64_t{8000000} * 1024);
  write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "1000000\n");
  EXPECT_EQ(told(), 1000000);
}

TEST_F(MachineMemory, IsToldByThisMachine) { EXPECT_GT(machine_memory(), 1 << 20); }

TEST(BytesText, PicksAUnit) {
  EXPECT_EQ(bytes_text(25.27e9), "25.3 GB");
  EXPECT_EQ(bytes_text(999.99e9), "1.0 TB");
  EXPECT_EQ(bytes_text(2e21), "2000.0 EB");
}

}  // namespace
}  // namespace heed
