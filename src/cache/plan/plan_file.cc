// See plan_file.h.
#include "cache/plan/plan_file.h"

#include <algorithm>
#include <map>
#include <utility>

#include "cache/plan/plan_fields.h"
#include "io/atomic_file.h"
#include "io/describe.h"
#include "io/error.h"
#include "io/mapped_file.h"

namespace heed {
namespace {

constexpr size_t kMaxLayers = 4096;
constexpr size_t kMaxHeads = 4096;

constexpr JsonLimits kPlanLimits = {.bytes = size_t{16} << 20, .depth = 32, .values = 2'000'000};

Program parse_program(const Json& json, const std::string& where) {
  Program program;
  program.id = get_string(json, "id", where);
  program.entry = json;
  program.entry.erase("id");
  const ProgramKind& kind =
      kind_of(program.entry, fmt::format("{}: program '{}'", where, program.id));
  program.entry = kind.read(program.entry, where);
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
  kind_of(program.entry, where).read(program.entry, where);
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
    return std::all_of(row.begin(), row.end(),
                       [&](int index) { return programs[static_cast<size_t>(index)].full(); });
  });
}

bool Plan::in_few_bits() const {
  return std::any_of(programs.begin(), programs.end(),
                     [](const Program& p) { return p.in_few_bits(); });
}

int64_t kept_tokens(const Program& program, int64_t n) {
  return kind_of(program.entry, program.id).rows(program.entry, n);
}

int64_t kv_bytes(const Plan& plan, int64_t n, int64_t head_dim, int64_t value_dim,
                 int64_t element_bytes) {
  std::vector<int64_t> bytes;
  for (const Program& p : plan.programs) {
    bytes.push_back(p.in_few_bits() ? kind_of(p.entry, p.id)
                                          .resolve(p.entry, n, p.id)
                                          .bytes(n, head_dim, value_dim, element_bytes)
                                    : kept_tokens(p, n) * (head_dim + value_dim) * element_bytes);
  }
  int64_t total = 0;
  for (const std::vector<int>& row : plan.heads) {
    for (const int index : row) total += bytes[static_cast<size_t>(index)];
  }
  return total;
}

Program window_program(const std::string& id, const WindowEntry& entry) {
  return {id, to_json(entry)};
}

Plan full_plan(int64_t layers, int64_t kv_heads, const std::string& model) {
  Plan plan;
  plan.model = model;
  plan.programs.push_back({.id = "full", .entry = {{"kind", "full"}}});
  plan.heads.assign(static_cast<size_t>(layers),
                    std::vector<int>(static_cast<size_t>(kv_heads), 0));
  return plan;
}

namespace {

void check_version(int version, const std::string& file) {
  if (version == 1 || version == 2) return;
  throw Error("{}: plan version {} is not read, only 1 and 2", printable(file), version);
}

void check_bits(const Plan& plan, const std::string& file) {
  if (plan.version == 1) {
    for (const Program& p : plan.programs) {
      if (!p.in_few_bits()) continue;
      throw Error("{}: program '{}': 'k_bits' and 'v_bits' need version 2", printable(file),
                  printable(p.id));
    }
    if (!plan.centres.empty()) throw Error("{}: 'centres' needs version 2", printable(file));
    if (plan.kv_bits != 16 && plan.kv_bits != 32) {
      throw UsageError("{}: 'kv_bits' {} is not supported yet; use 16 or 32", printable(file),
                       plan.kv_bits);
    }
  }
  if (plan.centres.empty()) return;
  bool fits = plan.centres.size() == plan.heads.size();
  for (size_t l = 0; fits && l < plan.heads.size(); ++l) {
    fits = plan.centres[l].size() == plan.heads[l].size();
  }
  if (!fits) {
    throw Error("{}: 'centres' must have one entry a layer and KV head, as 'heads' has",
                printable(file));
  }
}

}  // namespace

void check_plan(const Plan& plan, const std::string& file) {
  check_version(plan.version, file);
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
  check_bits(plan, file);
  if (!plan.provenance.is_object()) throw Error("{}: 'provenance' must be an object", file);
}

Plan parse_plan(std::string_view text, const std::string& file) {
  const Json json = parse_json(text, file, kPlanLimits);
  Plan plan;
  plan.version = static_cast<int>(std::clamp<int64_t>(get_int(json, "version", file), -1, 1 << 30));
  check_version(plan.version, file);
  if (plan.version == 2 && find_field(json, "kv_bits", file) != nullptr) {
    throw Error("{}: 'kv_bits' is not known in version 2: programs say 'k_bits' and 'v_bits'",
                printable(file));
  }
  refuse_unknown_keys(json,
                      {"version", "model", "unit", "lengths", "programs", "heads", "prefill",
                       plan.version == 1 ? "kv_bits" : "centres", "provenance"},
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
  if (find_field(json, "centres", file) != nullptr) {
    plan.centres =
        read_centres(get_object(json, "centres", file), fmt::format("{}: 'centres'", file));
  }
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
  for (const Program& program : plan.programs) {
    Json entry = program.entry;
    entry["id"] = program.id;
    programs.push_back(std::move(entry));
  }
  Json heads = Json::array();
  for (const std::vector<int>& row : plan.heads) {
    Json ids = Json::array();
    for (const int index : row) ids.push_back(plan.programs[static_cast<size_t>(index)].id);
    heads.push_back(std::move(ids));
  }
  Json json = {{"version", plan.version},
               {"model", plan.model},
               {"unit", "kv_head"},
               {"lengths", plan.lengths},
               {"programs", std::move(programs)},
               {"heads", std::move(heads)},
               {"prefill", prefill_name(plan.prefill)},
               {"provenance", plan.provenance}};
  if (plan.version == 1) json["kv_bits"] = plan.kv_bits;
  if (!plan.centres.empty()) json["centres"] = to_json(plan.centres);
  return json;
}

std::string plan_text(const Plan& plan) {
  const Json json = plan_to_json(plan);
  std::string out = "{";
  for (const char* key : {"version", "model", "unit", "lengths", "programs", "heads", "prefill",
                          "kv_bits", "provenance", "centres"}) {
    if (!json.contains(key)) continue;
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
