#include "plan/search.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "data/tasks.h"
#include "io/error.h"
#include "io/sha256.h"
#include "plan/allocate.h"

namespace heed::plan {
namespace {

constexpr double kTextUnit = 0.005;   // ln perplexity ratio
constexpr double kRecallUnit = 0.03;  // share of expected recall
constexpr double kCopyUnit = 0.03;    // nats a token
constexpr double kRetrieval = 0.2;    // what copies and needles weigh beside text, each
constexpr size_t kMostCandidates = 10;

int64_t dense_positions(const Decoder& model, int64_t layer, int64_t length) {
  const auto& windows = model.config().windows;
  const int64_t window = windows.empty() ? 0 : windows[static_cast<size_t>(layer)];
  return window > 0 ? std::min(window, length) : length;
}

// Bytes of a number that shares are counted in.
constexpr int64_t kElement = 2;

// Bytes of a head's rows at a length, in a layer that slides by itself at most its own window's.
int64_t bytes_of(const Decoder& model, int64_t layer, const HeadProgram& program, int64_t length) {
  const mixer::HeadsView& heads = *model.blocks()[layer].mixer->heads();
  const auto bytes = [&](const HeadProgram& p, int64_t rows) {
    return p.bytes(rows, heads.head_dim, heads.value_dim, kElement);
  };
  const int64_t rows =
      std::min(kind_of(program).kept(program, length), dense_positions(model, layer, length));
  HeadProgram row{0, 0};
  row.k_bits = program.k_bits, row.v_bits = program.v_bits;
  const int64_t exact = program.in_few_bits() ? std::min(program.sinks, length) : 0;
  return bytes(row, rows) + bytes({}, exact);
}

int64_t dense_total(const Decoder& model, int64_t length) {
  int64_t sum = 0;
  for (int64_t l = 0; l < model.config().layers; ++l) {
    if (model.blocks()[l].mixer->heads()) {
      sum += model.config().kv_heads * bytes_of(model, l, {}, length);
    }
  }
  return sum;
}

std::string hash_of(const std::string& bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.hex();
}

std::string fingerprint(const std::vector<Sample>& samples) {
  std::string bytes;
  for (const auto& sample : samples) {
    if (!sample.answers.empty()) bytes.append("weighed answers");
    bytes.append(reinterpret_cast<const char*>(sample.tokens.data()),
                 sample.tokens.size() * sizeof(int64_t));
    bytes.append(reinterpret_cast<const char*>(sample.rows.data()),
                 sample.rows.size() * sizeof(int64_t));
  }
  return hash_of(bytes);
}

std::string fingerprint(const std::vector<data::NeedleDocument>& documents) {
  std::string bytes;
  for (const auto& document : documents) {
    bytes.append(reinterpret_cast<const char*>(document.tokens.data()),
                 document.tokens.size() * sizeof(int32_t));
  }
  return hash_of(bytes);
}

double total(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

std::vector<double> a_row(const std::vector<double>& squares, int64_t rows) {
  std::vector<double> values(squares.size());
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = 0.5 * squares[i] / static_cast<double>(std::max<int64_t>(rows, 1));
  }
  return values;
}

// With the first-order term, by [layer][KV head][option], flattened.
std::vector<double> changes(const Scores& scores) {
  std::vector<double> values(scores.quadratic.size());
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = 0.5 * scores.quadratic[i] + scores.linear[i];
    values[i] /= static_cast<double>(std::max<int64_t>(scores.rows, 1));
  }
  return values;
}

}  // namespace

Json to_json(const Candidate& candidate) {
  return {{"how", candidate.how},
          {"nll", candidate.measured.nll},
          {"copy_nll", candidate.measured.copy_nll},
          {"answer_nll", candidate.measured.answer_nll},
          {"recall", candidate.measured.recall},
          {"expected_recall", candidate.measured.expected_recall},
          {"objective", candidate.objective}};
}

