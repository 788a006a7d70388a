#include "train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <optional>

#include "data/corpus.h"
#include "data/packing.h"
#include "data/recall.h"
#include "data/records.h"
#include "data/tokenizer_codec.h"
#include "io/atomic_file.h"
#include "io/error.h"
#include "io/mapped_file.h"
#include "io/text_file.h"
#include "io/tokenizer/open.h"
#include "model/decoder.h"
#include "model/hub.h"
#include "model/source.h"
#include "op/cuda_plugin.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"
#include "train/loss.h"
#include "train/memory.h"
#include "train/optimizer.h"
#include "train/schedule.h"
#include "train/tokenizer.h"

namespace heed::train {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// Bytes and the end of a text: what any tokenizer that is trained has.
constexpr int64_t kLeastVocabulary = 257;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

ModelConfig model_config(const TrainConfig& config, int64_t vocab, const SpecialTokens& special) {
  ModelConfig model;
  const auto& m = config.model;
  model.family = m.family;
  model.vocab = vocab;
  model.hidden = m.hidden;
  model.intermediate = m.intermediate;
  model.layers = m.layers;
  model.heads = m.heads;
  model.kv_heads = m.kv_heads;
  model.head_dim = m.head_dim;
  model.max_position = config.data.length;
  model.windows.assign(static_cast<size_t>(std::max<int64_t>(0, m.layers)), 0);
  model.norm_eps = m.norm_eps;
  model.qkv_bias = m.family == "qwen2";
  model.qk_norm = m.family == "qwen3";
  model.tied = m.tied;
  model.rope.base = m.rope_base;
  if (special.eos >= 0) model.eos = {special.eos};
  model.bos = special.bos;
  for (const auto& [layer, what] : m.mixers.items()) {
    const std::string where = "model.mixers." + layer;
    const bool digits = layer.size() < 7 && std::all_of(layer.begin(), layer.end(), [](char ch) {
                          return ch >= '0' && ch <= '9';
                        });
    const int64_t number = digits && !layer.empty() ? std::stoll(layer) : -1;
    if (number < 0 || number >= m.layers || std::to_string(number) != layer) {
      throw UsageError("{}: there is no such layer; the model has 0 to {}", where, m.layers - 1);
    }
    if (!what.is_object() || !what.contains("mixer")) {
      throw UsageError(
          "{}: expected {{ mixer = \"ID\" }} or {{ mixer = \"ID\", options = {{ ... }} }}", where);
    }
    for (const auto& [key, value] : what.items()) {
      if (key == "mixer" || key == "options") continue;
      throw UsageError("{}: unknown key {}; a mixer's own options go into options = {{ ... }}",
                       where, key);
    }
    Json options = Json::object();
    if (const Json* given = find_field(what, "options", where)) options = *given;
    model.mixers[number] = {get_string(what, "mixer", where), options};
  }
  if (m.family == "llama" && m.heads > 0 && m.hidden % m.heads != 0) {
    throw UsageError(
        "model.hidden ({}) must be a multiple of model.heads ({}): transformers refuses a Llama "
        "without it; family = \"mistral\" is the same architecture without that rule",
        m.hidden, m.heads);
  }
  check_config(model, "[model]");
  return model;
}

// Throws UsageError where a resumed run would not be the run that was begun.
void check_same_run(const Json& before, const Json& now) {
  static const char* const kFixed[] = {"seed", "model", "data"};
  auto differ = [](const std::string& key) {
    throw UsageError("--resume: {} differs from the run that was begun; use another out", key);
  };
  for (const char* key : kFixed) {
    if (!before.contains(key)) differ(key);
    if (before[key] == now[key]) continue;
    if (!now[key].is_object()) differ(key);
    for (const auto& [name, value] : now[key].items()) {
      if (name == "cache" || name == "valid" || name == "test") continue;
      if (!before[key].contains(name) || before[key][name] != value) {
        differ(fmt::format("{}.{}", key, name));
      }
    }
  }
  for (const char* name : {"rows", "rows_per_pass"}) {
    if (before["train"][name] != now["train"][name]) differ(std::string("train.") + name);
  }
}

// curve.csv, which a resumed run cuts back to its checkpoint.
class Curve {
 public:
  Curve(const std::string& path, int64_t resumed_step) : path_(path) {
    std::string kept = kHeader;
    if (resumed_step > 0) {
      std::ifstream in(path);
      std::string line;
      std::getline(in, line);
      while (std::getline(in, line)) {
        if (std::strtoll(line.c_str(), nullptr, 10) <= resumed_step) kept += line + "\n";
      }
    }
    write_text_atomic(path, kept);
    out_.open(path, std::ios::app);
  }
  void add(int64_t step, int64_t tokens, double seconds, double lr, double loss, double norm,
           double rate, std::optional<double> valid, std::optional<double> recall) {
    out_ << fmt::format("{},{},{:.1f},{:.6g},{:.6f},{:.4f},{:.0f},{},{}\n", step, tokens, seconds,
                        lr, loss, norm, rate, valid ? fmt::format("{:.6f}", *valid) : "",
                        recall ? fmt::format("{:.4f}", *recall) : "")
         << std::flush;
    if (!out_) throw Error("{}: cannot be written; is the disk full?", path_);
  }

