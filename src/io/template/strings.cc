// Functions on texts that filters and methods share. Behaviour: Python's own.
#include <utf8proc.h>

#include <algorithm>
#include <optional>

#include "io/template/call.h"
#include "io/template/interpreter.h"
#include "io/tokenizer/unicode.h"

namespace heed::jinja {

std::string upper(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = unicode::next(text, at);
    if (c == 0xDF) {
      out += "SS";
    } else {
      unicode::append(out,
                      static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
    }
  }
  return out;
}

std::string capitalize(std::string_view text) {
  size_t at = 0;
  if (text.empty()) return "";
  unicode::next(text, at);
  return upper(text.substr(0, at)) + unicode::lower(text.substr(at));
}

// Every run of letters with a capital first.
std::string title(std::string_view text) {
  std::string out;
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    const char32_t c = unicode::next(text, at);
    const std::string_view character = text.substr(start, at - start);
    out += inside ? unicode::lower(character) : upper(character);
    inside = unicode::is_letter(c);
  }
  return out;
}

bool is_blank(char32_t c) { return unicode::is_whitespace(c) || (c >= 0x1C && c <= 0x1F); }

// str.strip: white space, or the characters of `set`.
std::string strip(std::string_view text, const std::optional<std::string>& set, bool left,
                  bool right) {
  const auto strips = [&](std::string_view character) {
    if (set) return set->find(character) != std::string::npos;
    size_t at = 0;
    return is_blank(unicode::next(character, at));
  };
  while (left && !text.empty()) {
    size_t at = 0;
    unicode::next(text, at);
    if (!strips(text.substr(0, at))) break;
    text.remove_prefix(at);
  }
  while (right && !text.empty()) {
    size_t at = text.size() - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    if (!strips(text.substr(at))) break;
    text.remove_suffix(text.size() - at);
  }
  return std::string(text);
}

std::string replace(Machine& machine, const std::string& text, const std::string& from,
                    const std::string& to, int64_t count) {
  std::string out;
  size_t at = 0;
  if (from.empty()) {  // between all characters
    for (const Value& c : characters(machine, text)) {
      if (count-- == 0) break;
      machine.charge(static_cast<int64_t>(to.size()));
      out += to + c.as_text();
      at += c.as_text().size();
    }
    if (count != 0 && at == text.size()) out += to;
    return out + text.substr(at);
  }
  for (size_t found; count != 0 && (found = text.find(from, at)) != std::string::npos; --count) {
    machine.charge(static_cast<int64_t>(to.size()));
    out.append(text, at, found - at);
    out += to;
    at = found + from.size();
  }
  return out.append(text, at);
}

namespace {

// Where the word that ends (begins) the text begins (ends).
size_t word_edge(std::string_view text, bool from_right) {
  size_t edge = from_right ? text.size() : 0;
  if (!from_right) {
    for (size_t at = 0; at < text.size(); edge = at) {
      if (is_blank(unicode::next(text, at))) return edge;
    }
    return text.size();
  }
  while (edge > 0) {
    size_t start = edge - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    size_t at = start;
    if (is_blank(unicode::next(text, at))) break;
    edge = start;
  }
  return edge;
}

// Words, from the side where counting starts.
std::vector<std::string> split_words(Machine& machine, std::string_view text, int64_t most,
                                     bool from_right) {
  std::vector<std::string> parts;
  while (true) {
    const std::string rest = strip(text, std::nullopt, !from_right, from_right);
    if (rest.empty()) break;
    if (most-- == 0) {
      parts.push_back(rest);
      break;
    }
    machine.charge(static_cast<int64_t>(rest.size()));
    text = text.substr(from_right ? 0 : text.size() - rest.size(), rest.size());
    const size_t cut = word_edge(text, from_right);
    parts.emplace_back(from_right ? text.substr(cut) : text.substr(0, cut));
    text = from_right ? text.substr(0, cut) : text.substr(cut);
  }
  return parts;
}

}  // namespace

std::vector<std::string> split(Machine& machine, std::string_view text, const Value* separator,
                               int64_t most, bool from_right) {
  std::vector<std::string> parts;
  if (!separator || separator->is_none()) {
    parts = split_words(machine, text, most, from_right);
  } else {
    if (!separator->is_text() || separator->as_text().empty()) {
      machine.fail("split: the separator must be a string that is not empty");
    }
    const std::string& by = separator->as_text();
    while (most-- != 0) {
      const size_t found = from_right ? text.rfind(by) : text.find(by);
      if (found == std::string_view::npos) break;
      machine.charge();
      const std::string_view before = text.substr(0, found),
                             behind = text.substr(found + by.size());
      parts.emplace_back(from_right ? behind : before);
      text = from_right ? before : behind;
    }
    parts.emplace_back(text);
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string> out;
  size_t start = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    const char32_t c = unicode::next(text, at);
    const bool breaks = (c >= 0xA && c <= 0xD) || (c >= 0x1C && c <= 0x1E) || c == 0x85 ||
                        c == 0x2028 || c == 0x2029;
    if (!breaks) continue;
    if (c == '\r' && at < text.size() && text[at] == '\n') ++at;
    out.emplace_back(text.substr(start, (keep_ends ? at : end) - start));
    start = at;
  }
  if (start < text.size()) out.emplace_back(text.substr(start));
  return out;
}

std::string pad(Machine& machine, const std::string& text, int64_t width, char32_t fill,
                Side side) {
  const int64_t missing = width - count_characters(text);
  if (missing <= 0) return text;
  machine.charge(missing > (int64_t{1} << 40) ? missing : missing * 4);
  // Python puts the odd one in front where the width is odd.
  const int64_t left = side == Side::kLeft    ? 0
                       : side == Side::kRight ? missing
                                              : missing / 2 + (missing & width & 1);
  std::string out;
  for (int64_t i = 0; i < left; ++i) unicode::append(out, fill);
  out += text;
  for (int64_t i = left; i < missing; ++i) unicode::append(out, fill);
  return out;
}

int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

std::string join(Machine& machine, const List& items, const std::string& separator) {
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    const std::string part = items[i].str();
    machine.charge(static_cast<int64_t>(part.size() + separator.size()));
    if (i) out += separator;
    out += part;
  }
  return out;
}

std::string escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

}  // namespace heed::jinja
