// The methods of strings, lists and mappings that chat templates call. Behaviour: Python's own.
#include <utf8proc.h>

#include <algorithm>
#include <map>
#include <optional>

#include "io/describe.h"
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

static bool is_blank(char32_t c) { return unicode::is_whitespace(c) || (c >= 0x1C && c <= 0x1F); }

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

// str.split and rsplit; without a separator at runs of white space.
static List split(Machine& machine, std::string_view text, const Value* separator, int64_t most,
                  bool from_right) {
  std::vector<std::string> parts;
  if (!separator || separator->is_none()) {
    // Words, from the side where counting starts.
    while (true) {
      const std::string rest = strip(text, std::nullopt, !from_right, from_right);
      if (rest.empty()) break;
      if (most == 0) {
        parts.push_back(strip(text, std::nullopt, true, !from_right ? false : true));
        if (from_right) parts.back() = strip(text, std::nullopt, false, true);
        break;
      }
      --most;
      machine.charge(static_cast<int64_t>(rest.size()));
      text = text.substr(from_right ? 0 : text.size() - rest.size(), rest.size());
      size_t cut = from_right ? text.size() : 0;
      if (from_right) {
        while (cut > 0) {
          size_t start = cut - 1;
          while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
          size_t at = start;
          if (is_blank(unicode::next(text, at))) break;
          cut = start;
        }
        parts.emplace_back(text.substr(cut));
        text = text.substr(0, cut);
      } else {
        for (size_t at = 0; at < text.size(); cut = at) {
          if (is_blank(unicode::next(text, at))) break;
        }
        parts.emplace_back(text.substr(0, cut));
        text = text.substr(cut);
      }
    }
  } else {
    if (!separator->is_text() || separator->as_text().empty()) {
      machine.fail("split: the separator must be a string that is not empty");
    }
    const std::string& by = separator->as_text();
    while (most-- != 0) {
      const size_t found = from_right ? text.rfind(by) : text.find(by);
      if (found == std::string_view::npos) break;
      machine.charge();
      if (from_right) {
        parts.emplace_back(text.substr(found + by.size()));
        text = text.substr(0, found);
      } else {
        parts.emplace_back(text.substr(0, found));
        text = text.substr(found + by.size());
      }
    }
    parts.emplace_back(text);
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  List out;
  for (std::string& part : parts) out.push_back(machine.text(std::move(part)));
  return out;
}

static List split_lines(Machine& machine, std::string_view text, bool keep_ends) {
  List out;
  size_t start = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    const char32_t c = unicode::next(text, at);
    const bool breaks = (c >= 0xA && c <= 0xD) || (c >= 0x1C && c <= 0x1E) || c == 0x85 ||
                        c == 0x2028 || c == 0x2029;
    if (!breaks) continue;
    if (c == '\r' && at < text.size() && text[at] == '\n') ++at;
    out.push_back(machine.text(std::string(text.substr(start, (keep_ends ? at : end) - start))));
    start = at;
  }
  if (start < text.size()) out.push_back(machine.text(std::string(text.substr(start))));
  return out;
}

// Does the text begin (end) with the argument, or with one of a tuple of them?
static bool affix(Machine& machine, const std::string& text, const Value& wanted, bool at_end) {
  const auto fits = [&](const Value& v) {
    if (!v.is_text()) machine.fail("startswith and endswith take strings");
    return at_end ? text.ends_with(v.as_text()) : text.starts_with(v.as_text());
  };
  if (!wanted.is_tuple()) return fits(wanted);
  return std::any_of(wanted.as_list().begin(), wanted.as_list().end(), fits);
}

