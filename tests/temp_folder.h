// A folder of a test's own, which goes away with it.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <iterator>
#include <string>
#include <system_error>

namespace heed::test {

class TempFolder {
 public:
  TempFolder() {
    static int made = 0;  // by this process
    do {
      path_ = (std::filesystem::temp_directory_path() /
               ("heed-test-" + std::to_string(::getpid()) + "-" + std::to_string(made++)))
                  .string();
    } while (!std::filesystem::create_directory(path_));  // throws where it cannot be made
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }
  size_t files() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(path_),
                                             std::filesystem::directory_iterator()));
  }

 private:
  std::string path_;
};

}  // namespace heed::test
