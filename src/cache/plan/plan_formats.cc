// See plan_formats.h.
#include "cache/plan/plan_formats.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "io/describe.h"
#include "io/error.h"

namespace heed {
namespace {

constexpr int64_t kMoaSink = 64;   // tokens, a "static" block
constexpr int64_t kMoaBlock = 64;  // spans are multiples of it

using Table = std::vector<std::vector<double>>;  // [layer][head]

void check_table(const Table& table, const std::string& file) {
  if (table.empty() || table[0].empty()) throw Error("{}: holds no heads", printable(file));
  for (size_t layer = 0; layer < table.size(); ++layer) {
    if (table[layer].size() != table[0].size()) {
      throw Error("{}: layer {} has {} heads, layer 0 has {}", printable(file), layer,
                  table[layer].size(), table[0].size());
    }
  }
}

Table parse_tsv(std::string_view text, const std::string& file) {
  Table table;
  size_t line = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view row = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++line;
    if (row.ends_with('\r')) row.remove_suffix(1);
    if (row.empty()) continue;
    std::vector<double>& out = table.emplace_back();
    while (true) {
      const size_t tab = std::min(row.find('\t'), row.size());
      double value = 0;
      const auto [stop, error] = std::from_chars(row.data(), row.data() + tab, value);
      if (error != std::errc() || stop != row.data() + tab || !std::isfinite(value)) {
        throw Error("{}: line {}, column {}: '{}' is not a number", printable(file), line,
                    out.size() + 1, printable(row.substr(0, tab), 40));
      }
      out.push_back(value);
      if (tab == row.size()) break;
      row.remove_prefix(tab + 1);
    }
  }
  check_table(table, file);
  return table;
}

Table get_table(const Json& json, const std::string& key, const std::string& file) {
  Table table;
  for (const Json& row : get_array(json, key, file)) {
    const std::string what = fmt::format("{}[{}]", key, table.size());
    if (!row.is_array()) throw Error("{}: '{}' must be an array of numbers", printable(file), what);
    std::vector<double>& out = table.emplace_back();
    for (const Json& value : row) out.push_back(as_float(value, what, file));
  }
  check_table(table, file);
  return table;
}

// The index of a program equal to `program` but for the id, added under the id if it is new.
int program_index(Plan& plan, Program program) {
  for (size_t i = 0; i < plan.programs.size(); ++i) {
    program.id = plan.programs[i].id;
    if (plan.programs[i] == program) return static_cast<int>(i);
  }
  program.id = program.full() ? "full" : fmt::format("window{}", plan.programs.size());
  plan.programs.push_back(std::move(program));
  return static_cast<int>(plan.programs.size()) - 1;
}

Program moa_program(double alpha, double beta) {
  if (alpha >= 0 && beta >= 1) return {};
  WindowEntry entry;
  entry.sink = kMoaSink;
  entry.window.alpha = alpha - static_cast<double>(kMoaSink);
  entry.window.beta = beta;
  entry.window.min = kMoaBlock;
  entry.window.round = kMoaBlock;
  return window_program("", entry);
}

// A number without a trailing fraction where it has none.
Json number(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return static_cast<int64_t>(value);
  return value;
}

}  // namespace

Plan plan_from_duo(std::string_view tsv, const std::string& file, const std::string& model,
                   const DuoOptions& options) {
  if (!(options.sparsity >= 0 && options.sparsity <= 1)) {
    throw UsageError("the sparsity must lie between 0 and 1, found {}", options.sparsity);
  }
  const Table gates = parse_tsv(tsv, file);
  const size_t columns = gates[0].size();
  const size_t count = gates.size() * columns;
  const auto gate = [&](size_t i) { return std::clamp(gates[i / columns][i % columns], 0.0, 1.0); };
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return gate(a) > gate(b); });
  // Of n different values, those at or above the quantile are all but the lowest
  // ceil((n - 1) sparsity). The small number takes up the rounding of the product.
  const double below = std::ceil(static_cast<double>(count - 1) * options.sparsity - 1e-9);
  const size_t full = options.sparsity >= 1 ? 0 : count - static_cast<size_t>(std::max(below, 0.0));

  Plan plan = full_plan(static_cast<int64_t>(gates.size()), static_cast<int64_t>(columns), model);
  WindowEntry stream;
  stream.sink = options.sink;
  stream.window.alpha = static_cast<double>(options.window);
  plan.programs.push_back(window_program("stream", stream));
  for (size_t i = full; i < count; ++i) plan.heads[order[i] / columns][order[i] % columns] = 1;
  plan.provenance = {{"method", "duo-attention"}, {"sparsity", options.sparsity}, {"gates", gates}};
  check_plan(plan, file);
  return plan;
}

std::string duo_from_plan(const Plan& plan) {
  std::string out;
  std::optional<int> window;  // the one program that is not full
  for (const std::vector<int>& row : plan.heads) {
    for (size_t head = 0; head < row.size(); ++head) {
      const bool full = plan.programs[static_cast<size_t>(row[head])].full();
      if (!full && window.value_or(row[head]) != row[head]) {
        throw UsageError("DuoAttention has one window for all heads; this plan has several");
      }
      if (!full) window = row[head];
      out += full ? "1" : "0";
      out += head + 1 < row.size() ? '\t' : '\n';
    }
  }
  return out;
}