template <typename Property>
static bool all_characters(std::string_view text, Property&& property) {
  for (size_t at = 0; at < text.size();) {
    if (!property(unicode::next(text, at))) return false;
  }
  return !text.empty();
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

using TextMethod = Value (*)(Machine&, const std::string&, Call&);

static const std::map<std::string_view, TextMethod>& text_methods() {
  static const auto stripped = [](Machine& m, const std::string& s, Call& c, bool l, bool r) {
    const Value* set = c.find(0, "chars");
    return m.text(set && set->is_text() ? strip(s, set->as_text(), l, r)
                                        : strip(s, std::nullopt, l, r));
  };
  static const auto found = [](const std::string& s, Call& c, bool last) {
    const std::string wanted = c.text(0, "sub");
    const size_t at = last ? s.rfind(wanted) : s.find(wanted);
    return Value::integer(at == std::string::npos ? -1 : count_characters(s.substr(0, at)));
  };
  static const std::map<std::string_view, TextMethod> methods = {
      {"strip",
       [](Machine& m, const std::string& s, Call& c) { return stripped(m, s, c, true, true); }},
      {"lstrip",
       [](Machine& m, const std::string& s, Call& c) { return stripped(m, s, c, true, false); }},
      {"rstrip",
       [](Machine& m, const std::string& s, Call& c) { return stripped(m, s, c, false, true); }},
      {"upper", [](Machine& m, const std::string& s, Call&) { return m.text(upper(s)); }},
      {"lower", [](Machine& m, const std::string& s, Call&) { return m.text(unicode::lower(s)); }},
      {"title", [](Machine& m, const std::string& s, Call&) { return m.text(title(s)); }},
      {"capitalize", [](Machine& m, const std::string& s, Call&) { return m.text(capitalize(s)); }},
      {"split",
       [](Machine& m, const std::string& s, Call& c) {
         const Value* by = c.find(0, "sep");
         return m.list(split(m, s, by, c.integer(1, "maxsplit", -1), false));
       }},
      {"rsplit",
       [](Machine& m, const std::string& s, Call& c) {
         const Value* by = c.find(0, "sep");
         return m.list(split(m, s, by, c.integer(1, "maxsplit", -1), true));
       }},
      {"splitlines",
       [](Machine& m, const std::string& s, Call& c) {
         return m.list(split_lines(m, s, c.flag(0, "keepends", false)));
       }},
      {"startswith",
       [](Machine& m, const std::string& s, Call& c) {
         return Value::boolean(affix(m, s, c.need(0, "prefix"), false));
       }},
      {"endswith", [](Machine& m, const std::string& s,
                      Call& c) { return Value::boolean(affix(m, s, c.need(0, "suffix"), true)); }},
      {"removeprefix",
       [](Machine& m, const std::string& s, Call& c) {
         const std::string prefix = c.text(0, "prefix");
         return m.text(s.starts_with(prefix) ? s.substr(prefix.size()) : s);
       }},
      {"removesuffix",
       [](Machine& m, const std::string& s, Call& c) {
         const std::string suffix = c.text(0, "suffix");
         return m.text(s.ends_with(suffix) ? s.substr(0, s.size() - suffix.size()) : s);
       }},
      {"replace",
       [](Machine& m, const std::string& s, Call& c) {
         const std::string from = c.text(0, "old"), to = c.text(1, "new");
         return m.text(replace(m, s, from, to, c.integer(2, "count", -1)));
       }},
      {"find", [](Machine&, const std::string& s, Call& c) { return found(s, c, false); }},
      {"rfind", [](Machine&, const std::string& s, Call& c) { return found(s, c, true); }},
      {"count",
       [](Machine& m, const std::string& s, Call& c) {
         const std::string wanted = c.text(0, "sub");
         if (wanted.empty()) return Value::integer(count_characters(s) + 1);
         int64_t n = 0;
         for (size_t at = 0; (at = s.find(wanted, at)) != std::string::npos; at += wanted.size()) {
           ++n;
         }
         return Value::integer(n);
       }},
      {"join",
       [](Machine& m, const std::string& s, Call& c) {
         const List items = iterate(m, c.need(0, "iterable"));
         for (const Value& v : items) {
           if (!v.is_text())
             m.fail(fmt::format("join: found {} instead of a string", v.type_name()));
         }
         return m.text(join(m, items, s));
       }},
      {"isdigit",
       [](Machine&, const std::string& s, Call&) {
         return Value::boolean(all_characters(s, [](char32_t c) { return c >= '0' && c <= '9'; }));
       }},
      {"isalpha", [](Machine&, const std::string& s,
                     Call&) { return Value::boolean(all_characters(s, unicode::is_letter)); }},
      {"isspace", [](Machine&, const std::string& s,
                     Call&) { return Value::boolean(all_characters(s, is_blank)); }},
      {"isupper", [](Machine&, const std::string& s,
                     Call&) { return Value::boolean(s == upper(s) && s != unicode::lower(s)); }},
      {"islower", [](Machine&, const std::string& s,
                     Call&) { return Value::boolean(s == unicode::lower(s) && s != upper(s)); }},
  };
  return methods;
}

Value pair_list(Machine& machine, const Dict& dict) {
  List out;
  for (const auto& [key, value] : dict.entries) {
    out.push_back(machine.list({Value::text(key), value}, true));
  }
  return machine.list(std::move(out));
}

static Value dict_method(Machine& machine, const Value& object, const std::string& name) {
  Machine* m = &machine;
  const auto bind = [&](auto&& body) {
    return Value::function([m, object, name, body](const Arguments& arguments) {
      Call call(*m, name + "()", arguments, 0);
      Value result = body(*m, object.as_dict(), call);
      call.done();
      return result;
    });
  };
  if (name == "items") {
    return bind([](Machine& m, const Dict& d, Call&) { return pair_list(m, d); });
  }
  if (name == "keys" || name == "values") {
    const bool keys = name == "keys";
    return bind([keys](Machine& m, const Dict& d, Call&) {
      List out;
      for (const auto& [key, value] : d.entries) out.push_back(keys ? Value::text(key) : value);
      return m.list(std::move(out));
    });
  }
  if (name == "get") {
    return bind([](Machine&, const Dict& d, Call& c) {
      const Value& key = c.need(0, "key");
      const Value* fallback = c.find(1, "default");
      const Value* found = key.is_text() ? d.find(key.as_text()) : nullptr;
      return found ? *found : fallback ? *fallback : Value::none();
    });
  }
  for (const char* blocked : {"update", "pop", "popitem", "clear", "setdefault"}) {
    if (name == blocked) machine.fail("a template must not change a mapping: " + name + "()");
  }
  return Value::undefined(name);
}

Value method(Machine& machine, const Value& object, const std::string& name) {
  if (object.is_dict() && !object.as_dict().is_namespace) return dict_method(machine, object, name);
  Machine* m = &machine;
  if (object.is_text()) {
    const auto found = text_methods().find(name);
    if (found == text_methods().end()) {
      for (const char* known :
           {"center",      "casefold",   "encode",   "expandtabs", "format",       "format_map",
            "index",       "isalnum",    "isascii",  "isdecimal",  "isidentifier", "isnumeric",
            "isprintable", "istitle",    "ljust",    "maketrans",  "partition",    "rindex",
            "rjust",       "rpartition", "swapcase", "translate",  "zfill"}) {
        if (name != known) continue;
        machine.fail(fmt::format("the method \"{}\" of strings is not supported", name));
      }
      return Value::undefined(name);
    }
    return Value::function([m, object, name, body = found->second](const Arguments& arguments) {
      Call call(*m, name + "()", arguments, 0);
      Value result = body(*m, object.as_text(), call);
      call.done();
      return result;
    });
  }
  if (object.is_list() && (name == "index" || name == "count")) {
    const bool counts = name == "count";
    return Value::function([m, object, counts](const Arguments& arguments) {
      if (arguments.list.size() != 1) m->fail("index and count of a list take one value");
      int64_t n = 0;
      for (const Value& v : object.as_list()) {
        const bool same = v.equals(arguments.list[0]);
        if (same && !counts) return Value::integer(n);
        n += counts ? same : 1;
      }
      if (!counts) m->fail("a value is not in the list");
      return Value::integer(n);
    });
  }
  if (object.is_list()) {
    for (const char* blocked : {"append", "extend", "insert", "pop", "remove", "sort", "reverse"}) {
      if (name == blocked) machine.fail("a template must not change a list: " + name + "()");
    }
  }
  return Value::undefined(name);
}

}  // namespace heed::jinja