Programs full_programs(const Decoder& model) {
  Programs programs;
  for (int64_t l = 0; l < model.config().layers; ++l) {
    programs.heads.emplace_back(model.blocks()[l].mixer->heads() ? model.config().kv_heads : 0);
  }
  return programs;
}

Plan to_plan(const Decoder& model, const Programs& programs, const std::vector<int64_t>& lengths,
             Json provenance) {
  Plan plan;
  plan.model = model.hash();
  plan.lengths = lengths;
  plan.provenance = std::move(provenance);
  if (programs.dense_prefill) plan.prefill = Plan::Prefill::kDense;
  for (const auto& layer : programs.heads) {
    std::vector<int> indices;
    for (const auto& head : layer) {
      Program program{kind_of(head).id(head), kind_of(head).entry(head)};
      size_t index = 0;
      while (index < plan.programs.size() && plan.programs[index].id != program.id) ++index;
      if (index == plan.programs.size()) plan.programs.push_back(program);
      indices.push_back(static_cast<int>(index));
    }
    plan.heads.push_back(std::move(indices));
  }
  if (!plan.in_few_bits()) return plan;
  plan.version = 2;
  for (const auto& layer : programs.heads) {
    auto& centres = plan.centres.emplace_back();
    for (const auto& head : layer) centres.push_back(head.centre);
  }
  return plan;
}

double budget_of(const Decoder& model, const Programs& programs, int64_t length) {
  int64_t kept = 0;
  for (size_t l = 0; l < programs.heads.size(); ++l) {
    for (const auto& program : programs.heads[l]) {
      kept += bytes_of(model, static_cast<int64_t>(l), program, length);
    }
  }
  const int64_t all = dense_total(model, length);
  return all ? static_cast<double>(kept) / static_cast<double>(all) : 0;
}

namespace {

// A document of the calibration's kinds with questions about it, all of which fit into `context`:
// sentences with answers of every kind in turn with lists. Where the tokenizer or the context leave
// no room for them, five-digit codes.
data::NeedleDocument calibration_document(const data::TaskGenerator& tasks,
                                          const data::RecallGenerator& codes, int64_t n,
                                          int64_t context, data::Random& random) {
  std::vector<const data::TaskKind*> kinds;
  const std::string_view together = n % 3 == 2 ? "lists" : "planted";
  for (const data::TaskKind& kind : data::task_kinds(data::Split::kCalibration)) {
    if (kind.name.starts_with(together)) kinds.push_back(&kind);
  }
  const int64_t length = context - context / 8;
  if (auto document = tasks.document(kinds, length, 2, random)) return std::move(*document);
  const int64_t needles = std::clamp<int64_t>(context / 256, 4, 16);
  int64_t questions = 0;
  for (const auto& needle : codes.needles(context, needles, random).needles) {
    questions += static_cast<int64_t>(needle.question.size() + needle.answer.size()) + 2;
  }
  return codes.needles(context - std::min(questions, context / 4), needles, random);
}

}  // namespace

SearchData make_search_data(const data::RecallGenerator& generator, const data::Corpus& corpus,
                            int64_t context, int64_t scored, int64_t checked, uint64_t seed) {
  SearchData data;
  const auto windows = eval::spread_windows(corpus, scored + checked, context);
  data::Random copies(seed, 0xc0b1e5);
  const int64_t from = std::min(eval::kScoredFrom, context / 2);
  // Every (scored + checked) / checked-th window is for checking, so that both see the whole text.
  for (int64_t n = 0; n < scored + checked; ++n) {
    const bool check = (n + 1) * checked / (scored + checked) > n * checked / (scored + checked);
    if (check) {
      data.check_texts.push_back(windows[n]);
      data.check_copies.push_back(copy_sample(windows[n], copies));
    } else {
      data.texts.push_back(text_sample(windows[n], from));
      data.copies.push_back(copy_sample(windows[n], copies));
    }
  }
  data::Random random(seed, 0x5ea7c4);
  const data::TaskGenerator tasks(corpus, generator.codec());
  for (int64_t n = 0; n < scored + checked; ++n) {
    data::NeedleDocument document =
        calibration_document(tasks, generator, n < scored ? n : n - scored, context, random);
    if (n < scored) {
      data.needles.push_back(needle_sample(document, context));
    } else {
      data.check_needles.push_back(std::move(document));
    }
  }
  return data;
}

