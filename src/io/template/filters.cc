// The filters, `x | name(...)`. Behaviour: jinja2/filters.py.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>

#include "io/describe.h"
#include "io/template/call.h"
#include "io/template/interpreter.h"
#include "io/tokenizer/unicode.h"

namespace heed::jinja {

namespace {

// "a.b.0" of an item, as map(attribute=...) and selectattr name it.
Value by_path(Machine& machine, Value value, const std::string& path) {
  size_t at = 0;
  while (true) {
    const size_t dot = std::min(path.find('.', at), path.size());
    const std::string part = path.substr(at, dot - at);
    int64_t index = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool number = error == std::errc() && end == part.data() + part.size();
    value = item(machine, value, number ? Value::integer(index) : Value::text(part));
    if (dot == path.size()) return value;
    at = dot + 1;
  }
}

// selectattr, rejectattr, select, reject: (input, [attribute,] test, test's arguments...). Of what
// is false, none included, they give nothing.
Value select(Machine& machine, Call& c, bool by_attribute, bool keep) {
  const Arguments& arguments = c.all();
  size_t at = 1;
  std::string path;
  if (by_attribute) {
    if (arguments.list.size() < 2) {
      machine.fail("selectattr and rejectattr need the name of an attribute");
    }
    path = arguments.list[at++].str();
  }
  std::string test;
  if (at < arguments.list.size()) {
    if (!arguments.list[at].is_text()) machine.fail("the name of a test must be a string");
    test = arguments.list[at++].as_text();
  }
  List out;
  if (!arguments.list[0].truth()) return machine.list({});
  for (const Value& value : iterate(machine, arguments.list[0])) {
    Arguments call;
    call.list.push_back(by_attribute ? by_path(machine, value, path) : value);
    call.list.insert(call.list.end(), arguments.list.begin() + static_cast<int64_t>(at),
                     arguments.list.end());
    call.named = arguments.named;
    const bool truth = test.empty() ? call.list[0].truth() : apply_test(machine, test, call);
    if (truth == keep) out.push_back(value);
  }
  return machine.list(std::move(out));
}

Value map_filter(Machine& machine, const Value& input, Call& c) {
  const Arguments& arguments = c.all();
  if (!input.truth()) return machine.list({});
  List out;
  if (arguments.list.size() == 1) {
    Call call(machine, "map", arguments, 1);
    const std::string path = call.need(SIZE_MAX / 2, "attribute").str();
    const Value* fallback = call.find(SIZE_MAX / 2, "default");
    call.done();
    for (const Value& value : iterate(machine, input)) {
      Value found = by_path(machine, value, path);
      out.push_back(found.is_undefined() && fallback ? *fallback : std::move(found));
    }
    return machine.list(std::move(out));
  }
  if (!arguments.list[1].is_text()) machine.fail("map: the name of a filter must be a string");
  for (const Value& value : iterate(machine, input)) {
    Arguments call;
    call.list.push_back(value);
    call.list.insert(call.list.end(), arguments.list.begin() + 2, arguments.list.end());
    call.named = arguments.named;
    out.push_back(apply_filter(machine, arguments.list[1].as_text(), call));
  }
  return machine.list(std::move(out));
}

// sort, min, max, unique: order by attribute, texts without regard to case.
Value sort_key(Machine& machine, const Value& value, const Value* attribute, bool case_sensitive) {
  Value key =
      attribute && !attribute->is_none() ? by_path(machine, value, attribute->str()) : value;
  return key.is_text() && !case_sensitive ? machine.text(unicode::lower(key.as_text())) : key;
}

Value sort_filter(Machine& machine, const Value& input, Call& call) {
  const bool reverse = call.flag(0, "reverse", false);
  const bool case_sensitive = call.flag(1, "case_sensitive", false);
  const Value* attribute = call.find(2, "attribute");
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& value : iterate(machine, input)) {
    keyed.emplace_back(sort_key(machine, value, attribute, case_sensitive), value);
  }
  for (size_t i = 1; i < keyed.size(); ++i) compare(machine, keyed[0].first, keyed[i].first);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    const int order = compare(machine, a.first, b.first);
    return reverse ? order > 0 : order < 0;
  });
  List out;
  for (auto& [key, value] : keyed) out.push_back(std::move(value));
  return machine.list(std::move(out));
}

