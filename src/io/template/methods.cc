// The methods of strings, lists and mappings that chat templates call. Behaviour: Python's own.
#include <algorithm>
#include <optional>

#include "io/describe.h"
#include "io/template/call.h"
#include "io/template/interpreter.h"
#include "io/tokenizer/unicode.h"

namespace heed::jinja {

namespace {

// Does the text begin (end) with the argument, or with one of a tuple of them?
bool affix(Machine& machine, const std::string& text, const Value& wanted, bool at_end) {
  const auto fits = [&](const Value& v) {
    if (!v.is_text()) machine.fail("startswith and endswith take strings");
    return at_end ? text.ends_with(v.as_text()) : text.starts_with(v.as_text());
  };
  if (!wanted.is_tuple()) return fits(wanted);
  return std::any_of(wanted.as_list().begin(), wanted.as_list().end(), fits);
}

template <typename Property>
Value all_characters(std::string_view text, Property&& property) {
  for (size_t at = 0; at < text.size();) {
    if (!property(unicode::next(text, at))) return Value::boolean(false);
  }
  return Value::boolean(!text.empty());
}

Value stripped(Machine& m, const Value& s, Call& c, bool left, bool right) {
  const Value* set = c.find(0, "chars");
  return m.text_like(s, set && set->is_text() ? strip(s.as_text(), set->as_text(), left, right)
                                              : strip(s.as_text(), std::nullopt, left, right));
}

Value list_like(Machine& m, const Value& s, std::vector<std::string> parts) {
  List out;
  for (std::string& part : parts) out.push_back(m.text_like(s, std::move(part)));
  return m.list(std::move(out));
}

Value split_method(Machine& m, const Value& s, Call& c, bool from_right) {
  const Value* by = c.find(0, "sep");
  return list_like(m, s, split(m, s.as_text(), by, c.integer(1, "maxsplit", -1), from_right));
}

// find, rfind, index, rindex: a place in characters, -1 where there is none.
Value place(const Value& s, Call& c, bool last) {
  const std::string wanted = c.text(0, "sub");
  const std::string& text = s.as_text();
  const size_t at = last ? text.rfind(wanted) : text.find(wanted);
  return Value::integer(at == std::string::npos ? -1 : count_characters(text.substr(0, at)));
}
Value needed_place(Machine& m, const Value& s, Call& c, bool last) {
  Value found = place(s, c, last);
  if (found.as_integer() < 0) m.fail("index: the string does not hold what was looked for");
  return found;
}

Value partition(Machine& m, const Value& s, Call& c, bool last) {
  const std::string by = c.text(0, "sep");
  const std::string& text = s.as_text();
  if (by.empty()) m.fail("partition: the separator must not be empty");
  const size_t at = last ? text.rfind(by) : text.find(by);
  std::string parts[3] = {last ? "" : text, "", last ? text : ""};
  if (at != std::string::npos) {
    parts[0] = text.substr(0, at);
    parts[1] = by;
    parts[2] = text.substr(at + by.size());
  }
  return m.list({m.text_like(s, parts[0]), m.text_like(s, parts[1]), m.text_like(s, parts[2])},
                true);
}

Value padded(Machine& m, const Value& s, Call& c, Side side) {
  const int64_t width = c.integer(0, "width", 0);
  return m.text_like(s, pad(m, s.as_text(), width, c.character(1, "fillchar"), side));
}

Value zero_filled(Machine& m, const Value& s, Call& c) {
  const std::string& text = s.as_text();
  const bool sign = text.starts_with('-') || text.starts_with('+');
  const int64_t width = c.integer(0, "width", 0) - (sign ? 1 : 0);
  return m.text_like(s,
                     text.substr(0, sign) + pad(m, text.substr(sign), width, U'0', Side::kRight));
}

// What is put into markup is escaped.
std::string beside(const Value& s, const std::string& other) {
  return s.is_markup() ? escape(other) : other;
}

Value replaced(Machine& m, const Value& s, Call& c) {
  const std::string from = c.text(0, "old"), to = c.text(1, "new");
  const int64_t count = c.integer(2, "count", -1);
  return m.text_like(s, replace(m, s.as_text(), from, beside(s, to), count));
}

Value counted(const Value& s, Call& c) {
  const std::string wanted = c.text(0, "sub");
  const std::string& text = s.as_text();
  if (wanted.empty()) return Value::integer(count_characters(text) + 1);
  int64_t n = 0;
  for (size_t at = 0; (at = text.find(wanted, at)) != std::string::npos; at += wanted.size()) ++n;
  return Value::integer(n);
}

Value joined(Machine& m, const Value& s, Call& c) {
  List items = iterate(m, c.need(0, "iterable"));
  for (Value& v : items) {
    if (!v.is_text()) m.fail(fmt::format("join: found {} instead of a string", v.type_name()));
    if (s.is_markup() && !v.is_markup()) v = Value::text(escape(v.as_text()));
  }
  return m.text_like(s, join(m, items, s.as_text()));
}

Value without_affix(Machine& m, const Value& s, Call& c, bool prefix) {
  const std::string affix = c.text(0, prefix ? "prefix" : "suffix");
  const std::string& text = s.as_text();
  const bool has = prefix ? text.starts_with(affix) : text.ends_with(affix);
  if (!has) return s;
  return m.text_like(
      s, prefix ? text.substr(affix.size()) : text.substr(0, text.size() - affix.size()));
}

std::string swap_case(const std::string& text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    unicode::next(text, at);
    const std::string c = text.substr(start, at - start), small = unicode::lower(c);
    out += c == small ? upper(c) : small;
  }
  return out;
}

using TextMethod = Value (*)(Machine&, const Value&, Call&);
struct TextRow {
  std::string_view name;
  TextMethod run;
};

constexpr TextRow kTextMethods[] = {
    {"strip", [](Machine& m, const Value& s, Call& c) { return stripped(m, s, c, true, true); }},
    {"lstrip", [](Machine& m, const Value& s, Call& c) { return stripped(m, s, c, true, false); }},
    {"rstrip", [](Machine& m, const Value& s, Call& c) { return stripped(m, s, c, false, true); }},
    {"upper", [](Machine& m, const Value& s, Call&) { return m.text_like(s, upper(s.as_text())); }},
    {"lower",
     [](Machine& m, const Value& s, Call&) { return m.text_like(s, unicode::lower(s.as_text())); }},
    {"casefold",
     [](Machine& m, const Value& s, Call&) {
       const std::string small = unicode::lower(s.as_text());
       return m.text_like(s, replace(m, small, "ß", "ss", -1));
     }},
    {"title", [](Machine& m, const Value& s, Call&) { return m.text_like(s, title(s.as_text())); }},
    {"capitalize",
     [](Machine& m, const Value& s, Call&) { return m.text_like(s, capitalize(s.as_text())); }},
    {"swapcase",
     [](Machine& m, const Value& s, Call&) { return m.text_like(s, swap_case(s.as_text())); }},
    {"split", [](Machine& m, const Value& s, Call& c) { return split_method(m, s, c, false); }},
    {"rsplit", [](Machine& m, const Value& s, Call& c) { return split_method(m, s, c, true); }},
    {"splitlines",
     [](Machine& m, const Value& s, Call& c) {
       return list_like(m, s, split_lines(s.as_text(), c.flag(0, "keepends", false)));
     }},
    {"partition", [](Machine& m, const Value& s, Call& c) { return partition(m, s, c, false); }},
    {"rpartition", [](Machine& m, const Value& s, Call& c) { return partition(m, s, c, true); }},
    {"startswith",
     [](Machine& m, const Value& s, Call& c) {
       return Value::boolean(affix(m, s.as_text(), c.need(0, "prefix"), false));
     }},
    {"endswith",
     [](Machine& m, const Value& s, Call& c) {
       return Value::boolean(affix(m, s.as_text(), c.need(0, "suffix"), true));
     }},
    {"removeprefix",
     [](Machine& m, const Value& s, Call& c) { return without_affix(m, s, c, true); }},
    {"removesuffix",
     [](Machine& m, const Value& s, Call& c) { return without_affix(m, s, c, false); }},
    {"replace", replaced},
    {"find", [](Machine&, const Value& s, Call& c) { return place(s, c, false); }},
    {"rfind", [](Machine&, const Value& s, Call& c) { return place(s, c, true); }},
    {"index", [](Machine& m, const Value& s, Call& c) { return needed_place(m, s, c, false); }},
    {"rindex", [](Machine& m, const Value& s, Call& c) { return needed_place(m, s, c, true); }},
    {"count", [](Machine&, const Value& s, Call& c) { return counted(s, c); }},
    {"join", joined},
    {"format", [](Machine& m, const Value& s, Call& c) { return format_braces(m, s, c.all()); }},
    {"center", [](Machine& m, const Value& s, Call& c) { return padded(m, s, c, Side::kCentre); }},
    {"ljust", [](Machine& m, const Value& s, Call& c) { return padded(m, s, c, Side::kLeft); }},
    {"rjust", [](Machine& m, const Value& s, Call& c) { return padded(m, s, c, Side::kRight); }},
    {"zfill", zero_filled},
    {"isdigit",
     [](Machine&, const Value& s, Call&) {
       return all_characters(s.as_text(), [](char32_t c) { return c >= '0' && c <= '9'; });
     }},
    {"isdecimal",
     [](Machine&, const Value& s, Call&) {
       return all_characters(s.as_text(), [](char32_t c) { return c >= '0' && c <= '9'; });
     }},
    {"isnumeric", [](Machine&, const Value& s,
                     Call&) { return all_characters(s.as_text(), unicode::is_number); }},
    {"isalpha", [](Machine&, const Value& s,
                   Call&) { return all_characters(s.as_text(), unicode::is_letter); }},
    {"isalnum",
     [](Machine&, const Value& s, Call&) {
       return all_characters(
           s.as_text(), [](char32_t c) { return unicode::is_letter(c) || unicode::is_number(c); });
     }},
    {"isascii",
     [](Machine&, const Value& s, Call&) {
       return Value::boolean(std::all_of(s.as_text().begin(), s.as_text().end(), [](char c) {
         return static_cast<unsigned char>(c) < 0x80;
       }));
     }},
    {"isspace",
     [](Machine&, const Value& s, Call&) { return all_characters(s.as_text(), is_blank); }},
    {"isupper",
     [](Machine&, const Value& s, Call&) {
       return Value::boolean(s.as_text() == upper(s.as_text()) &&
                             s.as_text() != unicode::lower(s.as_text()));
     }},
    {"islower",
     [](Machine&, const Value& s, Call&) {
       return Value::boolean(s.as_text() == unicode::lower(s.as_text()) &&
                             s.as_text() != upper(s.as_text()));
     }},
};

// Python has them, this interpreter does not: better an error than "undefined".
constexpr std::string_view kUnsupported[] = {"encode",       "expandtabs",  "format_map",
                                             "isidentifier", "isprintable", "istitle",
                                             "maketrans",    "translate"};

Value text_method(Machine& machine, const Value& object, const std::string& name) {
  const auto found = std::find_if(std::begin(kTextMethods), std::end(kTextMethods),
                                  [&](const TextRow& row) { return row.name == name; });
  if (found == std::end(kTextMethods)) {
    if (std::find(std::begin(kUnsupported), std::end(kUnsupported), name) !=
        std::end(kUnsupported)) {
      machine.fail(fmt::format("the method \"{}\" of strings is not supported", name));
    }
    return Value::undefined(name);
  }
  return Value::function(
      [m = &machine, object, name, run = found->run](const Arguments& arguments) {
        Call call(*m, name + "()", arguments, 0);
        Value result = run(*m, object, call);
        call.done();
        return result;
      });
}

Value dict_keys(Machine& m, const Dict& d, Call&) {
  List out;
  for (const auto& [key, value] : d.entries) out.push_back(key);
  return m.list(std::move(out));
}
Value dict_values(Machine& m, const Dict& d, Call&) {
  List out;
  for (const auto& [key, value] : d.entries) out.push_back(value);
  return m.list(std::move(out));
}
Value dict_get(Machine& m, const Dict& d, Call& c) {
  const Value& key = c.need(0, "key");
  const Value* fallback = c.find(1, "default");
  if (!key.is_hashable()) m.fail(fmt::format("a value of type {} is no key", key.type_name()));
  const Value* found = d.find(key);
  return found ? *found : fallback ? *fallback : Value::none();
}

using DictMethod = Value (*)(Machine&, const Dict&, Call&);
struct DictRow {
  std::string_view name;
  DictMethod run;
};
constexpr DictRow kDictMethods[] = {
    {"items", [](Machine& m, const Dict& d, Call&) { return pair_list(m, d); }},
    {"keys", dict_keys},
    {"values", dict_values},
    {"get", dict_get},
    {"copy", [](Machine&, const Dict& d, Call&) { return Value::dict(d); }},
};

Value dict_method(Machine& machine, const Value& object, const std::string& name) {
  for (const DictRow& row : kDictMethods) {
    if (row.name != name) continue;
    return Value::function([m = &machine, object, name, run = row.run](const Arguments& arguments) {
      Call call(*m, name + "()", arguments, 0);
      Value result = run(*m, object.as_dict(), call);
      call.done();
      return result;
    });
  }
  for (const char* blocked : {"update", "pop", "popitem", "clear", "setdefault"}) {
    if (name == blocked) machine.fail("a template must not change a mapping: " + name + "()");
  }
  return Value::undefined(name);
}

Value list_method(Machine& machine, const Value& object, const std::string& name) {
  if (name == "index" || name == "count") {
    return Value::function([m = &machine, object, counts = name == "count"](const Arguments& a) {
      if (a.list.size() != 1) m->fail("index and count of a list take one value");
      int64_t n = 0;
      for (const Value& v : object.as_list()) {
        const bool same = v.equals(a.list[0]);
        if (same && !counts) return Value::integer(n);
        n += counts ? same : 1;
      }
      if (!counts) m->fail("a value is not in the list");
      return Value::integer(n);
    });
  }
  if (name == "copy" && !object.is_tuple()) {
    return Value::function([object](const Arguments&) { return object; });
  }
  for (const char* blocked :
       {"append", "clear", "extend", "insert", "pop", "remove", "sort", "reverse"}) {
    if (name == blocked) machine.fail("a template must not change a list: " + name + "()");
  }
  return Value::undefined(name);
}

}  // namespace

Value pair_list(Machine& machine, const Dict& dict) {
  List out;
  for (const auto& [key, value] : dict.entries) out.push_back(machine.list({key, value}, true));
  return machine.list(std::move(out));
}

Value method(Machine& machine, const Value& object, const std::string& name) {
  if (object.is_dict() && !object.as_dict().is_namespace) return dict_method(machine, object, name);
  if (object.is_text()) return text_method(machine, object, name);
  if (object.is_list()) return list_method(machine, object, name);
  return Value::undefined(name);
}

}  // namespace heed::jinja
