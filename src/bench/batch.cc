// See batch.h.
#include "bench/batch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <memory>

#include "bench/timing.h"
#include "io/error.h"

namespace heed::bench {
namespace {

using Clock = std::chrono::steady_clock;

// Sequences that go on from the same tokens.
struct Sequences {
  std::vector<std::unique_ptr<DecoderState>> owned;
  std::vector<DecoderState*> states;
  std::vector<int64_t> ids;       // to feed next, one a sequence
  at::Tensor scores;              // [N, vocab] of the last step
  std::vector<double> wall, cpu;  // ms a step

  Sequences(const DecoderState& read, int64_t first, int64_t count) {
    for (int64_t n = 0; n < count; ++n) {
      owned.push_back(read.fork());
      states.push_back(owned.back().get());
    }
    ids.assign(static_cast<size_t>(count), first);
  }
  int64_t count() const { return static_cast<int64_t>(states.size()); }

  void step(const Decoder& model) {
    const auto start = Clock::now();
    const std::clock_t before = std::clock();
    scores = model.scores(ids, states);
    if (model.options().device.is_cuda()) scores = scores.cpu();
    cpu.push_back(1e3 * static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC);
    wall.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    const at::Tensor best = scores.argmax(-1).to(at::kLong).cpu();
    // They part: sequence n takes a token of its own.
    for (int64_t n = 0; n < count(); ++n) {
      ids[static_cast<size_t>(n)] =
          (best[n].item<int64_t>() + n) % static_cast<int64_t>(scores.size(1));
    }
  }
};

// What a sequence gets alone that is fed the same tokens, beside what it got among others.
double error_of(const Decoder& model, const DecoderState& read, int64_t first, int64_t count,
                int steps) {
  Sequences together(read, first, count);
  std::vector<std::vector<int64_t>> fed(static_cast<size_t>(count));
  for (int s = 0; s < steps; ++s) {
    for (int64_t n = 0; n < count; ++n) fed[n].push_back(together.ids[n]);
    together.step(model);
  }
  double worst = 0;
  for (int64_t n = 0; n < count; ++n) {
    Sequences alone(read, first, 1);
    for (const int64_t id : fed[n]) {
      alone.ids[0] = id;
      alone.step(model);
    }
    const at::Tensor expected = alone.scores[0].to(at::kDouble);
    const at::Tensor got = together.scores[n].to(at::kDouble);
    worst = std::max(worst, ((got - expected).norm() / expected.norm()).item<double>());
  }
  return worst;
}

Record record_of(const Decoder& model, const ModelOptions& options, const Sequences& of,
                 const std::string& dtype) {
  Record r;
  const int64_t n = of.count();
  r.op = "generate";
  r.pass = "decode";
  r.dtype = dtype;
  r.name = fmt::format("generate/decode/{}/{}-N{}-B{}", r.dtype, options.name, options.context, n);
  r.shape = {{"B", n},
             {"T", 1},
             {"layers", model.config().layers},
             {"context", options.context},
             {"model", options.name}};
  r.ms = median_of(of.wall);
  r.ms_min = *std::min_element(of.wall.begin(), of.wall.end());
  r.ms_max = *std::max_element(of.wall.begin(), of.wall.end());
  r.runs = static_cast<int>(of.wall.size());
  for (const auto& [name, t] : model.parameters()) {
    const bool table = t.dim() == 2 && t.size(0) == model.config().vocab;
    if (t.dim() < 2 || (table && t.data_ptr() != model.head().data.data_ptr())) continue;
    r.flops += 2 * n * t.numel();
  }
  r.bytes += model.bytes_a_token();
  for (const DecoderState* state : of.states) r.bytes += state->bytes();
  r.more["tokens_per_second"] = static_cast<double>(n) / r.ms * 1e3;
  r.more["cpu_ms"] = median_of(of.cpu);
  r.reference = "each sequence alone";
  return r;
}

}  // namespace

std::vector<Record> time_batch(const Decoder& model, std::span<const int64_t> tokens,
                               const ModelOptions& options, double bound, Progress& progress) {
  const c10::InferenceMode no_gradients;
  StateOptions given;
  given.kv_dtype = options.kv_dtype;
  const auto read = model.make_state(given);
  const int64_t first =
      model.logits(model.prefill(tokens, *read)).flatten().argmax().item<int64_t>();
  const int rounds = options.quick ? 1 : options.rounds;
  Sequences one(*read, first, 1), many(*read, first, options.batch);
  progress.begin("Side by side", rounds);
  one.step(model);  // warm: the sequences' states move beside each other
  many.step(model);
  for (Sequences* s : {&one, &many}) s->wall.clear(), s->cpu.clear();
  for (int round = 0; round < rounds; ++round) {
    for (int step = 0; step < options.steps; ++step) {
      one.step(model);
      many.step(model);
    }
    progress.step(round + 1);
  }
  progress.end();
  const std::string dtype = c10::toString(model.options().dtype);
  const std::string name =
      dtype == "Float" ? "float32" : (dtype == "Half" ? "float16" : "bfloat16");
  std::vector<Record> records = {record_of(model, options, one, name),
                                 record_of(model, options, many, name)};
  const double error = error_of(model, *read, first, options.batch, 3);
  if (error > bound) {
    throw Error("bench: {}: relative error {:.2e} where {:.0e} is allowed; no figure is kept",
                records[1].name, error, bound);
  }
  records[1].error = error;
  const double n = static_cast<double>(options.batch);
  records[1].more["times_one"] = n * records[0].ms / records[1].ms;
  records[1].more["times_one_cpu"] = n * median_of(one.cpu) / median_of(many.cpu);
  return records;
}

}  // namespace heed::bench