std::string indent(const std::string& text, Call& call) {
  const Value* width = call.find(0, "width");
  const std::string prefix =
      width && width->is_text()
          ? width->as_text()
          : std::string(
                static_cast<size_t>(std::clamp<int64_t>(call.integer(0, "width", 4), 0, 1000)),
                ' ');
  const bool first = call.flag(1, "first", false), blank = call.flag(2, "blank", false);
  std::string out;
  for (size_t at = 0, line = 0;; ++line) {
    const size_t end = std::min(text.find('\n', at), text.size());
    if ((line > 0 || first) && (blank || end > at || (line == 0 && first))) out += prefix;
    out.append(text, at, end - at);
    if (end == text.size()) return out;
    out += '\n';
    at = end + 1;
  }
}

Value to_integer(const Value& input, int64_t fallback) {
  if (input.is_whole()) return Value::integer(input.as_integer());
  double real = std::numeric_limits<double>::quiet_NaN();
  if (input.is_real()) real = input.as_real();
  if (input.is_text()) {
    const std::string text = strip(input.as_text(), std::nullopt, true, true);
    const char* start = text.data() + (text.starts_with('+') ? 1 : 0);
    const char* end = text.data() + text.size();
    int64_t value = 0;
    const auto whole = std::from_chars(start, end, value);
    if (whole.ec == std::errc() && whole.ptr == end) return Value::integer(value);
    const auto parsed = std::from_chars(start, end, real);
    if (parsed.ec != std::errc() || parsed.ptr != end) return Value::integer(fallback);
  }
  if (!(std::abs(real) < 9.2e18)) return Value::integer(fallback);
  return Value::integer(static_cast<int64_t>(real));
}

Value to_real(const Value& input, double fallback) {
  if (input.is_number()) return Value::real(input.as_real());
  if (!input.is_text()) return Value::real(fallback);
  const std::string text = strip(input.as_text(), std::nullopt, true, true);
  double value = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data() + text.starts_with('+'), end, value);
  return Value::real(parsed.ec == std::errc() && parsed.ptr == end ? value : fallback);
}

Value json_filter(Machine& machine, const Value& input, Call& call) {
  JsonStyle style;
  // transformers' own tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)
  style.ensure_ascii = call.flag(0, "ensure_ascii", false);
  style.indent = static_cast<int>(std::clamp<int64_t>(call.integer(1, "indent", -1), -1, 100));
  if (style.indent >= 0) style.item_separator = ",";
  const Value* separators = call.find(2, "separators");
  if (separators && separators->is_list() && separators->as_list().size() == 2) {
    style.item_separator = separators->as_list()[0].str();
    style.key_separator = separators->as_list()[1].str();
  }
  style.sort_keys = call.flag(3, "sort_keys", false);
  try {
    return machine.text(to_json(input, style));
  } catch (const std::invalid_argument& error) {
    machine.fail(fmt::format("tojson: a value of type {} is not JSON", error.what()));
  }
}

int64_t length_of(Machine& machine, const Value& value) {
  if (value.is_text()) return count_characters(value.as_text());
  if (value.is_list()) return static_cast<int64_t>(value.as_list().size());
  if (value.is_dict()) return static_cast<int64_t>(value.as_dict().entries.size());
  if (value.is_undefined()) return 0;
  machine.fail(fmt::format("a value of type {} has no length", value.type_name()));
}

// What the filters on texts work on: soft_str() of jinja2, which lets markup be.
Value soft(Machine& m, const Value& input) { return input.is_text() ? input : m.text(input.str()); }

Value trim_filter(Machine& m, const Value& input, Call& c) {
  const Value* set = c.find(0, "chars");
  const Value text = soft(m, input);
  return m.text_like(text, set && set->is_text() ? strip(text.as_text(), set->as_text(), true, true)
                                                 : strip(text.as_text(), std::nullopt, true, true));
}

Value abs_filter(Machine& m, const Value& input, Call&) {
  if (!input.is_number()) m.fail("abs of " + input.type_name());
  if (input.is_real()) return Value::real(std::abs(input.as_real()));
  if (input.as_integer() == INT64_MIN) m.fail("a number is too large");
  return Value::integer(std::abs(input.as_integer()));
}