 private:
  static constexpr const char* kHeader =
      "step,tokens,seconds,lr,train_loss,grad_norm,tokens_per_second,valid_loss,valid_recall\n";
  std::string path_;
  std::ofstream out_;
};

// Everything that a run needs and keeps.
class Run {
 public:
  Run(const TrainConfig& config, bool resume, Progress& progress)
      : config_(config), progress_(progress), out_(config.out) {
    if (!config_.model.from.empty() && !config_.model.mixers.empty()) {
      throw UsageError(
          "model.mixers does not go with model.from: the layers of {} are trained as they are",
          config_.model.from);
    }
    open_device();
    const auto newest = newest_checkpoint(out_);
    if (newest && !resume) {
      throw UsageError("{}: holds a run already; add --resume, or name another folder with --out",
                       out_);
    }
    if (resume && !newest) throw UsageError("{}: holds no checkpoint to resume", out_);
    if (newest) {
      start_ = load_checkpoint(*newest);
      check_same_run(start_.config, config_to_json(config));
    }
    // Before anything is made: a folder of a run that could not begin would be in the way.
    for (const auto* texts : {&config_.data.train, &config_.data.valid, &config_.data.test}) {
      for (const std::string& text : *texts) const MappedFile readable(text);
    }
    const ModelConfig shape =
        config_.model.from.empty()
            ? model_config(config_, kLeastVocabulary, SpecialTokens())
            : ModelSource::open(resolve_model(config_.model.from, progress_)).config();
    check_memory(shape, config_, dtype_, device_);
    make_folders(out_);
    open_text();
    open_model();
    write_text_atomic((fs::path(out_) / "config.toml").string(), config_to_toml(config_));
  }

  TrainResult go();

 private:
  void open_device();
  void open_text();
  void open_model();
  // One optimiser step; returns the mean loss.
  double step(const data::Batch& batch, double lr, double* norm);
  void save();
  void log(double loss, double norm, double lr, bool validate);
  Json report();
  void open_record();
  void check_finite(double loss, double norm) const;
  void record_end(const char* status, const Json& summary);