Search::Search(const Decoder& model, SearchData data, SearchOptions options, Progress& progress)
    : model_(model), data_(std::move(data)), options_(std::move(options)), progress_(progress) {
  if (options_.lengths.empty()) throw UsageError("a plan needs at least one length (--lengths)");
  if (!options_.grid.bits.empty()) {
    centres_ = measure_centres(model_, data_.texts, options_.grid.sinks, progress_);
  }
  text_ = scored("text", data_.texts);
  needle_ = scored("needles", data_.needles);
  copy_ = scored("copies", data_.copies);
  dense_ = measure(nullptr);
}

Scores Search::scored(const std::string& name, const std::vector<Sample>& samples) {
  std::string key = fmt::format("{}/sinks={}", name, options_.grid.sinks);
  for (int64_t window : options_.grid.windows) key += fmt::format(",{}", window);
  for (int bits : options_.grid.bits) key += fmt::format("/{}", bits);
  const std::string scope = "plan-scores-3/" + model_.hash() + "/" + fingerprint(samples);
  if (options_.records) {
    if (const auto kept = options_.records->get_result(scope, key)) {
      return scores_from_json(Json::parse(*kept), options_.records->path());
    }
  }
  auto scores = score_heads(model_, samples, options_.grid, nullptr, centres_, progress_);
  if (options_.records) options_.records->put_result(scope, key, to_json(scores).dump());
  return scores;
}

Measured Search::measure(const Programs* programs) {
  eval::Setting setting;
  setting.programs = programs;
  setting.kv_dtype = options_.kv_dtype;
  Measured measured;
  const int64_t length = static_cast<int64_t>(data_.check_texts.at(0).size());
  measured.nll = eval::measure_text(model_, data_.check_texts, setting,
                                    std::min(eval::kScoredFrom, length / 2), progress_)
                     .nll();
  for (const Sample& copy : data_.check_copies) {
    measured.copy_nll +=
        eval::measure_text(model_, {copy.tokens}, setting, copy.rows.front() + 1, progress_).nll() /
        static_cast<double>(data_.check_copies.size());
  }
  const auto needles = eval::measure_needles(model_, data_.check_needles, setting, progress_);
  measured.recall = eval::recall_of(needles);
  measured.answer_nll = eval::answer_nll_of(needles);
  measured.expected_recall = eval::expected_recall_of(needles);
  return measured;
}

void Losses::add(const Losses& other, double weight) {
  const auto sum = [&](std::vector<double>& to, const std::vector<double>& from) {
    to.resize(from.size());
    for (size_t i = 0; i < from.size(); ++i) to[i] += weight * from[i];
  };
  sum(windows, other.windows);
  sum(keys, other.keys);
  sum(values, other.values);
}

Losses Search::losses_of(const Scores& scores) const {
  return {a_row(scores.quadratic, scores.rows), a_row(scores.keys, scores.rows),
          a_row(scores.values, scores.rows)};
}

