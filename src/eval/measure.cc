#include "eval/measure.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "cache/attend_states.h"
#include "cache/plan/kinds.h"
#include "io/error.h"
#include "kernel/attend/table.h"
#include "op/attend.h"
#include "op/view.h"

namespace heed::eval {
namespace {

using Clock = std::chrono::steady_clock;

void wait_for(const at::Device& device) {
  // A copy to the host waits for everything before it.
  if (device.is_cuda()) at::zeros({1}, at::TensorOptions().device(device)).item<float>();
}

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

at::Tensor as_ids(std::span<const int64_t> tokens, const at::Device& device) {
  return at::tensor(at::ArrayRef<int64_t>(tokens.data(), tokens.size()), at::kLong)
      .to(device)
      .unsqueeze(0);
}

// Loss of each row of logits [n, V] against targets [n], float32; rows are taken in pieces so that
// the scores of a long text never lie in memory at once.
at::Tensor row_losses(const Decoder& model, const at::Tensor& hidden, const at::Tensor& targets,
                      at::Tensor* correct = nullptr) {
  constexpr int64_t kRows = 256;
  std::vector<at::Tensor> losses, hits;
  for (int64_t begin = 0; begin < hidden.size(0); begin += kRows) {
    const int64_t end = std::min(begin + kRows, hidden.size(0));
    const auto scores = model.logits(hidden.slice(0, begin, end)).to(at::kFloat);
    const auto target = targets.slice(0, begin, end).unsqueeze(1);
    losses.push_back(at::logsumexp(scores, 1) - scores.gather(1, target).squeeze(1));
    if (correct) hits.push_back(scores.argmax(1) == target.squeeze(1));
  }
  if (correct) *correct = at::cat(hits).cpu();
  const auto all = at::cat(losses).cpu();
  if (!all.isfinite().all().item<bool>()) {
    throw Error(
        "the model's scores are not numbers; its weights are damaged, or its dtype cannot run this "
        "text: try --dtype float32");
  }
  return all;
}

StateOptions state_options(const Setting& setting) {
  StateOptions options;
  options.kv_dtype = setting.kv_dtype;
  options.programs = setting.programs;
  return options;
}

int64_t chunk_of(const Decoder& model, const Setting& setting) {
  if (setting.chunk > 0) return setting.chunk;
  return model.options().device.is_cuda() ? 4096 : 512;
}

// Runs tokens through the state chunk by chunk; `use` gets each chunk's hidden rows [n, C] and the
// position of the first.
template <typename Use>
double run_chunks(const Decoder& model, std::span<const int64_t> tokens, DecoderState& state,
                  int64_t chunk, Use use) {
  double spent = 0;
  const int64_t total = static_cast<int64_t>(tokens.size());
  for (int64_t begin = 0; begin < total; begin += chunk) {
    check_interrupted();
    const int64_t count = std::min(chunk, total - begin);
    const auto ids = as_ids(tokens.subspan(begin, count), model.options().device);
    Pass pass;
    pass.states = {&state};
    const auto start = Clock::now();
    const auto hidden = model.hidden(ids, pass);
    wait_for(model.options().device);
    spent += milliseconds_since(start);
    use(hidden[0], begin);
  }
  return spent;
}

// The keys and values of a layer that has any.
const Rows* rows_of(const DecoderState& state, int64_t l) {
  return state.layer(l).parts() > 0 ? state.layer(l).find_rows(0) : nullptr;
}

// ||out - softmax(scale q K^T) V|| / ||.|| over the rows that a head keeps (and the mean of those
// it dropped), in float64. q, out [D].
double head_error(const at::Tensor& q, const at::Tensor& out, const Rows& kv, int64_t head) {
  std::vector<at::Tensor> k, v;
  for (const auto& run : kv.runs(head)) {
    k.push_back(run.k.to(at::kDouble));
    v.push_back(run.v.to(at::kDouble));
  }
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(0)));
  const Rows::Stand stand = kv.mean(head);
  if (stand.k.defined()) {
    k.push_back(stand.k.to(at::kDouble));
    v.push_back(stand.v.to(at::kDouble));
  }
  at::Tensor logits = at::mv(at::cat(k), q.to(at::kDouble)).mul(scale);
  if (stand.k.defined()) logits[-1] += stand.bias;
  const auto weights = at::softmax(logits, 0);
  const auto expected = at::mv(at::cat(v).t(), weights);
  return (out.to(at::kDouble).sub(expected).norm() / expected.norm()).item<double>();
}

