#include "io/plan_file.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <map>
#include <utility>

#include "io/atomic_file.h"
#include "io/describe.h"
#include "io/error.h"
#include "io/mapped_file.h"

namespace heed {
namespace {

// Far beyond any context; keeps products of sizes within 63 bits.
constexpr int64_t kMaxTokens = int64_t{1} << 40;
constexpr size_t kMaxLayers = 4096;
constexpr size_t kMaxHeads = 4096;

constexpr JsonLimits kPlanLimits = {.bytes = size_t{16} << 20, .depth = 32, .values = 2'000'000};

void refuse_unknown_keys(const Json& object, std::initializer_list<std::string_view> known,
                         const std::string& where) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      throw Error("{}: the key '{}' is not known here", printable(where), printable(key));
    }
  }
}

template <typename T>
T in_range(T value, T low, T high, const char* key, const std::string& where) {
  if (!(value >= low && value <= high)) {
    throw Error("{}: '{}' must lie between {} and {}, found {}", printable(where), key, low, high,
                value);
  }
  return value;
}

WindowRule parse_window(const Json& json, const std::string& where) {
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

Program parse_program(const Json& json, const std::string& where) {
  Program program;
  program.id = get_string(json, "id", where);
  const std::string kind = get_string(json, "kind", where);
  if (kind == "full") {
    refuse_unknown_keys(json, {"id", "kind"}, where);
    return program;
  }
  if (kind == "select" || kind == "linear") {
    throw UsageError("{}: program '{}': the kind \"{}\" is not supported yet; use full and window",
                     printable(where), printable(program.id), kind);
  }
  if (kind != "window") {
    throw Error("{}: program '{}': the kind '{}' is not known; use full or window",
                printable(where), printable(program.id), printable(kind));
  }
  refuse_unknown_keys(json, {"id", "kind", "sink", "window", "comp"}, where);
  program.kind = Program::Kind::kWindow;
  program.sink = get_int(json, "sink", where, 0);
  program.window = parse_window(get_object(json, "window", where), where + ".window");
  if (const Json* comp = find_field(json, "comp", where)) {
    const std::string comp_where = where + ".comp";
    program.comp.count = get_int(*comp, "count", comp_where);
    program.comp.weight = get_string(*comp, "weight", comp_where, program.comp.weight);
    refuse_unknown_keys(*comp, {"count", "weight"}, comp_where);
  }
  return program;
}

std::vector<std::vector<int>> parse_heads(const Json& rows, const std::vector<Program>& programs,
                                          const std::string& file) {
  std::map<std::string, int> index;
  for (size_t i = 0; i < programs.size(); ++i) index.emplace(programs[i].id, static_cast<int>(i));
  std::vector<std::vector<int>> heads;
  for (const Json& row : rows) {
    const std::string layer = fmt::format("heads[{}]", heads.size());
    if (!row.is_array()) throw Error("{}: '{}' must be an array of program ids", file, layer);
    std::vector<int> out;
    for (const Json& value : row) {
      const std::string id = as_string(value, fmt::format("{}[{}]", layer, out.size()), file);
      const auto found = index.find(id);
      if (found == index.end()) {
        throw Error("{}: '{}[{}]' names the program '{}', which 'programs' does not have",
                    printable(file), layer, out.size(), printable(id));
      }
      out.push_back(found->second);
    }
    heads.push_back(std::move(out));
  }
  return heads;
}

Plan::Prefill parse_prefill(const std::string& name, const std::string& file) {
  if (name == "same") return Plan::Prefill::kSame;
  if (name == "dense") return Plan::Prefill::kDense;
  if (name == "dynamic") {
    throw UsageError("{}: the prefill \"dynamic\" is not supported yet; use same or dense",
                     printable(file));
  }
  throw Error("{}: the prefill '{}' is not known; use same or dense", printable(file),
              printable(name));
}

void check_program(const Program& program, const std::string& where) {
  if (program.id.empty()) throw Error("{}: 'id' is empty", printable(where));
  if (program.kind == Program::Kind::kFull) return;
  in_range<int64_t>(program.sink, 0, kMaxTokens, "sink", where);
  in_range<int64_t>(program.comp.count, 0, 1024, "comp.count", where);
  if (program.comp.weight != "N_d" && program.comp.weight != "1") {
    throw Error("{}: 'comp.weight' must be \"N_d\" or \"1\", found '{}'", printable(where),
                printable(program.comp.weight));
  }
  const WindowRule& rule = program.window;
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

Json program_to_json(const Program& program) {
  if (program.kind == Program::Kind::kFull) return {{"id", program.id}, {"kind", "full"}};
  Json json = {{"id", program.id}, {"kind", "window"}, {"sink", program.sink}};
  const WindowRule& rule = program.window;
  if (rule.kind == WindowRule::Kind::kRazor) {
    json["window"] = {{"rule", "max(S0,N/C)"}, {"S0", rule.s0}, {"C", rule.c}};
  } else {
    json["window"] = {
        {"alpha", rule.alpha}, {"beta", rule.beta}, {"min", rule.min}, {"round", rule.round}};
  }
  if (program.comp.count > 0) {
    json["comp"] = {{"count", program.comp.count}, {"weight", program.comp.weight}};
  }
  return json;
}

const char* prefill_name(Plan::Prefill prefill) {
  return prefill == Plan::Prefill::kDense ? "dense" : "same";
}

// One line for each element of an array.
std::string lines(const Json& array) {
  std::string out = "[";
  for (size_t i = 0; i < array.size(); ++i) {
    out += (i == 0 ? "\n  " : ",\n  ") + canonical_json(array[i]);
  }
  return out + "\n ]";
}

}  // namespace

bool Plan::all_full() const {
  return std::all_of(heads.begin(), heads.end(), [&](const std::vector<int>& row) {
    return std::all_of(row.begin(), row.end(), [&](int index) {
      return programs[static_cast<size_t>(index)].kind == Program::Kind::kFull;
    });
  });
}

int64_t window_length(const Program& program, int64_t n) {
  if (program.kind == Program::Kind::kFull) return n;
  const WindowRule& rule = program.window;
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

int64_t kept_tokens(const Program& program, int64_t n) {
  if (program.kind == Program::Kind::kFull) return n;
  return std::min(n, program.sink + window_length(program, n) + program.comp.count);
}

int64_t kv_bytes(const Plan& plan, int64_t n, int64_t head_dim, int64_t value_dim,
                 int64_t element_bytes) {
  int64_t tokens = 0;
  for (size_t layer = 0; layer < plan.heads.size(); ++layer) {
    for (size_t head = 0; head < plan.heads[layer].size(); ++head) {
      tokens += kept_tokens(plan.program(layer, head), n);
    }
  }
  return tokens * (head_dim + value_dim) * element_bytes;
}

Plan full_plan(int64_t layers, int64_t kv_heads, const std::string& model) {
  Plan plan;
  plan.model = model;
  plan.programs.push_back({.id = "full"});
  plan.heads.assign(static_cast<size_t>(layers),
                    std::vector<int>(static_cast<size_t>(kv_heads), 0));
  return plan;
}

void check_plan(const Plan& plan, const std::string& file) {
  if (plan.version != 1) {
    throw Error("{}: plan version {} is not read, only 1", printable(file), plan.version);
  }
  const auto hexadecimal = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (plan.model.size() != 64 || !std::all_of(plan.model.begin(), plan.model.end(), hexadecimal)) {
    throw Error(
        "{}: 'model' must be the 64 hexadecimal digits that `heed info MODEL` prints, found "
        "'{}'",
        printable(file), printable(plan.model, 80));
  }
  for (const int64_t length : plan.lengths) {
    in_range<int64_t>(length, 1, kMaxTokens, "lengths", file);
  }
  if (plan.programs.empty()) throw Error("{}: 'programs' is empty", printable(file));
  std::map<std::string_view, size_t> ids;
  for (size_t i = 0; i < plan.programs.size(); ++i) {
    check_program(plan.programs[i], fmt::format("{}: programs[{}]", file, i));
    if (!ids.emplace(plan.programs[i].id, i).second) {
      throw Error("{}: two programs are named '{}'", printable(file),
                  printable(plan.programs[i].id));
    }
  }
  if (plan.heads.empty() || plan.heads[0].empty() || plan.heads.size() > kMaxLayers ||
      plan.heads[0].size() > kMaxHeads) {
    throw Error("{}: 'heads' must have 1 to {} layers of 1 to {} KV heads", printable(file),
                kMaxLayers, kMaxHeads);
  }
  for (size_t layer = 0; layer < plan.heads.size(); ++layer) {
    if (plan.heads[layer].size() != plan.heads[0].size()) {
      throw Error("{}: 'heads[{}]' has {} KV heads, layer 0 has {}", printable(file), layer,
                  plan.heads[layer].size(), plan.heads[0].size());
    }
    for (const int index : plan.heads[layer]) {
      if (index < 0 || static_cast<size_t>(index) >= plan.programs.size()) {
        throw Error("{}: 'heads[{}]' uses program {} of {}", printable(file), layer, index,
                    plan.programs.size());
      }
    }
  }
  if (plan.kv_bits != 16 && plan.kv_bits != 32) {
    throw UsageError("{}: 'kv_bits' {} is not supported yet; use 16 or 32", printable(file),
                     plan.kv_bits);
  }
  if (!plan.provenance.is_object()) throw Error("{}: 'provenance' must be an object", file);
}

Plan parse_plan(std::string_view text, const std::string& file) {
  const Json json = parse_json(text, file, kPlanLimits);
  Plan plan;
  plan.version = static_cast<int>(std::clamp<int64_t>(get_int(json, "version", file), -1, 1 << 30));
  if (plan.version != 1) {
    throw Error("{}: plan version {} is not read, only 1", printable(file), plan.version);
  }
  refuse_unknown_keys(json,
                      {"version", "model", "unit", "lengths", "programs", "heads", "prefill",
                       "kv_bits", "provenance"},
                      file);
  plan.model = get_string(json, "model", file);
  if (const std::string unit = get_string(json, "unit", file, "kv_head"); unit != "kv_head") {
    throw Error("{}: 'unit' must be \"kv_head\", found '{}'", printable(file), printable(unit));
  }
  if (find_field(json, "lengths", file) != nullptr) plan.lengths = get_ints(json, "lengths", file);
  const Json& programs = get_array(json, "programs", file);
  for (size_t i = 0; i < programs.size(); ++i) {
    plan.programs.push_back(parse_program(programs[i], fmt::format("{}: programs[{}]", file, i)));
  }
  plan.heads = parse_heads(get_array(json, "heads", file), plan.programs, file);
  plan.prefill = parse_prefill(get_string(json, "prefill", file, "same"), file);
  plan.kv_bits =
      static_cast<int>(std::clamp<int64_t>(get_int(json, "kv_bits", file, 16), -1, 1 << 30));
  if (find_field(json, "provenance", file) != nullptr) {
    plan.provenance = get_object(json, "provenance", file);
  }
  check_plan(plan, file);
  return plan;
}

Plan read_plan(const std::string& path) {
  const MappedFile file(path);
  return parse_plan(file.text(), path);
}

void check_plan_fits(const Plan& plan, const std::string& file, const std::string& model,
                     int64_t layers, int64_t kv_heads, bool force) {
  if (static_cast<int64_t>(plan.heads.size()) != layers ||
      static_cast<int64_t>(plan.heads[0].size()) != kv_heads) {
    throw UsageError("{}: the plan is for {} layers of {} KV heads, the model has {} of {}",
                     printable(file), plan.heads.size(), plan.heads[0].size(), layers, kv_heads);
  }
  if (plan.model != model && !force) {
    throw UsageError(
        "{}: the plan is for the model {}, this one is {}; use --force to run it anyway",
        printable(file), plan.model, model);
  }
}

Json plan_to_json(const Plan& plan) {
  Json programs = Json::array();
  for (const Program& program : plan.programs) programs.push_back(program_to_json(program));
  Json heads = Json::array();
  for (const std::vector<int>& row : plan.heads) {
    Json ids = Json::array();
    for (const int index : row) ids.push_back(plan.programs[static_cast<size_t>(index)].id);
    heads.push_back(std::move(ids));
  }
  return {{"version", plan.version},
          {"model", plan.model},
          {"unit", "kv_head"},
          {"lengths", plan.lengths},
          {"programs", std::move(programs)},
          {"heads", std::move(heads)},
          {"prefill", prefill_name(plan.prefill)},
          {"kv_bits", plan.kv_bits},
          {"provenance", plan.provenance}};
}

std::string plan_text(const Plan& plan) {
  const Json json = plan_to_json(plan);
  std::string out = "{";
  for (const char* key : {"version", "model", "unit", "lengths", "programs", "heads", "prefill",
                          "kv_bits", "provenance"}) {
    const bool tall = std::string_view(key) == "programs" || std::string_view(key) == "heads";
    out += fmt::format("{}\n \"{}\": {}", out.size() > 1 ? "," : "", key,
                       tall ? lines(json[key]) : canonical_json(json[key]));
  }
  return out + "\n}\n";
}

void write_plan(const Plan& plan, const std::string& path) {
  check_plan(plan, path);
  write_text_atomic(path, plan_text(plan));
}

}  // namespace heed