Value round_filter(Machine& m, const Value& input, Call& c) {
  if (!input.is_number()) m.fail("round of " + input.type_name());
  const int64_t precision = std::clamp<int64_t>(c.integer(0, "precision", 0), -300, 300);
  const Value* how = c.find(1, "method");
  const std::string method = how ? how->str() : "common";
  const double value = input.as_real(), scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return Value::real(std::ceil(value * scale) / scale);
  if (method == "floor") return Value::real(std::floor(value * scale) / scale);
  if (method != "common") m.fail("round: the method must be common, ceil or floor");
  if (input.is_whole() && precision >= 0) return Value::integer(input.as_integer());
  if (precision < 0) {
    const double rounded = std::nearbyint(value * scale) / scale;
    return input.is_whole() ? Value::integer(static_cast<int64_t>(rounded)) : Value::real(rounded);
  }
  if (!std::isfinite(value)) return input;
  // Rounds the decimal number that the double is exactly, as Python does.
  const std::string text = fmt::format("{:.{}f}", value, precision);
  double out = 0;
  std::from_chars(text.data(), text.data() + text.size(), out);
  return Value::real(out);
}

Value default_filter(Machine& m, const Value& input, Call& c) {
  const Value* fallback = c.find(0, "default_value");
  const bool also_false = c.flag(1, "boolean", false);
  const bool use = input.is_undefined() || (also_false && !input.truth());
  return use ? (fallback ? *fallback : m.text("")) : input;
}

Value join_filter(Machine& m, const Value& input, Call& c) {
  const Value* by = c.find(0, "d");
  const Value* attribute = c.find(1, "attribute");
  List items = iterate(m, input);
  if (attribute && !attribute->is_none()) {
    for (Value& v : items) v = by_path(m, v, attribute->str());
  }
  return m.text(join(m, items, by ? by->str() : ""));
}

Value replace_filter(Machine& m, const Value& input, Call& c) {
  const std::string from = c.need(0, "old").str(), to = c.need(1, "new").str();
  return m.text(replace(m, input.str(), from, to, c.integer(2, "count", -1)));
}

Value end_of(Machine& m, const Value& input, bool front) {
  const List items = iterate(m, input);
  if (items.empty()) return Value::undefined("an item of an empty sequence");
  return front ? items.front() : items.back();
}

Value reverse_filter(Machine& m, const Value& input, Call&) {
  if (input.is_text()) {
    const List items = characters(m, input.as_text());
    return m.text(join(m, List(items.rbegin(), items.rend()), ""));
  }
  const List items = iterate(m, input);
  return m.list(List(items.rbegin(), items.rend()));
}

Value extreme(Machine& m, const Value& input, Call& c, bool largest) {
  std::optional<Value> best, best_key;
  const bool case_sensitive = c.flag(0, "case_sensitive", false);
  const Value* attribute = c.find(1, "attribute");
  for (const Value& v : iterate(m, input)) {
    Value key = sort_key(m, v, attribute, case_sensitive);
    const int order = best ? compare(m, key, *best_key) : 0;
    if (best && (largest ? order <= 0 : order >= 0)) continue;
    best = v;
    best_key = std::move(key);
  }
  return best ? *best : Value::undefined("the extreme of an empty sequence");
}

Value sum_filter(Machine& m, const Value& input, Call& c) {
  const Value* attribute = c.find(0, "attribute");
  const Value* start = c.find(1, "start");
  Value total = start ? *start : Value::integer(0);
  for (const Value& v : iterate(m, input)) {
    total = binary(m, "+", total,
                   attribute && !attribute->is_none() ? by_path(m, v, attribute->str()) : v);
  }
  return total;
}

Value unique_filter(Machine& m, const Value& input, Call& c) {
  const bool case_sensitive = c.flag(0, "case_sensitive", false);
  const Value* attribute = c.find(1, "attribute");
  List keys, out;
  for (const Value& v : iterate(m, input)) {
    Value key = sort_key(m, v, attribute, case_sensitive);
    if (!key.is_hashable()) m.fail("unique over values of type " + key.type_name());
    m.charge(static_cast<int64_t>(keys.size()));
    const auto same = [&](const Value& k) { return k.equals(key); };
    if (std::any_of(keys.begin(), keys.end(), same)) continue;
    keys.push_back(std::move(key));
    out.push_back(v);
  }
  return m.list(std::move(out));
}

Value items_filter(Machine& m, const Value& input, Call&) {
  if (input.is_undefined()) return m.list({});
  if (!input.is_dict()) m.fail("items of " + input.type_name() + ": expected a mapping");
  return pair_list(m, input.as_dict());
}