// One layer's attention call over a state as it is, for one token.
struct AttentionCall {
  const Rows* kv = nullptr;
  kernel::RaggedTable table;  // not where rows are grouped
  at::Tensor q, out, lse;

  AttentionCall(const Decoder& model, const Rows& rows);
  AttentionCall(AttentionCall&&) = default;
  double scale() const { return 1 / std::sqrt(static_cast<double>(q.size(1))); }
  void run() {
    if (kv->part().grouped) {
      attend_held(q, *kv, scale(), out);
    } else {
      kernel::AttendTable& jobs = table.finish();
      jobs.scale = static_cast<float>(scale());
      op::attend_jobs(jobs);
    }
  }
};

AttentionCall::AttentionCall(const Decoder& model, const Rows& rows) : kv(&rows) {
  const RowsPart& part = rows.part();
  const int64_t heads = rows.heads(), group = model.config().heads / heads;
  const auto floats = at::TensorOptions().dtype(at::kFloat).device(model.options().device);
  q = at::randn({heads * group, part.k_dim}, floats);
  out = at::empty({heads * group, part.v_dim}, floats);
  if (part.grouped) return;
  lse = at::empty({heads * group});
  const auto one_row = [](const at::Tensor& t) { return op::view_of(t.unsqueeze(0)); };
  table.start(one_row(q), one_row(out), one_row(lse), heads, op::view_dtype(part.dtype));
  for (int64_t h = 0; h < heads; ++h) {
    rows.add_segments(h, table.segments());
    kernel::AttendJob& job = table.add(0, 1, h, rows.length() - 1);  // the last token, as in a step
    const KeyLimit limit = kind_of(part.programs[h]).limit(part.programs[h]);
    job.window = limit.window;
    job.sinks = limit.sinks;
  }
}

// Times of one token's attention calls of all layers over the state as it is, and the largest error
// of a first head.
void time_attention(const Decoder& model, const DecoderState& state, int repeats, Latency& result) {
  std::vector<AttentionCall> layers;
  for (int64_t l = 0; l < model.config().layers; ++l) {
    if (const Rows* rows = rows_of(state, l)) layers.emplace_back(model, *rows);
  }
  for (int r = 0; r < repeats; ++r) {
    const auto start = Clock::now();
    for (auto& layer : layers) layer.run();
    wait_for(model.options().device);
    result.attention_times.push_back(milliseconds_since(start));
  }
  result.attention_ms = median(result.attention_times);
  for (const auto& layer : layers) {
    result.attention_error =
        std::max(result.attention_error, head_error(layer.q[0], layer.out[0], *layer.kv, 0));
  }
}

void count_bytes(const Decoder& model, const DecoderState& state, Latency& result) {
  result.context = state.length();
  result.kv_bytes = state.bytes();
  for (int64_t l = 0; l < model.config().layers; ++l) {
    if (const Rows* rows = rows_of(state, l)) {
      result.kv_formula += rows->part().formula_bytes(result.context);
    }
  }
}

// Feeds `steps` tokens one at a time, times each and their attention; `choose` gets the scores
// [1, V] over the token to feed. Returns the last scores.
template <typename Choose>
at::Tensor time_steps(const Decoder& model, DecoderState& state, at::Tensor scores, int steps,
                      Latency& result, Choose choose) {
  DecoderState* const states[] = {&state};
  for (int n = 0; n < steps && state.length() < model.context(); ++n) {
    check_interrupted();
    const int64_t next[] = {choose(scores)};
    const auto begin = Clock::now();
    scores = model.logits(model.step(next, states)[0]);
    wait_for(model.options().device);
    result.decode_times.push_back(milliseconds_since(begin));
  }
  result.decode_ms = median(result.decode_times);
  time_attention(model, state, steps, result);
  return scores;
}

}  // namespace