std::vector<std::pair<HeadProgram, Option>> Search::options_of(int64_t layer, int64_t head,
                                                               bool keep_full,
                                                               const Losses& losses) const {
  const Grid& grid = options_.grid;
  const auto bits = static_cast<int64_t>(grid.bits.size());
  std::vector<std::pair<HeadProgram, Option>> all;
  for (int64_t p = keep_full ? grid.options() - 1 : 0; p < grid.options(); ++p) {
    for (int64_t k = -1; k < bits; ++k) {
      for (int64_t v = -1; v < bits; ++v) {
        HeadProgram program = grid.program(p);
        Option option;
        option.loss = losses.windows[text_.index(layer, head, p)];
        if (k >= 0) {
          program.k_bits = static_cast<int8_t>(grid.bits[k]);
          option.loss += losses.keys[text_.bits_index(layer, head, k)];
        }
        if (v >= 0) {
          program.v_bits = static_cast<int8_t>(grid.bits[v]);
          option.loss += losses.values[text_.bits_index(layer, head, v)];
        }
        if (program.in_few_bits()) program.sinks = grid.sinks;
        for (int64_t length : options_.lengths) {
          option.bytes.push_back(bytes_of(model_, layer, program, length));
        }
        all.emplace_back(std::move(program), std::move(option));
      }
    }
  }
  std::vector<Option> options;
  options.reserve(all.size());
  for (const auto& [program, option] : all) options.push_back(option);
  std::vector<std::pair<HeadProgram, Option>> hull;
  for (const int i : lower_hull(options)) hull.push_back(all[i]);
  return hull;
}

Programs Search::allocated(const Losses& losses, double budget,
                           const std::set<int64_t>& kept_full) const {
  const auto& config = model_.config();
  std::vector<std::vector<Option>> heads;
  std::vector<std::vector<HeadProgram>> choices;
  std::vector<std::pair<int64_t, int64_t>> where;
  for (int64_t l = 0; l < config.layers; ++l) {
    if (!model_.blocks()[l].mixer->heads()) continue;
    for (int64_t h = 0; h < config.kv_heads; ++h) {
      const bool keep = kept_full.count(l * config.kv_heads + h) > 0;
      heads.emplace_back();
      choices.emplace_back();
      for (auto& [program, option] : options_of(l, h, keep, losses)) {
        choices.back().push_back(std::move(program));
        heads.back().push_back(std::move(option));
      }
      where.emplace_back(l, h);
    }
  }
  std::vector<int64_t> budgets;
  for (int64_t length : options_.lengths) {
    budgets.push_back(
        static_cast<int64_t>(budget * static_cast<double>(dense_total(model_, length))));
  }
  const auto chosen = allocate(heads, budgets);
  Programs programs = full_programs(model_);
  for (size_t n = 0; n < chosen.size(); ++n) {
    const auto [l, h] = where[n];
    HeadProgram& program = programs.heads[l][h];
    program = choices[n][static_cast<size_t>(chosen[n])];
    if (program.in_few_bits() && !centres_.empty()) program.centre = centres_[l][h];
  }
  return programs;
}

std::vector<double> Search::heads_alone() {
  const auto& config = model_.config();
  const int64_t count = static_cast<int64_t>(options_.grid.windows.size());
  std::vector<double> values(text_.quadratic.size(), 0);
  const std::string scope =
      "plan-alone-recall/" + model_.hash() + "/" + fingerprint(data_.check_needles);
  eval::Setting setting;
  setting.kv_dtype = options_.kv_dtype;
  progress_.begin("heads alone", config.layers * config.kv_heads);
  std::vector<int64_t> measured{0, count / 2, count - 1};
  measured.erase(std::unique(measured.begin(), measured.end()), measured.end());
  for (int64_t l = 0; l < config.layers; ++l) {
    if (!model_.blocks()[l].mixer->heads()) continue;
    for (int64_t h = 0; h < config.kv_heads; ++h) {
      std::vector<std::pair<double, double>> points;  // ln window, increase
      for (int64_t p : measured) {
        const std::string key =
            fmt::format("{}.{}/{}/{}", l, h, options_.grid.sinks, options_.grid.windows[p]);
        double increase = 0;
        std::optional<std::string> kept;
        if (options_.records) kept = options_.records->get_result(scope, key);
        if (kept) {
          increase = Json::parse(*kept).get<double>();
        } else {
          Programs programs = full_programs(model_);
          programs.heads[l][h] = options_.grid.program(p);
          setting.programs = &programs;
          const auto results = eval::measure_needles(model_, data_.check_needles, setting);
          increase = std::max(0.0, dense_.expected_recall - eval::expected_recall_of(results));
          if (options_.records) options_.records->put_result(scope, key, Json(increase).dump());
        }
        points.emplace_back(std::log(static_cast<double>(options_.grid.windows[p])), increase);
      }
      points.emplace_back(std::log(static_cast<double>(options_.lengths.back())), 0.0);
      for (int64_t p = 0; p < count; ++p) {
        const double x = std::log(static_cast<double>(options_.grid.windows[p]));
        size_t right = 0;
        while (right + 1 < points.size() && points[right].first < x) ++right;
        const auto& b = points[right];
        const auto& a = right ? points[right - 1] : b;
        const double t = b.first > a.first ? (x - a.first) / (b.first - a.first) : 0;
        values[text_.index(l, h, p)] = a.second + t * (b.second - a.second);
      }
      progress_.step(l * config.kv_heads + h + 1);
    }
  }
  return values;
}