Value dictsort_filter(Machine& m, const Value& input, Call& c) {
  if (!input.is_dict()) m.fail("dictsort of " + input.type_name() + ": expected a mapping");
  const bool case_sensitive = c.flag(0, "case_sensitive", false);
  const Value* by = c.find(1, "by");
  const bool by_value = by && by->str() == "value";
  if (by && !by_value && by->str() != "key") m.fail("dictsort: by must be key or value");
  const bool reverse = c.flag(2, "reverse", false);
  Dict sorted = input.as_dict();
  const auto key = [&](const std::pair<Value, Value>& entry) {
    return sort_key(m, by_value ? entry.second : entry.first, nullptr, case_sensitive);
  };
  for (size_t i = 1; i < sorted.entries.size(); ++i) {
    compare(m, key(sorted.entries[0]), key(sorted.entries[i]));
  }
  std::stable_sort(sorted.entries.begin(), sorted.entries.end(), [&](const auto& a, const auto& b) {
    const int order = compare(m, key(a), key(b));
    return reverse ? order > 0 : order < 0;
  });
  return pair_list(m, sorted);
}

// groupby(attribute): tuples of what the items have in common and the list of them, in its order.
Value groupby_filter(Machine& m, const Value& input, Call& c) {
  const Value attribute = c.need(0, "attribute");
  const Value* fallback = c.find(1, "default");
  const bool case_sensitive = c.flag(2, "case_sensitive", false);
  struct Group {
    Value key, first;
    List items;
  };
  std::vector<Group> groups;
  for (const Value& v : iterate(m, input)) {
    Value own = by_path(m, v, attribute.str());
    if (own.is_undefined() && fallback) own = *fallback;
    const Value key = sort_key(m, own, nullptr, case_sensitive);
    m.charge(static_cast<int64_t>(groups.size()));
    const auto same = std::find_if(groups.begin(), groups.end(),
                                   [&](const Group& g) { return g.key.equals(key); });
    if (same == groups.end()) {
      if (!groups.empty()) compare(m, groups[0].key, key);
      groups.push_back({key, own, {v}});
    } else {
      same->items.push_back(v);
    }
  }
  std::stable_sort(groups.begin(), groups.end(),
                   [&](const Group& a, const Group& b) { return compare(m, a.key, b.key) < 0; });
  List out;
  for (Group& g : groups) out.push_back(m.list({g.first, m.list(std::move(g.items))}, true));
  return m.list(std::move(out));
}

