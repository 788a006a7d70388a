// The arguments of one call of a filter, test or method, by position and name; and the functions on
// texts and mappings that filters and methods share.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/describe.h"
#include "io/template/interpreter.h"
#include "io/tokenizer/unicode.h"

namespace heed::jinja {

// Positional and named arguments of one call, by name.
class Call {
 public:
  // `skip`: leading positional arguments that are not parameters (a filter's input).
  Call(Machine& machine, const std::string& what, const Arguments& arguments, size_t skip)
      : machine_(machine), what_(what), arguments_(arguments), skip_(skip) {}

  const Value* find(size_t position, std::string_view name) {
    most_ = std::max(most_, position + 1);
    if (!name.empty()) names_.push_back(name);
    if (skip_ + position < arguments_.list.size()) return &arguments_.list[skip_ + position];
    for (const auto& [key, value] : arguments_.named) {
      if (key == name) return &value;
    }
    return nullptr;
  }
  const Value& need(size_t position, std::string_view name) {
    const Value* value = find(position, name);
    if (!value) machine_.fail(fmt::format("{} needs the argument \"{}\"", what_, name));
    return *value;
  }
  std::string text(size_t position, std::string_view name) {
    const Value& value = need(position, name);
    if (!value.is_text()) {
      machine_.fail(
          fmt::format("{}: \"{}\" must be a string, not {}", what_, name, value.type_name()));
    }
    return value.as_text();
  }
  int64_t integer(size_t position, std::string_view name, int64_t fallback) {
    const Value* value = find(position, name);
    if (!value || value->is_none()) return fallback;
    if (!value->is_whole()) {
      machine_.fail(
          fmt::format("{}: \"{}\" must be an integer, not {}", what_, name, value->type_name()));
    }
    return value->as_integer();
  }
  bool flag(size_t position, std::string_view name, bool fallback) {
    const Value* value = find(position, name);
    return value ? value->truth() : fallback;
  }
  char32_t character(size_t position, std::string_view name) {
    const Value* value = find(position, name);
    if (!value) return U' ';
    size_t at = 0;
    const std::string& text = value->is_text() ? value->as_text() : std::string();
    const char32_t c = text.empty() ? U'\0' : unicode::next(text, at);
    if (text.empty() || at != text.size()) {
      machine_.fail(fmt::format("{}: \"{}\" must be one character", what_, name));
    }
    return c;
  }
  // All of them, for functions that pass them on.
  const Arguments& all() {
    takes_all_ = true;
    return arguments_;
  }
  // Error where an argument was given that nobody asked for. Call it last.
  void done() const {
    if (takes_all_) return;
    if (arguments_.list.size() > skip_ + most_) {
      machine_.fail(fmt::format("{} takes at most {} arguments", what_, most_));
    }
    for (const auto& [key, value] : arguments_.named) {
      if (std::find(names_.begin(), names_.end(), key) == names_.end()) {
        machine_.fail(fmt::format("{}: the argument \"{}\" is not known", what_, printable(key)));
      }
    }
  }

 private:
  Machine& machine_;
  std::string what_;
  const Arguments& arguments_;
  size_t skip_, most_ = 0;
  bool takes_all_ = false;
  std::vector<std::string_view> names_;
};

// strings.cc
std::string upper(std::string_view text);
std::string capitalize(std::string_view text);
std::string title(std::string_view text);
// Without white space, or without the characters of `set`, at the ends.
std::string strip(std::string_view text, const std::optional<std::string>& set, bool left,
                  bool right);
// The first `count` places where `from` stands (all where negative).
std::string replace(Machine& machine, const std::string& text, const std::string& from,
                    const std::string& to, int64_t count);
// str.split and rsplit; without a separator (null or none) at runs of white space.
std::vector<std::string> split(Machine& machine, std::string_view text, const Value* separator,
                               int64_t most, bool from_right);
std::vector<std::string> split_lines(std::string_view text, bool keep_ends);
// str.center, ljust, rjust: up to `width` characters of `fill`.
enum class Side { kLeft, kCentre, kRight };
std::string pad(Machine& machine, const std::string& text, int64_t width, char32_t fill, Side side);
int64_t count_characters(std::string_view text);
bool is_blank(char32_t c);
std::string join(Machine& machine, const List& items, const std::string& separator);
std::string escape(const std::string& text);  // for HTML, as MarkupSafe does

// formatting.cc
// Python's `format % values`.
Value format_percent(Machine& machine, const Value& format, const Value& values);
// Python's format.format(...).
Value format_braces(Machine& machine, const Value& format, const Arguments& arguments);

Value pair_list(Machine& machine, const Dict& dict);  // a list of (key, value)

}  // namespace heed::jinja