double TextResult::nll() const {
  double sum = 0;
  int64_t tokens = 0;
  for (const auto& text : texts) {
    sum += text.nll;
    tokens += text.tokens;
  }
  return tokens ? sum / static_cast<double>(tokens) : 0;
}

double TextResult::perplexity() const { return std::exp(nll()); }

TextResult measure_text(const Decoder& model, const std::vector<Tokens>& texts,
                        const Setting& setting, int64_t from, Progress& progress, int timed_steps) {
  c10::InferenceMode no_gradients;
  TextResult result;
  std::vector<double> times;
  progress.begin("perplexity", static_cast<int64_t>(texts.size()));
  for (size_t n = 0; n < texts.size(); ++n) {
    const Tokens& text = texts[n];
    const int64_t total = static_cast<int64_t>(text.size());
    const int64_t steps = n == 0 ? timed_steps : 0, read = total - steps;
    if (read <= from) {
      throw UsageError(
          "a text of {} tokens has nothing after position {} to score; give longer "
          "text or a smaller start",
          total, from);
    }
    const auto targets = as_ids(text, model.options().device)[0];
    auto state = model.make_state(state_options(setting));
    TextResult::Text scored;
    at::Tensor last_row;
    times.push_back(run_chunks(
        model, std::span(text).first(static_cast<size_t>(read)), *state, chunk_of(model, setting),
        [&](const at::Tensor& hidden, int64_t begin) {
          last_row = hidden.slice(0, hidden.size(0) - 1);
          // Row r predicts token begin + r + 1; scored are tokens from `from` on.
          const int64_t first = std::max<int64_t>(0, from - 1 - begin);
          const int64_t last = std::min(hidden.size(0), read - 1 - begin);
          if (first >= last) return;
          const auto losses = row_losses(model, hidden.slice(0, first, last),
                                         targets.slice(0, begin + first + 1, begin + last + 1));
          for (int64_t r = 0; r < last - first; r += kLossBlock) {
            const auto block = losses.slice(0, r, std::min(r + kLossBlock, last - first));
            scored.blocks.push_back(block.to(at::kDouble).sum().item<double>());
          }
          scored.nll += losses.to(at::kDouble).sum().item<double>();
          scored.tokens += last - first;
        }));
    result.kv_bytes = std::max(result.kv_bytes, state->bytes());
    if (steps > 0) {
      const auto start = Clock::now();
      const auto scores = model.logits(last_row);
      wait_for(model.options().device);
      result.latency.first_token_ms = times.back() + milliseconds_since(start);
      count_bytes(model, *state, result.latency);
      int64_t at = read;
      double stepped = 0;
      time_steps(model, *state, scores, static_cast<int>(steps), result.latency,
                 [&](const at::Tensor& of_next) {
                   const auto row = of_next.flatten().to(at::kFloat);
                   const int64_t token = text[static_cast<size_t>(at++)];
                   const double loss = (at::logsumexp(row, 0) - row[token]).item<double>();
                   scored.nll += loss;
                   stepped += loss;
                   ++scored.tokens;
                   return token;
                 });
      scored.blocks.push_back(stepped);
    }
    if (!std::isfinite(scored.nll)) {
      throw Error("the loss of text {} is not finite; the model or its dtype cannot run it", n);
    }
    result.texts.push_back(scored);
    progress.step(static_cast<int64_t>(n) + 1);
  }
  progress.end();
  result.prefill_ms = median(times);
  return result;
}

