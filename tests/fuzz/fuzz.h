// What the fuzz targets share: a refusal is fine, anything else that leaves a reader is a finding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "io/error.h"

// Undefined behaviour is a finding, not a message. Asked for by the sanitizer's run time; each
// target is one translation unit.
extern "C" __attribute__((used)) const char* __ubsan_default_options() {
  return "halt_on_error=1:print_stacktrace=1";
}
// Readers allocate much: without the stack of every allocation and with a short quarantine they run
// more than twice as fast. Set ASAN_OPTIONS=malloc_context_size=30 to look into a finding.
extern "C" __attribute__((used)) const char* __asan_default_options() {
  return "malloc_context_size=1:quarantine_size_mb=8";
}

namespace heed::fuzz {

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Calls `read`; an Error must be one line.
inline void attempt(const std::function<void()>& read) {
  try {
    read();
  } catch (const Error& error) {
    if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
  }
}

inline void require(bool condition) {
  if (!condition) std::abort();
}

// Reads the first and last byte of what a parser says lies in the input.
inline void touch(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  [[maybe_unused]] static volatile std::byte sink;
  sink = bytes.front();
  sink = bytes.back();
}

}  // namespace heed::fuzz
