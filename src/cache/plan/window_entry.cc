// See window_entry.h.
#include "cache/plan/window_entry.h"

#include <fmt/format.h>

#include <cmath>

#include "cache/plan/plan_fields.h"

namespace heed {
namespace {

WindowRule read_rule(const Json& json, const std::string& where) {
  WindowRule rule;
  if (find_field(json, "rule", where) != nullptr) {
    refuse_unknown_keys(json, {"rule", "S0", "C"}, where);
    const std::string name = get_string(json, "rule", where);
    if (name != "max(S0,N/C)") {
      throw Error("{}: the rule '{}' is not known; use \"max(S0,N/C)\" or alpha and beta",
                  printable(where), printable(name));
    }
    rule.kind = WindowRule::Kind::kRazor;
    rule.s0 = get_int(json, "S0", where);
    rule.c = get_float(json, "C", where);
    return rule;
  }
  refuse_unknown_keys(json, {"alpha", "beta", "min", "round"}, where);
  rule.alpha = get_float(json, "alpha", where);
  rule.beta = get_float(json, "beta", where, rule.beta);
  rule.min = get_int(json, "min", where, rule.min);
  rule.round = get_int(json, "round", where, rule.round);
  return rule;
}

void check(const WindowEntry& entry, const std::string& where) {
  in_range<int64_t>(entry.sink, 0, kMaxTokens, "sink", where);
  in_range<int64_t>(entry.comp.count, 0, 1024, "comp.count", where);
  if (entry.comp.weight != "N_d" && entry.comp.weight != "1") {
    throw Error("{}: 'comp.weight' must be \"N_d\" or \"1\", found '{}'", printable(where),
                printable(entry.comp.weight));
  }
  const WindowRule& rule = entry.window;
  const double most = static_cast<double>(kMaxTokens);
  if (rule.kind == WindowRule::Kind::kRazor) {
    in_range<int64_t>(rule.s0, 0, kMaxTokens, "window.S0", where);
    in_range(rule.c, 1.0, most, "window.C", where);
    return;
  }
  in_range(rule.alpha, -most, most, "window.alpha", where);
  in_range(rule.beta, -1.0, 1.0, "window.beta", where);
  in_range<int64_t>(rule.min, 0, kMaxTokens, "window.min", where);
  in_range<int64_t>(rule.round, 1, int64_t{1} << 20, "window.round", where);
}

}  // namespace

WindowEntry read_window_entry(const Json& json, const std::string& where) {
  refuse_unknown_keys(json, {"kind", "sink", "window", "comp", "k_bits", "v_bits"}, where);
  WindowEntry entry;
  entry.sink = get_int(json, "sink", where, 0);
  entry.window = read_rule(get_object(json, "window", where), where + ".window");
  if (const Json* comp = find_field(json, "comp", where)) {
    const std::string comp_where = where + ".comp";
    entry.comp.count = get_int(*comp, "count", comp_where);
    entry.comp.weight = get_string(*comp, "weight", comp_where, entry.comp.weight);
    refuse_unknown_keys(*comp, {"count", "weight"}, comp_where);
  }
  entry.bits = read_bits(json, where);
  if (entry.bits.few() && entry.comp.count > 0) {
    throw Error("{}: 'comp' goes with 16 bits alone", printable(where));
  }
  check(entry, where);
  return entry;
}

bool has_compensation(const Json& entry) {
  const auto comp = entry.find("comp");
  if (comp == entry.end() || !comp->is_object()) return false;
  const auto count = comp->find("count");
  return count != comp->end() && count->is_number() && count->get<double>() >= 1;
}

WindowEntry window_entry(const Json& entry) { return read_window_entry(entry, "a plan's program"); }

Json to_json(const WindowEntry& entry) {
  Json json = {{"kind", "window"}, {"sink", entry.sink}};
  const WindowRule& rule = entry.window;
  if (rule.kind == WindowRule::Kind::kRazor) {
    json["window"] = {{"rule", "max(S0,N/C)"}, {"S0", rule.s0}, {"C", rule.c}};
  } else {
    json["window"] = {
        {"alpha", rule.alpha}, {"beta", rule.beta}, {"min", rule.min}, {"round", rule.round}};
  }
  if (entry.comp.count > 0) {
    json["comp"] = {{"count", entry.comp.count}, {"weight", entry.comp.weight}};
  }
  put_bits(json, entry.bits);
  return json;
}

int64_t window_length(const WindowRule& rule, int64_t n) {
  double length = 0;
  if (rule.kind == WindowRule::Kind::kRazor) {
    length = std::max(static_cast<double>(rule.s0), std::floor(static_cast<double>(n) / rule.c));
  } else {
    const double round = static_cast<double>(rule.round);
    length =
        std::max(rule.alpha + rule.beta * static_cast<double>(n), static_cast<double>(rule.min));
    length = std::ceil(length / round) * round;
  }
  if (length >= static_cast<double>(n)) return n;
  return std::max<int64_t>(1, static_cast<int64_t>(length));
}

namespace program {

Json RingKind::read(const Json& entry, const std::string& where) const {
  return to_json(read_window_entry(entry, where));
}

int64_t RingKind::rows(const Json& json, int64_t tokens) const {
  const WindowEntry entry = window_entry(json);
  return std::min(tokens, entry.sink + window_length(entry.window, tokens));
}

Json RingKind::entry(const HeadProgram& program) const {
  WindowEntry entry;
  entry.sink = program.sinks;
  entry.window.alpha = static_cast<double>(program.window);
  entry.bits = bits_of(program);
  return to_json(entry);
}

std::string RingKind::id(const HeadProgram& program) const {
  return fmt::format("window-{}-{}{}", program.sinks, program.window, bits_id(program));
}

// Position p lies in row p, behind the sinks in row sinks + (p - sinks) mod window.
void RingKind::runs(const HeadProgram& p, int64_t tokens, std::vector<RowRun>& out) const {
  if (const int64_t count = std::min(tokens, p.sinks); count > 0) out.push_back({0, count, 0});
  const int64_t first = std::max(p.sinks, tokens - p.window);
  const int64_t count = tokens - first;
  if (count <= 0) return;
  const int64_t row = (first - p.sinks) % p.window;
  const int64_t head = std::min(count, p.window - row);
  out.push_back({p.sinks + row, head, first});
  if (count > head) out.push_back({p.sinks, count - head, first + head});
}

KeyLimit RingKind::limit(const HeadProgram& program) const {
  return {program.window, program.sinks};
}

}  // namespace program
}  // namespace heed