// batch(n, fill): lists of n items.
Value batch_filter(Machine& m, const Value& input, Call& c) {
  const int64_t size = c.integer(0, "linecount", 0);
  const Value* fill = c.find(1, "fill_with");
  if (size < 1) m.fail("batch: the size must be at least 1");
  List out, part;
  for (const Value& v : iterate(m, input)) {
    part.push_back(v);
    if (static_cast<int64_t>(part.size()) == size) out.push_back(m.list(std::exchange(part, {})));
  }
  if (!part.empty()) {
    if (fill && !fill->is_none()) {
      if (size > 100'000) m.fail("batch: more than 100000 items to fill");
      part.resize(static_cast<size_t>(size), *fill);
    }
    out.push_back(m.list(std::move(part)));
  }
  return m.list(std::move(out));
}

// slice(n, fill): n lists, the first ones longer by one where it does not come out even.
Value slice_filter(Machine& m, const Value& input, Call& c) {
  const int64_t count = c.integer(0, "slices", 0);
  const Value* fill = c.find(1, "fill_with");
  const List items = iterate(m, input);
  if (count < 1 || count > 100'000) m.fail("slice: the number must be 1 to 100000");
  const int64_t length = static_cast<int64_t>(items.size());
  const int64_t each = length / count, longer = length % count;
  List out;
  int64_t at = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t size = each + (i < longer ? 1 : 0);
    List part(items.begin() + at, items.begin() + at + size);
    if (fill && !fill->is_none() && i >= longer) part.push_back(*fill);
    at += size;
    out.push_back(m.list(std::move(part)));
  }
  return m.list(std::move(out));
}

Value truncate_filter(Machine& m, const Value& input, Call& c) {
  const int64_t length = c.integer(0, "length", 255);
  const bool kill_words = c.flag(1, "killwords", false);
  const Value* end_value = c.find(2, "end");
  const std::string end = end_value ? end_value->str() : "...";
  const int64_t leeway = c.integer(3, "leeway", 5);
  const std::string text = input.str();
  const int64_t end_length = count_characters(end);
  if (length < end_length) m.fail("truncate: the length is less than that of the end");
  if (leeway < 0) m.fail("truncate: the leeway is negative");
  if (count_characters(text) <= length + leeway) return m.text(text);
  size_t at = 0;
  for (int64_t n = 0; n < length - end_length; ++n) unicode::next(text, at);
  std::string kept = text.substr(0, at);
  if (!kill_words) kept = kept.substr(0, std::min(kept.rfind(' '), kept.size()));
  return m.text(kept + end);
}

Value wordcount_filter(Machine& m, const Value& input, Call&) {
  int64_t words = 0;
  bool inside = false;
  for (const Value& c : characters(m, input.str())) {
    size_t at = 0;
    const char32_t code = unicode::next(c.as_text(), at);
    const bool word = code == '_' || unicode::is_letter(code) || unicode::is_number(code);
    words += word && !inside;
    inside = word;
  }
  return Value::integer(words);
}

// What a URL may hold stays, "/" too; in a query a blank is "+" and "/" is quoted.
std::string url_quoted(const std::string& text, bool query) {
  std::string out;
  for (const char c : text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) || std::string_view("_.-~").find(c) != std::string_view::npos ||
        (!query && c == '/')) {
      out += c;
    } else if (query && c == ' ') {
      out += '+';
    } else {
      out += fmt::format("%{:02X}", byte);
    }
  }
  return out;
}
// Of a mapping or pairs, name=value joined by "&".
Value urlencode_filter(Machine& m, const Value& input, Call&) {
  if (!input.is_dict() && !input.is_list()) return m.text(url_quoted(input.str(), false));
  std::string out;
  const Value pairs = input.is_dict() ? pair_list(m, input.as_dict()) : input;
  for (const Value& pair : pairs.as_list()) {
    const List both = iterate(m, pair);
    if (both.size() != 2) m.fail("urlencode takes a text, a mapping or pairs");
    out += (out.empty() ? "" : "&") + url_quoted(both[0].str(), true) + "=" +
           url_quoted(both[1].str(), true);
  }
  return m.text(std::move(out));
}

Value striptags_filter(Machine& m, const Value& input, Call&) {
  std::string out;
  const std::string text = input.str();
  for (size_t at = 0; at < text.size();) {
    const size_t comment = text.compare(at, 4, "<!--") == 0 ? text.find("-->", at) : text.npos;
    const size_t close = text[at] == '<' ? text.find('>', at) : text.npos;
    if (comment != text.npos) {
      at = comment + 3;
    } else if (close != text.npos) {
      at = close + 1;
    } else {
      out += text[at++];
    }
  }
  List words;
  for (std::string& word : split(m, out, nullptr, -1, false)) words.push_back(m.text(word));
  std::string plain = join(m, words, " ");
  for (const auto& [from, to] : {std::pair{"&lt;", "<"},
                                 {"&gt;", ">"},
                                 {"&#34;", "\""},
                                 {"&#39;", "'"},
                                 {"&quot;", "\""},
                                 {"&amp;", "&"}}) {
    plain = replace(m, plain, from, to, -1);
  }
  return m.text(std::move(plain));
}

Value float_filter(Machine&, const Value& input, Call& c) {
  const Value* fallback = c.find(0, "default");
  return to_real(input, fallback && fallback->is_number() ? fallback->as_real() : 0.0);
}

Value center_filter(Machine& m, const Value& input, Call& c) {
  const Value text = soft(m, input);
  return m.text_like(text, pad(m, text.as_text(), c.integer(0, "width", 80), U' ', Side::kCentre));
}

Value format_filter(Machine& m, const Value& input, Call& c) {
  const Arguments& arguments = c.all();
  if (arguments.list.size() > 1 && !arguments.named.empty()) {
    m.fail("format takes values by place or by name, not both");
  }
  if (arguments.named.empty()) {
    return format_percent(m, soft(m, input),
                          m.list(List(arguments.list.begin() + 1, arguments.list.end()), true));
  }
  Dict named;
  for (const auto& [key, value] : arguments.named) named.set(key, value);
  return format_percent(m, soft(m, input), Value::dict(std::move(named)));
}

Value escape_filter(Machine& m, const Value& input, bool again) {
  if (input.is_markup() && !again) return input;
  m.charge(static_cast<int64_t>(input.str().size()));
  return Value::markup(escape(input.str()));
}