Candidate& Search::run(std::string how, const Programs& programs) {
  for (auto& candidate : tried_) {
    if (candidate.programs.heads == programs.heads) return candidate;
  }
  Candidate candidate{std::move(how), programs, measure(&programs), 0};
  const double text = std::max(0.0, candidate.measured.nll - dense_.nll);
  const double lost = dense_.expected_recall > 0
                          ? 1 - candidate.measured.expected_recall / dense_.expected_recall
                          : 0;
  const double parts[] = {text / kTextUnit, std::max(0.0, lost) / kRecallUnit,
                          std::max(0.0, candidate.measured.copy_nll - dense_.copy_nll) / kCopyUnit};
  candidate.objective =
      *std::max_element(parts, parts + 3) + 0.1 * (parts[0] + parts[1] + parts[2]);
  tried_.push_back(std::move(candidate));
  return tried_.back();
}

Candidate Search::find(double budget, int repairs) {
  if (!(budget > 0 && budget <= 1)) {
    throw UsageError("a budget is a share of the dense cache above 0 and at most 1, not {}",
                     budget);
  }
  tried_.clear();
  if (budget == 1) {
    tried_.push_back({"dense", full_programs(model_), dense_, 0});
    return tried_[0];
  }
  tried_.reserve(kMostCandidates + 1);  // run() returns references
  const Losses text = losses_of(text_);
  Losses needle = losses_of(needle_);
  if (options_.measure_heads_alone && !options_.text_only) {
    const auto alone = heads_alone();
    const double of_alone = total(alone), of_needle = total(needle.windows);
    if (of_alone > 0) {
      for (size_t i = 0; i < alone.size(); ++i) {
        needle.windows[i] = 0.5 * (needle.windows[i] + alone[i] * of_needle / of_alone);
      }
    }
  }
  if (options_.text_only) return run("text scores", allocated(text, budget));
  const auto mix = [&](double weight) {
    Losses losses = text;
    losses.add(needle, kRetrieval * weight);
    losses.add(losses_of(copy_), kRetrieval * weight);
    return losses;
  };
  const auto best = [&]() -> const Candidate& {
    return *std::min_element(tried_.begin(), tried_.end(), [](const auto& a, const auto& b) {
      return a.objective < b.objective;
    });
  };
  // Weights on a geometric ladder: upwards while that helps, else downwards, then between
  // the best and its better neighbour.
  const auto search_weight = [&](double first, int count) {
    std::map<double, double> objective;
    const auto at = [&](double weight) {
      objective[weight] = run(fmt::format("scores, retrieval weight {:.3g}", weight),
                              allocated(mix(weight), budget))
                              .objective;
    };
    constexpr double kStep = 3;
    at(first);
    for (int n = 1; n < count; ++n) {
      const auto least =
          std::min_element(objective.begin(), objective.end(),
                           [](const auto& a, const auto& b) { return a.second < b.second; });
      const bool highest = std::next(least) == objective.end();
      if (highest) {
        at(least->first * kStep);
      } else if (least == objective.begin()) {
        at(least->first / kStep);
      } else {
        const auto below = std::prev(least), above = std::next(least);
        at(std::sqrt(least->first * (below->second < above->second ? below : above)->first));
      }
    }
    return std::min_element(objective.begin(), objective.end(),
                            [](const auto& a, const auto& b) { return a.second < b.second; })
        ->first;
  };
  const double weight =
      search_weight(1, std::min(options_.candidates, static_cast<int>(kMostCandidates)));
  if (repairs > 0) repair(best(), mix(weight), budget, repairs);
  return best();
}

