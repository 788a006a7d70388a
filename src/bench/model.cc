#include "bench/model.h"

#include <ATen/ATen.h>

#include <unistd.h>

#include <cstdlib>
#include <random>

#include "bench/batch.h"
#include "bench/cases.h"
#include "bench/machine.h"
#include "bench/peer_process.h"
#include "cache/plan/kinds.h"
#include "eval/measure.h"
#include "io/error.h"
#include "model/hub.h"

namespace heed::bench {
namespace {

// One way to run the model, with what was measured of it.
struct Way {
  std::string name;
  const Programs* programs;
  std::vector<double> prefill, decode, attention;  // ms
  eval::Latency last;
};

std::vector<int64_t> random_tokens(const Decoder& model, int64_t count) {
  // Speed does not depend on what the tokens say.
  std::mt19937_64 random(1);
  std::vector<int64_t> tokens(static_cast<size_t>(count));
  for (int64_t& t : tokens) t = static_cast<int64_t>(random() % model.config().vocab);
  return tokens;
}

// Keys that the queries [begin, end) see together, over all layers and query heads.
int64_t visible_keys(const Decoder& model, const Programs* programs, int64_t begin, int64_t end) {
  const auto& config = model.config();
  const int64_t group = config.heads / config.kv_heads;
  int64_t sum = 0;
  for (int64_t l = 0; l < config.layers; ++l) {
    if (!model.blocks()[l].mixer->heads()) continue;
    for (int64_t h = 0; h < config.kv_heads; ++h) {
      const HeadProgram program = programs ? programs->heads[l][h] : HeadProgram();
      const ProgramKind& kind = kind_of(program);
      for (int64_t p = begin; p < end; ++p) sum += group * kind.kept(program, p + 1);
    }
  }
  return sum;
}

struct Weights {
  int64_t bytes = 0;   // read for one token
  int64_t layers = 0;  // numbers of the matrices that every token is multiplied by
  int64_t head = 0;    // of the output layer
};

Weights weights_of(const Decoder& model) {
  Weights w;
  w.head = model.config().vocab * model.config().hidden;
  for (const auto& [name, t] : model.parameters()) {
    const bool table = t.size(0) == model.config().vocab && t.dim() == 2;
    if (t.dim() == 2 && !table) w.layers += t.numel();
  }
  w.bytes = model.bytes_a_token();
  return w;
}

// The scores that each way should have given: one pass over all tokens without a cache.
at::Tensor expected_scores(const Decoder& model, const std::vector<int64_t>& tokens,
                           const Way& way) {
  const c10::InferenceMode no_gradients;
  std::vector<int64_t> all = tokens;
  all.insert(all.end(), way.last.generated.begin(), way.last.generated.end());
  const auto ids = at::tensor(all, at::kLong).to(model.options().device).unsqueeze(0);
  Pass pass;
  pass.programs = way.programs;
  const at::Tensor hidden = model.hidden(ids, pass)[0];
  const int64_t first = static_cast<int64_t>(tokens.size()) - 1;
  const at::Tensor rows = at::stack({hidden[first], hidden[hidden.size(0) - 1]});
  return model.logits(rows).to(at::kFloat).cpu();
}

double bound_of(const Decoder& model, at::ScalarType kv_dtype) {
  const at::ScalarType weights = model.options().dtype;
  if (weights == at::kBFloat16 || kv_dtype == at::kBFloat16) return 5e-2;
  if (weights == at::kHalf || kv_dtype == at::kHalf) return 1e-2;
  return 1e-4;
}

void accept(const std::string& name, double error, double bound) {
  if (error <= bound) return;
  throw Error(
      "bench: {}: relative error {:.2e} where {:.0e} is allowed; no figure is kept (run `heed "
      "test`, and report it with this line)",
      name, error, bound);
}

std::string dtype_name(at::ScalarType dtype) {
  return dtype == at::kFloat ? "float32" : (dtype == at::kHalf ? "float16" : "bfloat16");
}

// As --weights calls it.
const char* weights_name(WeightForm weights) {
  switch (weights) {
    case WeightForm::kExact:
      return "exact";
    case WeightForm::kBlocks:
      return "blocks";
    case WeightForm::kQ8_0:
      return "q8_0";
    case WeightForm::kQ4_0:
      return "q4_0";
  }
  return "";
}

void set_times(Record& r, const std::vector<double>& times) {
  r.ms = median_of(times);
  r.ms_min = *std::min_element(times.begin(), times.end());
  r.ms_max = *std::max_element(times.begin(), times.end());
  r.runs = static_cast<int>(times.size());
}

void check_model_peers(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    if (name == "none" || name == "transformers" || name == "llama.cpp") continue;
    throw UsageError("--peers: `{}` is not known, expected none, transformers or llama.cpp", name);
  }
}

// Hugging Face transformers in a Python of its own, where there is one.
struct Transformers {
  std::unique_ptr<PeerProcess> process;
  std::string version, reason;
  std::vector<double> prefill, decode;  // ms
};

Transformers open_transformers(const Decoder& model) {
  Transformers t;
  const char* named = std::getenv("HEED_BENCH_PYTHON");
  const std::string python = named ? named : home_folder() + "/.venv-interop/bin/python";
  if (::access(python.c_str(), X_OK) != 0) {
    t.reason = "no Python with transformers (./heed test --all makes one)";
  } else if (model.options().device.is_cuda() || model.options().dtype != at::kFloat) {
    t.reason = "timed in float32 on the CPU only";
  } else {
    try {
      t.process = std::make_unique<PeerProcess>(
          std::vector<std::string>{python, home_folder() + "/bench/transformers_peer.py",
                                   model.path(), std::to_string(at::get_num_threads())});
      const Json hello = t.process->receive();
      t.reason = get_string(hello, "error", python, "");
      t.version = get_string(hello, "version", python, "");
    } catch (const Interrupted&) {
      throw;
    } catch (const Error& e) {
      t.reason = e.what();
    }
  }
  if (!t.reason.empty()) t.process.reset();
  return t;
}

void run_transformers(Transformers& t, const std::vector<int64_t>& tokens, int steps) {
  t.process->send({{"tokens", tokens}, {"steps", steps}});
  const Json answer = t.process->receive();
  t.prefill.push_back(get_float(answer, "prefill", "transformers"));
  for (const double ms : get_floats(answer, "decode", "transformers")) t.decode.push_back(ms);
}

class Report {
 public:
  Report(const Decoder& model, const ModelOptions& options, const Transformers& transformers)
      : model_(model),
        options_(options),
        transformers_(transformers),
        weights_(weights_of(model)) {}