using FilterFunction = Value (*)(Machine&, const Value&, Call&);
struct Row {
  std::string_view name;
  FilterFunction run;
};

constexpr FilterFunction kLength = [](Machine& m, const Value& v, Call&) {
  return Value::integer(length_of(m, v));
};
constexpr FilterFunction kEscape = [](Machine& m, const Value& v, Call&) {
  return escape_filter(m, v, false);
};

constexpr Row kFilters[] = {
    {"selectattr", [](Machine& m, const Value&, Call& c) { return select(m, c, true, true); }},
    {"rejectattr", [](Machine& m, const Value&, Call& c) { return select(m, c, true, false); }},
    {"select", [](Machine& m, const Value&, Call& c) { return select(m, c, false, true); }},
    {"reject", [](Machine& m, const Value&, Call& c) { return select(m, c, false, false); }},
    {"map", map_filter},
    {"trim", trim_filter},
    {"length", kLength},
    {"count", kLength},
    {"tojson", json_filter},
    {"upper", [](Machine& m, const Value& v, Call&) { return m.text_like(v, upper(v.str())); }},
    {"lower",
     [](Machine& m, const Value& v, Call&) { return m.text_like(v, unicode::lower(v.str())); }},
    {"capitalize",
     [](Machine& m, const Value& v, Call&) { return m.text_like(v, capitalize(v.str())); }},
    {"title", [](Machine& m, const Value& v, Call&) { return m.text(title(v.str())); }},
    {"string", [](Machine& m, const Value& v, Call&) { return soft(m, v); }},
    {"safe", [](Machine&, const Value& v, Call&) { return Value::markup(v.str()); }},
    {"escape", kEscape},
    {"e", kEscape},
    {"forceescape", [](Machine& m, const Value& v, Call&) { return escape_filter(m, v, true); }},
    {"int",
     [](Machine&, const Value& v, Call& c) { return to_integer(v, c.integer(0, "default", 0)); }},
    {"float", float_filter},
    {"abs", abs_filter},
    {"round", round_filter},
    {"default", default_filter},
    {"d", default_filter},
    {"attr",
     [](Machine& m, const Value& v, Call& c) {
       return v.is_dict() && !v.as_dict().is_namespace ? method(m, v, c.text(0, "name"))
                                                       : attribute(m, v, c.text(0, "name"));
     }},
    {"join", join_filter},
    {"replace", replace_filter},
    {"indent",
     [](Machine& m, const Value& v, Call& c) { return m.text_like(v, indent(v.str(), c)); }},
    {"list", [](Machine& m, const Value& v, Call&) { return m.list(iterate(m, v)); }},
    {"first", [](Machine& m, const Value& v, Call&) { return end_of(m, v, true); }},
    {"last", [](Machine& m, const Value& v, Call&) { return end_of(m, v, false); }},
    {"reverse", reverse_filter},
    {"sort", sort_filter},
    {"min", [](Machine& m, const Value& v, Call& c) { return extreme(m, v, c, false); }},
    {"max", [](Machine& m, const Value& v, Call& c) { return extreme(m, v, c, true); }},
    {"sum", sum_filter},
    {"unique", unique_filter},
    {"items", items_filter},
    {"dictsort", dictsort_filter},
    {"groupby", groupby_filter},
    {"batch", batch_filter},
    {"slice", slice_filter},
    {"truncate", truncate_filter},
    {"wordcount", wordcount_filter},
    {"urlencode", urlencode_filter},
    {"striptags", striptags_filter},
    {"center", center_filter},
    {"format", format_filter},
};

const Row* find_filter(std::string_view name) {
  const auto found = std::find_if(std::begin(kFilters), std::end(kFilters),
                                  [&](const Row& row) { return row.name == name; });
  return found == std::end(kFilters) ? nullptr : found;
}

}  // namespace

bool is_filter(std::string_view name) { return find_filter(name) != nullptr; }

Value apply_filter(Machine& machine, const std::string& name, const Arguments& arguments) {
  machine.charge();
  const Row* row = find_filter(name);
  if (!row) machine.fail(fmt::format("the filter \"{}\" is not supported", printable(name)));
  Call call(machine, name, arguments, 1);
  Value result = row->run(machine, arguments.list[0], call);
  call.done();
  return result;
}

}  // namespace heed::jinja