Plan plan_from_moa(std::string_view text, const std::string& file, const std::string& model,
                   int64_t kv_heads, int64_t length) {
  const Json json = parse_json(text, file);
  const Table alphas = get_table(json, "alphas", file);
  const Table betas = get_table(json, "betas", file);
  if (alphas.size() != betas.size() || alphas[0].size() != betas[0].size()) {
    throw Error("{}: 'alphas' and 'betas' differ in shape", printable(file));
  }
  const auto rules = static_cast<int64_t>(alphas[0].size());
  if (kv_heads == 0) kv_heads = rules;
  if (kv_heads < 0 || rules % kv_heads != 0) {
    throw Error("{}: {} heads a layer cannot be shared out over {} KV heads", printable(file),
                rules, kv_heads);
  }
  const auto group = static_cast<size_t>(rules / kv_heads);
  Plan plan;
  plan.model = model;
  for (size_t layer = 0; layer < alphas.size(); ++layer) {
    std::vector<int>& row = plan.heads.emplace_back();
    for (size_t head = 0; head < alphas[layer].size(); head += group) {
      Program best = moa_program(alphas[layer][head], betas[layer][head]);
      for (size_t i = head + 1; i < head + group; ++i) {
        Program other = moa_program(alphas[layer][i], betas[layer][i]);
        if (kept_tokens(other, length) > kept_tokens(best, length)) best = std::move(other);
      }
      row.push_back(program_index(plan, std::move(best)));
    }
  }
  plan.provenance = {{"method", "moa"}};
  check_plan(plan, file);
  return plan;
}

std::string moa_from_plan(const Plan& plan) {
  Json alphas = Json::array();
  Json betas = Json::array();
  for (size_t layer = 0; layer < plan.heads.size(); ++layer) {
    Json alpha_row = Json::array();
    Json beta_row = Json::array();
    for (size_t head = 0; head < plan.heads[layer].size(); ++head) {
      const Program& program = plan.program(layer, head);
      if (program.full()) {
        alpha_row.push_back(0);
        beta_row.push_back(1);
        continue;
      }
      const WindowEntry entry = window_entry(program.entry);
      const WindowRule& rule = entry.window;
      double alpha = rule.alpha;
      bool same =
          entry.sink == kMoaSink && entry.comp.count == 0 && rule.kind == WindowRule::Kind::kLinear;
      if (rule.beta == 0) {
        // A fixed window is one of MoA's if it is whole blocks, however it was rounded.
        const int64_t fixed = window_length(rule, int64_t{1} << 50);
        alpha = static_cast<double>(fixed);
        same = same && fixed % kMoaBlock == 0;
      } else {
        same = same && rule.min == kMoaBlock && rule.round == kMoaBlock;
      }
      if (!same) {
        throw UsageError(
            "program '{}' is none of MoA's: {} sinks and windows of whole blocks of {} are needed",
            printable(program.id), kMoaSink, kMoaBlock);
      }
      alpha_row.push_back(number(alpha + static_cast<double>(kMoaSink)));
      beta_row.push_back(number(rule.beta));
    }
    alphas.push_back(std::move(alpha_row));
    betas.push_back(std::move(beta_row));
  }
  return canonical_json({{"alphas", alphas}, {"betas", betas}}) + "\n";
}

Plan plan_from_razor(std::string_view text, const std::string& file, const std::string& model,
                     int64_t layers, int64_t kv_heads, const RazorOptions& options) {
  const Json json = parse_json(text, file);
  if (!json.is_object()) throw Error("{}: must be a JSON object of layers", printable(file));
  if (layers < 1 || layers > 4096 || kv_heads < 1 || kv_heads > 4096) {
    throw UsageError("{} layers of {} KV heads are not a model", layers, kv_heads);
  }
  Plan plan = full_plan(layers, kv_heads, model);
  WindowEntry razor;
  razor.sink = options.sink;
  razor.window.kind = WindowRule::Kind::kRazor;
  razor.window.s0 = options.s0;
  razor.window.c = options.c;
  razor.comp.count = options.compensation ? 1 : 0;
  plan.programs.push_back(window_program("razor", razor));
  for (std::vector<int>& row : plan.heads) std::fill(row.begin(), row.end(), 1);
  for (const auto& [key, value] : json.items()) {
    int64_t layer = -1;
    const auto [stop, error] = std::from_chars(key.data(), key.data() + key.size(), layer);
    if (error != std::errc() || stop != key.data() + key.size() || layer < 0 || layer >= layers) {
      throw Error("{}: '{}' is not one of the model's {} layers", printable(file), printable(key),
                  layers);
    }
    for (const int64_t head : get_ints(json, key, file)) {
      if (head < 0 || head >= kv_heads) {
        throw Error("{}: layer {} names KV head {}, the model has {}", printable(file), layer, head,
                    kv_heads);
      }
      plan.heads[static_cast<size_t>(layer)][static_cast<size_t>(head)] = 0;
    }
  }
  plan.provenance = {{"method", "razor-attention"}};
  check_plan(plan, file);
  return plan;
}

std::string razor_from_plan(const Plan& plan) {
  std::string out;
  for (size_t layer = 0; layer < plan.heads.size(); ++layer) {
    Json full = Json::array();
    for (size_t head = 0; head < plan.heads[layer].size(); ++head) {
      if (plan.program(layer, head).full()) full.push_back(head);
    }
    if (full.empty()) continue;
    out += fmt::format("{}\"{}\":{}", out.empty() ? "{" : ",", layer, canonical_json(full));
  }
  return (out.empty() ? "{" : out) + "}\n";
}

}  // namespace heed