std::vector<NeedleResult> measure_needles(const Decoder& model,
                                          const std::vector<data::NeedleDocument>& documents,
                                          const Setting& setting, Progress& progress) {
  c10::InferenceMode no_gradients;
  std::vector<NeedleResult> results;
  progress.begin("questions", static_cast<int64_t>(documents.size()));
  for (size_t d = 0; d < documents.size(); ++d) {
    const auto& document = documents[d];
    const Tokens tokens(document.tokens.begin(), document.tokens.end());
    auto state = model.make_state(state_options(setting));
    run_chunks(model, tokens, *state, chunk_of(model, setting), [](const at::Tensor&, int64_t) {});

    // All questions in one pass: a pack with a fork of the state for each.
    std::vector<std::unique_ptr<DecoderState>> forks;
    Pass pass;
    pass.cu_seqlens = {0};
    Tokens ids, targets, rows;
    for (const auto& needle : document.needles) {
      const int64_t begin = static_cast<int64_t>(ids.size());
      ids.insert(ids.end(), needle.question.begin(), needle.question.end());
      ids.insert(ids.end(), needle.answer.begin(), needle.answer.end() - 1);
      for (size_t a = 0; a < needle.answer.size(); ++a) {
        rows.push_back(begin + static_cast<int64_t>(needle.question.size() + a) - 1);
        targets.push_back(needle.answer[a]);
      }
      pass.cu_seqlens.push_back(static_cast<int64_t>(ids.size()));
      forks.push_back(state->fork());
      pass.states.push_back(forks.back().get());
    }
    if (!document.needles.empty()) {
      const auto device = model.options().device;
      const auto hidden = model.hidden(as_ids(ids, device), pass)[0];
      at::Tensor correct;
      const auto losses = row_losses(model, hidden.index_select(0, as_ids(rows, device)[0]),
                                     as_ids(targets, device)[0], &correct);
      int64_t row = 0;
      for (const auto& needle : document.needles) {
        NeedleResult result;
        int64_t right = 0;
        for (size_t a = 0; a < needle.answer.size(); ++a, ++row) {
          right += correct[row].item<bool>();
          result.nll += losses[row].item<float>();
        }
        result.hit = right == std::ssize(needle.answer);
        result.right = static_cast<double>(right) / static_cast<double>(needle.answer.size());
        result.depth = needle.depth;
        result.length = static_cast<int64_t>(document.tokens.size());
        result.document = static_cast<int64_t>(d);
        results.push_back(result);
      }
    }
    progress.step(static_cast<int64_t>(d) + 1);
  }
  progress.end();
  return results;
}

int best_wording(const Decoder& model, const data::RecallGenerator& generator, int64_t context) {
  auto trial = generator;
  int best = generator.wording();
  double least = INFINITY;
  for (int wording : data::RecallGenerator::kWordings) {
    trial.use_wording(wording);
    data::Random random(11, static_cast<uint64_t>(wording));
    Setting setting;
    setting.kv_dtype = model.options().device.is_cuda() ? model.options().dtype : at::kHalf;
    const auto document =
        trial.needles(std::min<int64_t>(context, 1024) * 7 / 8, 4, random, context);
    const double nll = answer_nll_of(measure_needles(model, {document}, setting));
    if (nll < least) least = nll, best = wording;
  }
  return best;
}

double recall_of(const std::vector<NeedleResult>& results) {
  if (results.empty()) return 0;
  const auto hits =
      std::count_if(results.begin(), results.end(), [](const auto& r) { return r.hit; });
  return static_cast<double>(hits) / static_cast<double>(results.size());
}

double answer_nll_of(const std::vector<NeedleResult>& results) {
  if (results.empty()) return 0;
  double sum = 0;
  for (const auto& r : results) sum += r.nll;
  return sum / static_cast<double>(results.size());
}

double expected_recall_of(const std::vector<NeedleResult>& results) {
  if (results.empty()) return 0;
  double sum = 0;
  for (const auto& r : results) sum += std::exp(-r.nll);
  return sum / static_cast<double>(results.size());
}

namespace {

// The 95% interval of `of(sample)` where `sample` are n of the n items, drawn with replacement;
// what is not finite does not count.
template <typename Of>
void bootstrap(size_t n, uint64_t seed, Ratio& ratio, Of of) {
  constexpr int kResamples = 2000;
  std::vector<double> values;
  std::vector<size_t> sample(n);
  data::Random random(seed, 0x600d);
  for (int r = 0; r < kResamples; ++r) {
    for (size_t& item : sample) item = random.below(n);
    const double value = of(sample);
    if (std::isfinite(value)) values.push_back(value);
  }
  if (values.empty()) return;
  std::sort(values.begin(), values.end());
  ratio.low = values[values.size() * 25 / 1000];
  ratio.high = values[std::min(values.size() - 1, values.size() * 975 / 1000)];
}

}  // namespace