  TrainConfig config_;
  Progress& progress_;
  std::string out_;
  at::Device device_ = at::kCPU;
  at::ScalarType dtype_ = at::kFloat;
  Checkpoint start_;
  std::string tokenizer_folder_;
  std::optional<Tokenizer> tokenizer_;
  data::TextCodec codec_;
  data::Corpus train_text_, valid_text_, test_text_;
  std::optional<data::RecallGenerator> train_recall_, valid_recall_;
  std::optional<data::Packing> packing_;
  std::vector<data::Batch> valid_batches_;
  std::optional<Decoder> model_;
  std::optional<AdamW> optimizer_;
  Schedule schedule_;
  std::optional<Curve> curve_;
  std::optional<data::Records> records_;
  int64_t run_id_ = 0;
  int64_t step_ = 0, rows_ = 0, tokens_per_step_ = 0;
  double seconds_before_ = 0;
  Clock::time_point begin_;
  // Since the last logged step.
  double window_seconds_ = 0;
  int64_t window_tokens_ = 0;
};

void Run::open_device() {
  if (config_.device == "cuda") {
    if (!config_.nondeterministic) {
      // cuBLAS reads this when it starts; without it its split sums may change from run to run.
      ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
    }
    op::open_cuda();
    device_ = at::Device(at::kCUDA, 0);
    at::globalContext().setDeterministicAlgorithms(!config_.nondeterministic, /*warn_only=*/true);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
  }
  const bool bf16 =
      config_.dtype == "bfloat16" || (config_.dtype == "auto" && config_.device == "cuda");
  dtype_ = bf16 ? at::kBFloat16 : at::kFloat;
}

void Run::open_text() {
  const auto& d = config_.data;
  tokenizer_folder_ = (fs::path(out_) / "tokenizer").string();
  if (!fs::exists(fs::path(tokenizer_folder_) / "tokenizer.json")) {
    make_folders(tokenizer_folder_);
    const std::string from =
        config_.tokenizer.path.empty() ? config_.model.from : config_.tokenizer.path;
    if (from.empty()) {
      train_tokenizer(d.train, d.separator, config_.tokenizer.vocab_size, tokenizer_folder_,
                      progress_);
    } else if (fs::is_directory(from)) {
      copy_tokenizer(from, tokenizer_folder_);
    } else {
      write_text_atomic((fs::path(tokenizer_folder_) / "tokenizer.json").string(),
                        read_text_file(from));
    }
  }
  tokenizer_ = open_tokenizer(tokenizer_folder_);
  const fs::path json = fs::path(tokenizer_folder_) / "tokenizer.json";
  codec_ =
      data::tokenizer_codec(*tokenizer_, fs::exists(json) ? read_text_file(json.string()) : out_);
  const data::CorpusOptions options{
      d.separator, d.cache.empty() ? (fs::path(out_) / "tokens").string() : d.cache, 0};
  train_text_ = data::Corpus::load(d.train, codec_, options, progress_);
  if (!d.valid.empty()) {
    valid_text_ = data::Corpus::load(d.valid, codec_, options, progress_);
  } else if (d.valid_documents > 0) {
    std::tie(train_text_, valid_text_) =
        train_text_.hold_out(d.valid_documents, static_cast<uint64_t>(config_.seed));
  }
  if (!d.test.empty()) test_text_ = data::Corpus::load(d.test, codec_, options, progress_);
  if (d.recall > 0) train_recall_.emplace(train_text_, codec_);
  if (config_.validation.recall_samples > 0) {
    valid_recall_.emplace(valid_text_.tokens() > 0 ? valid_text_ : train_text_, codec_);
  }
  data::PackingOptions packing;
  packing.length = d.length;
  packing.seed = static_cast<uint64_t>(config_.seed);
  packing.end_of_text = codec_.end_of_text;
  packing.recall = d.recall;
  packing.recall_kinds = d.recall_kinds;
  packing_.emplace(train_text_, packing, train_recall_ ? &*train_recall_ : nullptr);
  if (valid_text_.tokens() > 0) {
    valid_batches_ =
        data::validation_batches(valid_text_, d.length, config_.validation.rows,
                                 std::max<int64_t>(1, 32768 / d.length), codec_.end_of_text);
  }
}

void Run::open_model() {
  const LoadOptions plain;  // float32 on the CPU: what the master weights start from
  const LoadOptions wanted{dtype_, device_, config_.data.length};
  const auto seed = static_cast<uint64_t>(config_.seed);
  std::map<std::string, at::Tensor> weights;
  if (config_.model.from.empty()) {
    const auto shape = model_config(config_, tokenizer_->vocab_size(), tokenizer_->special());
    check_memory(shape, config_, dtype_, device_);  // now with the vocabulary
    for (const auto& [name, tensor] : Decoder::random(shape, seed, plain).parameters()) {
      weights[name] = tensor.detach();
    }
    model_.emplace(Decoder::random(shape, seed, wanted));
  } else {
    for (const auto& [name, tensor] : Decoder::load(config_.model.from, plain).parameters()) {
      weights[name] = tensor.detach();
    }
    model_.emplace(Decoder::load(config_.model.from, wanted));
    if (model_->config().vocab < tokenizer_->vocab_size()) {
      throw UsageError("model.from: {} has {} tokens, the tokenizer {}", config_.model.from,
                       model_->config().vocab, tokenizer_->vocab_size());
    }
  }
  model_->requires_grad(true);
  const auto& t = config_.train;
  optimizer_.emplace(model_->parameters(),
                     AdamWOptions{t.beta1, t.beta2, t.eps, t.weight_decay, t.clip});
  if (start_.step > 0) {
    optimizer_->load(start_.weights, start_.state, start_.step);
  } else {
    optimizer_->load_weights(weights);
  }
  start_.weights.clear();
  start_.state.clear();
  schedule_ = {t.lr, t.min_lr, t.warmup, t.steps, t.schedule == "wsd", t.decay};
  step_ = start_.step;
  rows_ = start_.rows;
  seconds_before_ = start_.seconds;
  tokens_per_step_ = t.rows * config_.data.length;
}

double Run::step(const data::Batch& batch, double lr, double* norm) {
  const int64_t per_pass =
      config_.train.rows_per_pass > 0 ? config_.train.rows_per_pass : config_.train.rows;
  const int64_t passes = config_.train.rows / per_pass;
  const int64_t pass_tokens = per_pass * config_.data.length;
  at::Tensor sum;
  for (int64_t p = 0; p < passes; ++p) {
    // The passes of a step are cut out of one batch; rows end where pieces end.
    data::Batch part;
    const int64_t begin = p * pass_tokens, end = begin + pass_tokens;
    part.ids.assign(batch.ids.begin() + begin, batch.ids.begin() + end);
    part.targets.assign(batch.targets.begin() + begin, batch.targets.begin() + end);
    for (const int64_t bound : batch.cu_seqlens) {
      if (bound >= begin && bound <= end) part.cu_seqlens.push_back(bound - begin);
    }
    auto on_device = to_device(part, device_);
    mixer::Aux aux;  // a router's balance, say: trained with, not part of a measured loss
    on_device.pass.aux = &aux;
    const at::Tensor hidden = model_->hidden(on_device.ids, on_device.pass);
    at::Tensor loss =
        chunked_cross_entropy(hidden.flatten(0, 1), model_->head().data, on_device.targets);
    for (const auto& [name, own] : aux.losses()) loss = loss + own;
    loss.backward();
    optimizer_->accumulate();
    sum = sum.defined() ? sum + loss.detach() : loss.detach();
  }
  const double loss = sum.item<double>() / static_cast<double>(passes);
  if (!std::isfinite(loss)) return loss;
  *norm = optimizer_->step(lr, passes);
  return loss;
}

void Run::save() {
  Checkpoint checkpoint;
  checkpoint.step = step_;
  checkpoint.rows = rows_;
  checkpoint.seconds = seconds_before_ + seconds_since(begin_);
  checkpoint.config = config_to_json(config_);
  checkpoint.weights = optimizer_->weights();
  checkpoint.state = optimizer_->state();
  save_checkpoint(out_, checkpoint, model_->config(), tokenizer_folder_, config_.checkpoint.keep);
}

void Run::log(double loss, double norm, double lr, bool validate) {
  std::optional<double> valid, recall;
  if (validate) {
    if (!valid_batches_.empty()) valid = mean_loss(*model_, valid_batches_);
    if (valid_recall_) {
      int64_t asked = 0, right = 0;
      const int64_t cell = std::max<int64_t>(1, config_.validation.recall_samples / 8);
      std::vector<double> depths(8);
      for (size_t n = 0; n < depths.size(); ++n) depths[n] = (static_cast<double>(n) + 0.5) / 8;
      for (const auto& c : passkey_recall(*model_, *valid_recall_, {config_.data.length}, depths,
                                          cell, static_cast<uint64_t>(config_.seed) + 1)) {
        asked += c.asked;
        right += c.right;
      }
      recall = static_cast<double>(right) / static_cast<double>(asked);
    }
  }
  const double rate = static_cast<double>(window_tokens_) / std::max(1e-9, window_seconds_);
  curve_->add(step_, step_ * tokens_per_step_, seconds_before_ + seconds_since(begin_), lr, loss,
              norm, rate, valid, recall);
  std::vector<std::pair<std::string, double>> values = {
      {"train_loss", loss}, {"lr", lr}, {"grad_norm", norm}, {"tokens_per_second", rate}};
  if (valid) values.emplace_back("valid_loss", *valid);
  if (recall) values.emplace_back("valid_recall", *recall);
  records_->add_metrics(run_id_, step_, values);
  window_tokens_ = 0;
  window_seconds_ = 0;
}

Json Run::report() {
  Json json = {{"name", config_.name},
               {"steps", step_},
               {"tokens", step_ * tokens_per_step_},
               {"seconds", seconds_before_ + seconds_since(begin_)},
               {"parameters", 0},
               {"train_text_tokens", train_text_.tokens()},
               {"device", config_.device},
               {"dtype", dtype_ == at::kFloat ? "float32" : "bfloat16"}};
  int64_t parameters = 0;
  for (const auto& [name, tensor] : model_->parameters()) parameters += tensor.numel();
  json["parameters"] = parameters;
  const int64_t rows_per_batch = std::max<int64_t>(1, 32768 / config_.data.length);
  auto measure = [&](const char* name, const data::Corpus& text) {
    if (text.tokens() == 0) return;
    // Every token once, in windows of data.length from the start of each document.
    const auto batches = data::validation_batches(text, config_.data.length, text.tokens(),
                                                  rows_per_batch, codec_.end_of_text);
    const double loss = mean_loss(*model_, batches, progress_);
    json[name] = {{"tokens", text.tokens()}, {"loss", loss}, {"perplexity", std::exp(loss)}};
  };
  measure("valid", valid_text_);
  measure("test", test_text_);
  if (valid_recall_) {
    std::vector<int64_t> lengths;
    for (int64_t length = config_.data.length; length >= 256 && lengths.size() < 3; length /= 2) {
      lengths.insert(lengths.begin(), length);
    }
    std::vector<double> depths;
    for (int n = 0; n <= 10; ++n) depths.push_back(n / 10.0);
    json["passkey"] = Json::array();
    const int64_t cell = std::max<int64_t>(1, config_.validation.recall_samples / 4);
    for (const auto& c : passkey_recall(*model_, *valid_recall_, lengths, depths, cell,
                                        static_cast<uint64_t>(config_.seed) + 2, progress_)) {
      json["passkey"].push_back(
          {{"length", c.length}, {"depth", c.depth}, {"asked", c.asked}, {"right", c.right}});
    }
  }
  return json;
}

void Run::record_end(const char* status, const Json& summary) {
  records_->finish_run(run_id_, status, canonical_json(summary));
}

void Run::open_record() {
  records_.emplace(config_.records.empty() ? data::default_records_path() : config_.records);
  const std::string folder = fs::absolute(out_).lexically_normal().string();
  const auto known = records_->find_run(folder);
  if (start_.step > 0 && known) {
    run_id_ = known->id;
    records_->resume_run(run_id_, start_.step);
  } else {
    run_id_ =
        records_->begin_run("train", config_.name, folder, canonical_json(config_to_json(config_)));
  }
}

// Where training diverged there is nothing to go on from: says which step, and what to try.
void Run::check_finite(double loss, double norm) const {
  if (std::isfinite(loss) && std::isfinite(norm)) return;
  const auto good = newest_checkpoint(out_);
  throw Error("step {}: the {} is {}; {}; try a lower train.lr or a longer train.warmup", step_ + 1,
              std::isfinite(loss) ? "gradient" : "loss", std::isfinite(loss) ? norm : loss,
              good ? "the last good checkpoint is " + *good : "there is no checkpoint yet");
}

TrainResult Run::go() {
  open_record();
  curve_.emplace((fs::path(out_) / "curve.csv").string(), start_.step);
  const auto& t = config_.train;
  const int64_t log_every = std::max<int64_t>(1, std::min<int64_t>(10, t.steps / 100));
  begin_ = Clock::now();
  auto window_begin = begin_;
  int64_t saved = start_.step;
  TrainResult result{out_, "", step_, Json()};
  auto next_batch = [&](int64_t row) {
    return std::async(std::launch::async, [this, row, &t] { return packing_->batch(row, t.rows); });
  };
  try {
    std::future<data::Batch> coming;
    if (step_ < t.steps) coming = next_batch(rows_);
    progress_.begin("training", t.steps);
    progress_.update(step_);
    while (step_ < t.steps) {
      const bool out_of_time = t.minutes > 0 && seconds_since(begin_) > 60 * t.minutes;
      if (g_interrupted.load() || out_of_time) {
        if (saved != step_) save();
        record_end("interrupted", {{"step", step_}});
        progress_.end();
        check_interrupted();
        result.step = step_;
        return result;
      }
      const data::Batch batch = coming.get();
      if (step_ + 1 < t.steps) coming = next_batch(rows_ + t.rows);
      const double lr = schedule_.at(step_);
      double norm = 0;
      const double loss = step(batch, lr, &norm);
      check_finite(loss, norm);
      ++step_;
      rows_ += t.rows;
      window_tokens_ += tokens_per_step_;
      window_seconds_ += seconds_since(window_begin);
      const double rate = static_cast<double>(window_tokens_) / std::max(1e-9, window_seconds_);
      progress_.update(step_, fmt::format("loss {:.3f}, {:.0f} tokens/s", loss, rate));
      const bool last = step_ == t.steps;
      const bool validate =
          last || (config_.validation.every > 0 && step_ % config_.validation.every == 0);
      if (validate || step_ == 1 || step_ % log_every == 0) log(loss, norm, lr, validate);
      if (last || (config_.checkpoint.every > 0 && step_ % config_.checkpoint.every == 0)) {
        save();
        saved = step_;
      }
      window_begin = Clock::now();
    }
    progress_.end();
    result.step = step_;
    result.report = report();
    result.model = (fs::path(out_) / "model").string();
    model_->requires_grad(false);
    model_->save(result.model, {.dtype = dtype_, .tokenizer_from = tokenizer_folder_});
    write_text_atomic((fs::path(out_) / "report.json").string(), pretty_json(result.report));
    record_end("done", result.report);
  } catch (const Interrupted&) {
    record_end("interrupted", {{"step", step_}});
    throw;
  } catch (const std::exception& e) {
    record_end("failed", {{"step", step_}, {"error", e.what()}});
    throw;
  }
  return result;
}

}  // namespace

TrainResult train(const TrainConfig& config, bool resume, Progress& progress) {
  return Run(config, resume, progress).go();
}

}  // namespace heed::train
