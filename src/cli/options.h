// Ranges and rules of options, in one place: a command names the range, the message follows.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>

namespace heed::cli {

// Tokens that a sequence may have at most, wherever a command asks for a length.
inline constexpr int64_t kMostTokens = int64_t{1} << 24;

// Whole numbers from `low` to `high`; anything else (a fraction, text, 1e400) is refused before it
// is converted.
CLI::Validator whole(int64_t low, int64_t high = std::numeric_limits<int64_t>::max());
// Whole numbers from 0 to 2^64 - 1.
CLI::Validator seeds();
// Finite numbers from `low` to `high`; `above`: `low` itself is refused.
CLI::Validator real(double low, double high, bool above = false);
// Threads that a command may compute with: 0 (all cores) to max_threads().
CLI::Validator thread_count();
// Four a core and at least 16: more only wait for each other.
int max_threads();
// A file that exists, or "-" for standard input.
CLI::Validator input_file();

// Lines that --help shows after the options; each is run by a test (tests/cli).
void add_examples(CLI::App* command, std::initializer_list<const char*> lines);

// Throws UsageError "NAME: WHY" for the first of `options` that was given.
void refuse(const CLI::App& command, std::initializer_list<const char*> options,
            const std::string& why);

}  // namespace heed::cli
