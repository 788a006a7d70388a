#include "cli/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <thread>

#include "io/describe.h"
#include "io/error.h"

namespace heed::cli {
namespace {

template <typename T>
bool parse(const std::string& text, T& value) {
  const char* begin = text.data() + (text.starts_with('+') && !text.starts_with("+-") ? 1 : 0);
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(begin, end, value);
  return error == std::errc() && stop == end;
}

template <typename T, typename Fits>
CLI::Validator number(std::string expected, Fits fits) {
  return CLI::Validator(
      [expected, fits](std::string& text) {
        T value{};
        if (parse(text, value) && fits(value)) return std::string();
        return fmt::format("{} was given, {} was expected", printable(text, 40), expected);
      },
      "");
}

}  // namespace

CLI::Validator whole(int64_t low, int64_t high) {
  const bool open = high == std::numeric_limits<int64_t>::max();
  return number<int64_t>(open ? fmt::format("a whole number, {} or more,", low)
                              : fmt::format("a whole number from {} to {}", low, high),
                         [low, high](int64_t value) { return value >= low && value <= high; });
}

CLI::Validator seeds() {
  return number<uint64_t>("a whole number from 0 to 18446744073709551615",
                          [](uint64_t) { return true; });
}

CLI::Validator real(double low, double high, bool above) {
  const bool open = high >= std::numeric_limits<double>::max();
  const std::string expected =
      open    ? fmt::format("a number {} {}", above ? "above" : "from",
                         above ? fmt::format("{:g}", low) : fmt::format("{:g} on", low))
         : above ? fmt::format("a number above {:g} and at most {:g}", low, high)
              : fmt::format("a number from {:g} to {:g}", low, high);
  return number<double>(expected, [low, high, above](double value) {
    return std::isfinite(value) && (above ? value > low : value >= low) && value <= high;
  });
}

int max_threads() {
  return std::max(16, 4 * static_cast<int>(std::thread::hardware_concurrency()));
}

CLI::Validator thread_count() {
  return number<int64_t>(
      fmt::format("a whole number from 0 (all cores) to {} (this machine has {} cores)",
                  max_threads(), std::thread::hardware_concurrency()),
      [](int64_t value) { return value >= 0 && value <= max_threads(); });
}

CLI::Validator input_file() {
  return CLI::Validator(
      [](std::string& path) {
        std::error_code ignored;
        if (path == "-") return std::string();
        if (!std::filesystem::exists(path, ignored)) {
          return fmt::format("{}: there is no such file", printable(path));
        }
        if (std::filesystem::is_directory(path, ignored)) {
          return fmt::format("{}: is a folder; name a file", printable(path));
        }
        return std::string();
      },
      "");
}

void add_examples(CLI::App* command, std::initializer_list<const char*> lines) {
  std::string text = "Examples:";
  for (const char* line : lines) text += std::string("\n  ") + line;
  command->footer(text);
}

void refuse(const CLI::App& command, std::initializer_list<const char*> options,
            const std::string& why) {
  for (const char* name : options) {
    if (command.get_option(name)->count() > 0) throw UsageError("{}: {}", name, why);
  }
}

}  // namespace heed::cli
