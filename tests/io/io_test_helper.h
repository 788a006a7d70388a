// What the tests of io/ share: folders that vanish, bytes put together by hand, errors by their
// text.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/error.h"
#include "temp_folder.h"

namespace heed::testing {

inline std::string fixture(const std::string& name) {
  return std::string(HEED_SOURCE_DIR "/tests/io/fixtures/") + name;
}

using test::TempFolder;

inline std::string read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_all(const std::string& path, std::string_view text) {
  std::ofstream(path, std::ios::binary)
      .write(text.data(), static_cast<std::streamsize>(text.size()));
}

// Bytes in the machine's (little-endian) order.
class Bytes {
 public:
  template <typename T>
  Bytes& number(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Bytes& raw(std::string_view text) {
    text_ += text;
    return *this;
  }
  // A GGUF string: its length as uint64, then its bytes.
  Bytes& text(std::string_view text) { return number<uint64_t>(text.size()).raw(text); }
  Bytes& pad(size_t multiple) {
    text_.resize((text_.size() + multiple - 1) / multiple * multiple);
    return *this;
  }
  const std::string& str() const { return text_; }

 private:
  std::string text_;
};

// The text in memory of exactly its size, so that a sanitizer sees every byte read beyond it.
inline std::vector<std::byte> exact(std::string_view text) {
  std::vector<std::byte> out(text.size());
  if (!text.empty()) std::memcpy(out.data(), text.data(), text.size());
  return out;
}

// What `call` throws; "" (and a failed test) if nothing.
inline std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_EQ(text.find('\n'), text.npos) << "an error is one line: " << text;
    EXPECT_LT(text.size(), 1200u) << text;
    return text;
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

inline void expect_error(const std::function<void()>& call,
                         std::initializer_list<std::string> parts) {
  const std::string text = error_of(call);
  for (const std::string& part : parts) {
    EXPECT_NE(text.find(part), text.npos) << "'" << part << "' is not in: " << text;
  }
}

// Calls `parse` on damaged copies of `good`: cut at every length, and `flips` times with random
// bytes changed. It may throw Error; anything else fails the test (and a sanitizer sees the rest).
inline void survive_damage(const std::string& good, int flips,
                           const std::function<void(std::span<const std::byte>)>& parse) {
  const auto attempt = [&](std::string_view text) {
    const std::vector<std::byte> bytes = exact(text);
    try {
      parse(bytes);
    } catch (const Error&) {
    }
  };
  for (size_t length = 0; length < good.size(); ++length) attempt(good.substr(0, length));
  std::mt19937 random(7);
  for (int i = 0; i < flips; ++i) {
    std::string bad = good;
    for (unsigned n = 1 + random() % 3; n > 0; --n) {
      bad[random() % bad.size()] ^= static_cast<char>(1u << random() % 8);
    }
    attempt(bad);
  }
}

}  // namespace heed::testing