Ratio paired_ratio(std::span<const double> plan, std::span<const double> dense, uint64_t seed) {
  if (plan.size() != dense.size()) throw UsageError("a ratio of different items");
  const double of_dense = std::accumulate(dense.begin(), dense.end(), 0.0);
  Ratio ratio;
  if (of_dense == 0) return ratio;
  ratio.value = std::accumulate(plan.begin(), plan.end(), 0.0) / of_dense;
  bootstrap(plan.size(), seed, ratio, [&](const std::vector<size_t>& sample) {
    double above = 0, below = 0;
    for (const size_t i : sample) above += plan[i], below += dense[i];
    return above / below;
  });
  return ratio;
}

Ratio recall_ratio(const std::vector<NeedleResult>& plan, const std::vector<NeedleResult>& dense,
                   uint64_t seed) {
  const auto hits = [](const std::vector<NeedleResult>& results) {
    std::vector<double> out;
    for (const auto& result : results) out.push_back(result.hit);
    return out;
  };
  return paired_ratio(hits(plan), hits(dense), seed);
}

Ratio perplexity_ratio(std::span<const TextResult::Text> plan,
                       std::span<const TextResult::Text> dense, uint64_t seed) {
  std::vector<double> more;  // nats of each block beyond dense
  int64_t tokens = 0;
  for (size_t n = 0; n < dense.size(); ++n) {
    for (size_t b = 0; b < dense[n].blocks.size(); ++b) {
      more.push_back(plan[n].blocks.at(b) - dense[n].blocks[b]);
    }
    tokens += dense[n].tokens;
  }
  Ratio ratio;
  if (tokens == 0) return ratio;
  // The last block of a text may be short; drawing it as often as the others costs nothing.
  const auto count = static_cast<double>(tokens);
  ratio.value = std::exp(std::accumulate(more.begin(), more.end(), 0.0) / count);
  bootstrap(more.size(), seed, ratio, [&](const std::vector<size_t>& sample) {
    double sum = 0;
    for (const size_t i : sample) sum += more[i];
    return std::exp(sum / count);
  });
  return ratio;
}

Latency measure_latency(const Decoder& model, std::span<const int64_t> tokens,
                        const Setting& setting, int steps) {
  c10::InferenceMode no_gradients;
  Latency result;
  auto state = model.make_state(state_options(setting));
  const auto start = Clock::now();
  auto last = model.logits(model.prefill(tokens, *state, chunk_of(model, setting))[0]);
  wait_for(model.options().device);
  result.first_token_ms = milliseconds_since(start);
  result.first_scores = last.flatten().to(at::kFloat).cpu();
  count_bytes(model, *state, result);
  last = time_steps(model, *state, last, steps, result, [&](const at::Tensor& scores) {
    result.generated.push_back(scores.argmax(-1).item<int64_t>());
    return result.generated.back();
  });
  result.last_scores = last.flatten().to(at::kFloat).cpu();
  return result;
}

int64_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

std::vector<Tokens> spread_windows(const data::Corpus& corpus, int64_t count, int64_t length) {
  // Windows are cut from each document in turn, so that none crosses from one text into another.
  std::vector<std::pair<int64_t, int64_t>> places;
  for (int64_t d = 0; d < corpus.documents(); ++d) {
    for (int64_t begin = 0; begin + length <= corpus.length(d); begin += length) {
      places.emplace_back(d, begin);
    }
  }
  if (static_cast<int64_t>(places.size()) < count) {
    throw UsageError(
        "the text has {} tokens in {} documents: room for {} windows of {} tokens, "
        "{} are asked for; give more text or a smaller --context",
        corpus.tokens(), corpus.documents(), places.size(), length, count);
  }
  std::vector<Tokens> windows;
  for (int64_t n = 0; n < count; ++n) {
    const auto& [document, begin] =
        places[static_cast<size_t>(n) * places.size() / static_cast<size_t>(count)];
    const auto slice = corpus.slice(document, begin, length);
    windows.emplace_back(slice.begin(), slice.end());
  }
  return windows;
}

}  // namespace heed::eval
