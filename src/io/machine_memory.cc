// See machine_memory.h. Files: proc(5), cgroups(7); limits of a group's parents hold for it too.
#include "io/machine_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string_view>

namespace heed {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

// A file that holds a number alone; kNone for "max" and for a file that is not there.
int64_t read_limit(const fs::path& file) {
  std::ifstream in(file);
  int64_t limit = 0;
  return in >> limit && limit > 0 ? limit : kNone;
}

// The least limit of a group and its parents.
int64_t group_limit(const fs::path& mount, const std::string& group, const char* file) {
  int64_t least = read_limit(mount / file);
  fs::path folder = mount;
  for (const fs::path& part : fs::path(group).relative_path()) {
    if (part == "..") break;  // a group outside this mount
    folder /= part;
    least = std::min(least, read_limit(folder / file));
  }
  return least;
}

}  // namespace

int64_t machine_memory(const std::string& root) {
  const fs::path base(root);
  int64_t least = kNone;
  std::ifstream meminfo(base / "proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    if (!line.starts_with("MemTotal:")) continue;
    const int64_t kib = std::strtoll(line.c_str() + line.find(':') + 1, nullptr, 10);
    if (kib > 0 && kib < kNone / 1024) least = kib * 1024;
    break;
  }
  // "0::/a/b" (version 2) or "4:memory:/a/b" (version 1).
  std::ifstream groups(base / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string group = line.substr(second + 1);
    const fs::path mount = base / "sys/fs/cgroup";
    if (controllers == ",,") {
      least = std::min(least, group_limit(mount, group, "memory.max"));
    } else if (controllers.find(",memory,") != std::string::npos) {
      least = std::min(least, group_limit(mount / "memory", group, "memory.limit_in_bytes"));
    }
  }
  return least == kNone ? 0 : least;
}

std::string bytes_text(double bytes) {
  static constexpr std::string_view kUnits[] = {"kB", "MB", "GB", "TB", "PB", "EB"};
  size_t unit = 0;
  double value = bytes / 1e3;
  for (; value >= 999.95 && unit + 1 < std::size(kUnits); ++unit) value /= 1e3;
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

}  // namespace heed