void Search::repair(Candidate start, const Losses& losses, double budget, int tries) {
  // Around its windows: few bits have no gradients.
  Programs windows = start.programs;
  for (auto& layer : windows.heads) {
    for (HeadProgram& program : layer) program.k_bits = program.v_bits = 16;
  }
  const auto now =
      changes(score_heads(model_, data_.needles, options_.grid, &windows, {}, progress_));
  const int64_t heads = model_.config().kv_heads, full = options_.grid.options() - 1;
  std::set<int64_t> kept;                          // heads that stay full
  std::vector<std::pair<double, int64_t>> missed;  // gain by the full cache, head
  for (int64_t l = 0; l < model_.config().layers; ++l) {
    if (!model_.blocks()[l].mixer->heads()) continue;
    for (int64_t h = 0; h < heads; ++h) {
      if (start.programs.heads[l][h].full()) {  // in any number of bits
        kept.insert(l * heads + h);
      } else {
        missed.emplace_back(-now[text_.index(l, h, full)], l * heads + h);
      }
    }
  }
  std::sort(missed.rbegin(), missed.rend());
  // One full cache more may be beyond the budget even when all other heads keep the least.
  const auto fits = [&](const std::set<int64_t>& set) {
    Programs least = full_programs(model_);
    for (int64_t l = 0; l < model_.config().layers; ++l) {
      for (int64_t h = 0; h < static_cast<int64_t>(least.heads[l].size()); ++h) {
        if (!set.count(l * heads + h)) least.heads[l][h] = options_.grid.program(0);
      }
    }
    return std::all_of(options_.lengths.begin(), options_.lengths.end(),
                       [&](int64_t length) { return budget_of(model_, least, length) <= budget; });
  };
  double reached = start.objective;
  for (size_t n = 0; n < missed.size() && n < static_cast<size_t>(tries); ++n) {
    if (tried_.size() >= kMostCandidates) break;
    const auto [gain, head] = missed[n];
    auto with = kept;
    with.insert(head);
    if (gain <= 0 || !fits(with)) break;
    const auto& candidate =
        run(fmt::format("repair: layer {} head {} full", head / heads, head % heads),
            allocated(losses, budget, with));
    if (candidate.objective < reached) {
      reached = candidate.objective;
      kept = with;
    }
  }
}

Method method_from_name(const std::string& name) {
  if (name == "heed") return Method::kHeed;
  if (name == "text") return Method::kText;
  if (name == "duo") return Method::kDuo;
  if (name == "razor") return Method::kRazor;
  if (name == "uniform") return Method::kUniform;
  if (name == "bits") return Method::kBits;
  throw UsageError("unknown method \"{}\"; known are heed, text, duo, razor, uniform, bits", name);
}

Programs keep_top(const Decoder& model, const std::vector<std::vector<double>>& score,
                  const HeadProgram& rest, const std::vector<int64_t>& lengths, double budget) {
  std::vector<std::pair<size_t, size_t>> order;
  for (size_t l = 0; l < score.size(); ++l) {
    for (size_t h = 0; h < score[l].size(); ++h) order.emplace_back(l, h);
  }
  std::stable_sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
    return score[a.first][a.second] > score[b.first][b.second];
  });
  Programs programs = full_programs(model);
  for (const auto& [l, h] : order) programs.heads[l][h] = rest;
  const auto fits = [&] {
    return std::all_of(lengths.begin(), lengths.end(), [&](int64_t length) {
      return budget_of(model, programs, length) <= budget;
    });
  };
  if (!fits()) {
    throw UsageError(
        "a budget of {:g} is below what sinks + window of every head take; use a smaller "
        "window",
        budget);
  }
  for (const auto& [l, h] : order) {
    programs.heads[l][h] = {};
    if (!fits()) {
      programs.heads[l][h] = rest;
      break;
    }
  }
  return programs;
}

