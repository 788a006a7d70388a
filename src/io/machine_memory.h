// How much memory this process may use.
#pragma once

#include <cstdint>
#include <string>

namespace heed {

// Bytes: the machine's RAM, or the limit of a control group (of either version) that the process is
// in, where that is lower. 0 where the system does not tell. `root`: the folder that /proc and /sys
// lie in.
int64_t machine_memory(const std::string& root = "/");

// "25.3 GB".
std::string bytes_text(double bytes);

}  // namespace heed