  void add(const Way& way, const at::Tensor& expected) {
    const auto& config = model_.config();
    const int64_t tokens = options_.context, end = model_.config().layers;
    const int64_t width = 4 * config.head_dim;  // flops a key and query head
    const int64_t kv = way.last.kv_bytes;
    const double bound = bound_of(model_, options_.kv_dtype);

    Record prefill = start(way, "generate", "prefill", way.prefill);
    prefill.flops = 2 * (weights_.layers * tokens + weights_.head) +
                    width * visible_keys(model_, way.programs, 0, tokens);
    prefill.bytes = weights_.bytes + kv;
    prefill.error = relative_error(way.last.first_scores, expected[0]);
    accept(prefill.name, prefill.error, bound);
    prefill.more["tokens_per_second"] = static_cast<double>(tokens) / prefill.ms * 1e3;
    finish(prefill, way);

    Record decode = start(way, "generate", "decode", way.decode);
    const int64_t seen = visible_keys(model_, way.programs, tokens, tokens + 1);
    decode.flops = 2 * (weights_.layers + weights_.head) + width * seen;
    decode.bytes = weights_.bytes + kv;
    decode.error = relative_error(way.last.last_scores, expected[1]);
    accept(decode.name, decode.error, bound);
    decode.more["tokens_per_second"] = 1e3 / decode.ms;
    finish(decode, way);

    if (way.attention.empty() || end == 0) return;
    Record attention = start(way, "softmax-decode", "decode", way.attention);
    attention.dtype = dtype_name(options_.kv_dtype);
    attention.arithmetic = "float32";
    attention.flops = width * seen;
    attention.bytes = kv;
    attention.error = way.last.attention_error;
    attention.reference = "float64, the first head of every layer";
    accept(attention.name, attention.error, forward_bound("float32"));
    finish(attention, way);
  }

  std::vector<Record> take() { return std::move(records_); }