Programs bits_plan(const Decoder& model, int64_t exact, const std::vector<int64_t>& lengths,
                   double budget) {
  Programs programs = full_programs(model);
  for (const int bits : {8, 6, 5, 4, 3, 2}) {
    for (auto& layer : programs.heads) {
      for (HeadProgram& program : layer) {
        program.k_bits = program.v_bits = static_cast<int8_t>(bits);
        program.sinks = exact;
      }
    }
    if (std::all_of(lengths.begin(), lengths.end(),
                    [&](int64_t length) { return budget_of(model, programs, length) <= budget; })) {
      return programs;
    }
  }
  throw UsageError("a budget of {:g} is below two bits for all heads, {:g} of the dense cache",
                   budget, budget_of(model, programs, lengths.back()));
}

Programs uniform_plan(const Decoder& model, int64_t sinks, const std::vector<int64_t>& lengths,
                      double budget) {
  return razor_plan(model, {}, {}, sinks, lengths, budget, 0);
}

Programs razor_plan(const Decoder& model, const std::vector<std::vector<double>>& induction,
                    const std::vector<std::vector<double>>& echo, int64_t sinks,
                    const std::vector<int64_t>& lengths, double budget, double share) {
  using Place = std::pair<size_t, size_t>;
  const auto ranked = [](const std::vector<std::vector<double>>& score) {
    std::vector<Place> order;
    for (size_t l = 0; l < score.size(); ++l) {
      for (size_t h = 0; h < score[l].size(); ++h) order.emplace_back(l, h);
    }
    std::stable_sort(order.begin(), order.end(), [&](const Place& a, const Place& b) {
      return score[a.first][a.second] > score[b.first][b.second];
    });
    return order;
  };
  std::vector<Place> full;
  const auto by_induction = ranked(induction), by_echo = ranked(echo);
  const auto take = [&](const std::vector<Place>& order, double part) {
    const auto count = static_cast<size_t>(std::ceil(part * static_cast<double>(order.size())));
    for (size_t n = 0; n < count && n < order.size(); ++n) {
      if (std::find(full.begin(), full.end(), order[n]) == full.end()) full.push_back(order[n]);
    }
  };
  if (share > 0) {
    take(by_echo, 0.01);
    take(by_induction, share);
  }
  // Without probes this is the uniform plan of sinks and a window.
  const Dropped dropped = share > 0 ? Dropped::kMean : Dropped::kGone;
  const auto build = [&](size_t count, int64_t window) {
    Programs programs = full_programs(model);
    programs.dense_prefill = share > 0;
    for (auto& layer : programs.heads) {
      for (auto& program : layer) program = {window, sinks, dropped};
    }
    for (size_t n = 0; n < count; ++n) programs.heads[full[n].first][full[n].second] = {};
    return programs;
  };
  const auto fits = [&](const Programs& programs) {
    return std::all_of(lengths.begin(), lengths.end(), [&](int64_t length) {
      return budget_of(model, programs, length) <= budget;
    });
  };
  constexpr int64_t kLeast = 32;
  size_t count = full.size();
  while (count > 0 && !fits(build(count, kLeast))) --count;
  if (!fits(build(count, kLeast))) {
    throw UsageError("a budget of {:g} is below {} sinks and {} recent tokens a head", budget,
                     sinks, kLeast);
  }
  int64_t low = kLeast, high = *std::max_element(lengths.begin(), lengths.end());
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (fits(build(count, middle))) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return build(count, low);
}