 private:
  Record start(const Way& way, const std::string& op, const std::string& pass,
               const std::vector<double>& times) const {
    const auto& config = model_.config();
    Record r;
    r.name = fmt::format("model/{}/{}/{}/context{}/{}", options_.name, op, pass, options_.context,
                         way.name);
    r.op = op;
    r.pass = pass;
    r.dtype = dtype_name(model_.options().dtype);
    r.shape = {{"B", 1},
               {"T", pass == "prefill" ? options_.context : 1},
               {"H", config.heads},
               {"Hk", config.kv_heads},
               {"Dk", config.head_dim},
               {"Dv", config.head_dim},
               {"layers", config.layers},
               {"context", options_.context},
               {"model", options_.name},
               {"plan", way.name},
               {"kv_dtype", dtype_name(options_.kv_dtype)}};
    r.reference = "one pass without a cache in the model's dtype";
    set_times(r, times);
    return r;
  }

  // What all have: bytes of the cache, and the dense model beside the plan.
  void finish(Record& r, const Way& way) {
    r.more["weights"] = weights_name(model_.options().weights);
    r.more["kv_bytes"] = way.last.kv_bytes;
    r.more["kv_formula"] = way.last.kv_formula;
    if (way.programs) {
      for (const Record& dense : records_) {
        if (dense.op != r.op || dense.pass != r.pass || dense.shape["plan"] != "dense") continue;
        PeerRecord peer;
        peer.name = "dense";
        peer.version = HEED_VERSION;
        peer.ms = dense.ms;
        peer.ms_min = dense.ms_min;
        peer.ms_max = dense.ms_max;
        peer.error = dense.error;
        r.peers.push_back(std::move(peer));
      }
    }
    for (const std::string& name : options_.peers) {
      if (r.op != "generate" || name == "none") continue;
      PeerRecord peer;
      peer.name = name;
      if (name == "llama.cpp") {
        peer.reason = "no library of it is linked";
      } else if (!transformers_.process) {
        peer.reason = transformers_.reason;
      } else {
        const auto& times = r.pass == "prefill" ? transformers_.prefill : transformers_.decode;
        peer.version = transformers_.version;
        peer.error = -1;
        peer.ms = median_of(times);
        peer.ms_min = *std::min_element(times.begin(), times.end());
        peer.ms_max = *std::max_element(times.begin(), times.end());
      }
      r.peers.push_back(std::move(peer));
    }
    records_.push_back(std::move(r));
  }

  const Decoder& model_;
  const ModelOptions& options_;
  const Transformers& transformers_;
  const Weights weights_;
  std::vector<Record> records_;
};

}  // namespace

Json run_model(const Decoder& model, const ModelOptions& options, Progress& progress) {
  check_model_peers(options.peers);
  const int rounds = options.quick ? 1 : options.rounds;
  const int64_t steps = options.batch > 1 ? rounds * options.steps + 1 : options.steps;
  if (options.context + steps > model.context()) {
    throw UsageError("--context: {} tokens and {} steps do not fit, the model takes {}",
                     options.context, steps, model.context());
  }
  Machine machine = measure_machine(model.options().device, options.quick, progress);
  const auto tokens = random_tokens(model, options.context);
  std::vector<Way> ways = {{"dense", nullptr}};
  if (options.programs) ways.push_back({options.plan, options.programs});
  const auto count = static_cast<int64_t>(ways.size());
  Transformers transformers;
  if (std::find(options.peers.begin(), options.peers.end(), "transformers") !=
      options.peers.end()) {
    transformers = open_transformers(model);
  }
  progress.begin("Timing the model", (rounds + 1) * count);
  int64_t done = 0;
  for (int round = 0; round < rounds; ++round) {
    for (Way& way : ways) {
      progress.step(done++, way.name);
      eval::Setting setting;
      setting.programs = way.programs;
      setting.kv_dtype = options.kv_dtype;
      way.last = eval::measure_latency(model, tokens, setting, options.steps);
      const auto append = [](std::vector<double>& all, const std::vector<double>& more) {
        all.insert(all.end(), more.begin(), more.end());
      };
      way.prefill.push_back(way.last.first_token_ms);
      append(way.decode, way.last.decode_times);
      append(way.attention, way.last.attention_times);
    }
    if (transformers.process) run_transformers(transformers, tokens, options.steps);
  }
  Report report(model, options, transformers);
  for (Way& way : ways) {
    progress.step(done++, "checking " + way.name);
    report.add(way, expected_scores(model, tokens, way));
  }
  progress.end();
  std::vector<Record> records = report.take();
  if (options.batch > 1) {
    const double bound = bound_of(model, options.kv_dtype);
    for (Record& r : time_batch(model, tokens, options, bound, progress)) {
      records.push_back(std::move(r));
    }
  }
  measure_again(machine, model.options().device, options.quick, progress);
  return to_json(machine, records);
}

}  // namespace heed::bench