Programs shuffled(const Programs& plan, uint64_t seed) {
  std::vector<HeadProgram> all;
  for (const auto& layer : plan.heads) all.insert(all.end(), layer.begin(), layer.end());
  data::Random random(seed, 0x5f0ff1e);
  random.shuffle(all);
  Programs result = plan;
  size_t next = 0;
  for (size_t l = 0; l < result.heads.size(); ++l) {
    for (size_t h = 0; h < result.heads[l].size(); ++h) {
      result.heads[l][h] = all[next++];
      result.heads[l][h].centre = plan.heads[l][h].centre;  // the head's own
    }
  }
  return result;
}

std::vector<std::vector<double>> train_gates(const Decoder& model,
                                             const std::vector<Sample>& samples,
                                             const GateOptions& options, Progress& progress) {
  const auto& config = model.config();
  const auto device = model.options().device;
  const int64_t group = config.heads / config.kv_heads;
  auto gates = at::ones({config.layers, config.kv_heads}, at::TensorOptions().device(device))
                   .requires_grad_();
  auto first = at::zeros_like(gates), second = at::zeros_like(gates);
  progress.begin("gates", options.steps);
  for (int step = 0; step < options.steps; ++step) {
    const Sample& sample = samples[static_cast<size_t>(step) % samples.size()];
    const auto ids = at::tensor(sample.tokens, at::kLong).to(device).unsqueeze(0);
    const auto rows = at::tensor(sample.rows, at::kLong).to(device);
    at::Tensor teacher;
    {
      at::NoGradGuard guard;
      Pass pass;
      teacher = model.hidden(ids, pass)[0].index_select(0, rows);
    }
    at::AutoGradMode with_gradients(true);
    Pass pass;
    pass.attention = [&](int64_t l, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const op::AttendOptions& asked) {
      check_interrupted();
      op::AttendOptions streaming = asked;
      streaming.window = options.window;
      streaming.sinks = options.sinks;
      const auto full = std::get<0>(op::attend(q, k, v, asked));
      const auto stream = std::get<0>(op::attend(q, k, v, streaming));
      const auto a =
          gates[l].clamp(0, 1).repeat_interleave(group).view({1, 1, -1, 1}).to(q.dtype());
      return a * full + (1 - a) * stream;
    };
    const auto student = model.hidden(ids, pass)[0].index_select(0, rows);
    const auto loss = (teacher - student).to(at::kFloat).square().mean() +
                      options.cost * gates.clamp(0, 1).abs().mean();
    gates.mutable_grad() = at::Tensor();
    loss.backward();
    at::NoGradGuard guard;
    // AdamW without decay; warm-up and decay over a fifth of the steps each, floor 0.1.
    const double ramp = std::max(1.0, options.steps / 5.0);
    const double rate =
        options.rate *
        std::clamp(std::min((step + 1) / ramp, (options.steps - step) / ramp), 0.1, 1.0);
    const auto gradient = gates.grad();
    first.mul_(0.9).add_(gradient, 0.1);
    second.mul_(0.999).addcmul_(gradient, gradient, 0.001);
    const auto m = first / (1 - std::pow(0.9, step + 1));
    const auto v = second / (1 - std::pow(0.999, step + 1));
    gates.sub_(rate * m / (v.sqrt() + 1e-8)).clamp_(0, 1);
    progress.step(step + 1, fmt::format("loss {:.4f}", loss.item<double>()));
  }
  progress.end();
  std::vector<std::vector<double>> result;
  const auto values = gates.detach().cpu();
  for (int64_t l = 0; l < config.layers; ++l) {
    std::vector<double> layer;
    if (model.blocks()[l].mixer->heads()) {
      for (int64_t h = 0; h < config.kv_heads; ++h) layer.push_back(values[l][h].item<float>());
    }
    result.push_back(std::move(layer));
  }
  return result;
}

}  // namespace heed::plan
