// See batch.h.
#include "generate/batch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "generate/stop_filter.h"
#include "io/error.h"
#include "io/progress.h"

namespace heed {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

StateOptions states_of(const GenerateOptions& given, std::shared_ptr<StatePool> pool = nullptr) {
  StateOptions options;
  options.kv_dtype = given.kv_dtype;
  options.programs = given.programs;
  options.pool = std::move(pool);
  return options;
}

}  // namespace

struct Batch::Sequence {
  Sequence(const Tokenizer& tokenizer, Request given)
      : request(std::move(given)),
        sampler(request.options.sampling),
        stream(tokenizer, true, request.prompt),
        filter(request.options.stop, request.on_text),
        seen(request.prompt) {
    generation.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  }

  // The first reason counts: a callback may cancel while its own token is looked at.
  void end(const char* why) {
    if (!ended) generation.finish = why;
    ended = true;
  }
  // What `work` throws ends this sequence alone.
  template <typename Work>
  void guard(Work&& work) {
    try {
      work();
    } catch (const Interrupted&) {
      throw;
    } catch (...) {
      error = std::current_exception();
      end("error");
    }
  }

  bool reading() const { return read < request.prompt.size(); }

  int64_t id = 0;
  int64_t need = 0;  // bytes at the longest that it may become
  Request request;
  Sampler sampler;
  StreamDecoder stream;
  StopFilter filter;
  std::vector<int64_t> seen, ends;
  std::unique_ptr<DecoderState> state;
  at::Tensor scores;  // of the next token, [V]
  size_t read = 0;    // tokens of the prompt that have gone through the model
  Generation generation;
  Clock::time_point decoding_since;
  bool ended = false;
  std::exception_ptr error;
};

Batch::Batch(const Decoder& model, const Tokenizer& tokenizer, const BatchOptions& options)
    : model_(model),
      tokenizer_(tokenizer),
      options_(options),
      pool_(std::make_shared<StatePool>()) {
  if (options.sequences < 1) throw UsageError("a batch of no sequence; at least 1 was expected");
}

Batch::~Batch() = default;

int64_t Batch::add(Request request) {
  const auto tokens = static_cast<int64_t>(request.prompt.size());
  if (tokens == 0) throw UsageError("the prompt is empty: there is no token to start from");
  if (request.options.max_tokens < 0) {
    throw UsageError("the number of tokens to generate is negative");
  }
  if (tokens > model_.context()) {
    throw UsageError("the prompt has {} tokens, the model's context is {}", tokens,
                     model_.context());
  }
  auto sequence = std::make_unique<Sequence>(tokenizer_, std::move(request));
  const GenerateOptions& options = sequence->request.options;
  // The last token that is chosen is not fed.
  const int64_t room = model_.context() - tokens;
  const int64_t longest = tokens + std::clamp<int64_t>(options.max_tokens - 1, 0, room);
  sequence->need = model_.state_bytes(longest, states_of(options));
  if (options_.bytes > 0 && sequence->need > options_.bytes) {
    throw UsageError(
        "a prompt of {} tokens and what is to follow take {} bytes of states, {} are allowed; ask "
        "for fewer tokens",
        tokens, sequence->need, options_.bytes);
  }
  sequence->ends = model_.config().eos;
  for (int32_t id : tokenizer_.special().stop) sequence->ends.push_back(id);
  sequence->id = next_id_++;
  waiting_.push_back(std::move(sequence));
  return waiting_.back()->id;
}

bool Batch::step() {
  const at::NoGradGuard no_grad;
  check_interrupted();
  admit();
  read_prompt();
  for (const auto& sequence : running_) {
    if (!sequence->reading() && !sequence->ended) choose(*sequence);
  }
  feed();
  collect();
  return !waiting_.empty() || !running_.empty();
}

void Batch::admit() {
  while (!waiting_.empty() && running() < options_.sequences) {
    Sequence& next = *waiting_.front();
    if (options_.bytes > 0 && used_ + next.need > options_.bytes) return;
    next.state = model_.make_state(states_of(next.request.options, pool_));
    used_ += next.need;
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

void Batch::read_prompt() {
  const auto found = std::find_if(running_.begin(), running_.end(), [](const auto& sequence) {
    return sequence->reading() && !sequence->ended;
  });
  if (found == running_.end()) return;
  Sequence& s = **found;
  const GenerateOptions& options = s.request.options;
  const auto start = Clock::now();
  // A dense prefill sees the whole prompt in one pass; alone there is nobody to take turns with.
  const bool whole = running_.size() == 1 || s.state->dense_prefill();
  const auto ids = std::span<const int64_t>(s.request.prompt).subspan(s.read);
  const size_t count =
      whole ? ids.size()
            : std::min(ids.size(), static_cast<size_t>(std::max<int64_t>(options.chunk, 1)));
  s.guard([&] {
    const at::Tensor last = model_.prefill(ids.first(count), *s.state, options.chunk);
    s.read += count;
    if (!s.reading()) s.scores = model_.logits(last).flatten();
  });
  s.generation.prefill_seconds += seconds_since(start);
  s.decoding_since = Clock::now();
}

void Batch::choose(Sequence& s) {
  Generation& out = s.generation;
  const GenerateOptions& options = s.request.options;
  const auto chosen = [&] { return static_cast<int64_t>(out.tokens.size()); };
  s.guard([&] {
    if (chosen() >= options.max_tokens) return s.end("length");
    const int64_t id = s.sampler.next(s.scores, s.seen);
    out.tokens.push_back(id);
    s.seen.push_back(id);
    if (!options.ignore_eos && std::find(s.ends.begin(), s.ends.end(), id) != s.ends.end()) {
      s.end("eos");
      // Ids beyond the tokenizer's are padding of the embedding matrix and have no text.
    } else if (id < tokenizer_.vocab_size() &&
               s.filter.push(s.stream.push(static_cast<int32_t>(id)))) {
      s.end("stop");
    } else if (chosen() == options.max_tokens || s.state->length() == model_.context()) {
      s.end("length");
    }
  });
}

void Batch::feed() {
  // One call for all whose caches have the same type.
  std::map<at::ScalarType, std::vector<Sequence*>> groups;
  for (const auto& s : running_) {
    if (!s->reading() && !s->ended) groups[s->request.options.kv_dtype].push_back(s.get());
  }
  for (const auto& [type, group] : groups) {
    std::vector<int64_t> ids;
    std::vector<DecoderState*> states;
    for (Sequence* s : group) {
      ids.push_back(s->seen.back());
      states.push_back(s->state.get());
    }
    const at::Tensor scores = model_.scores(ids, states);
    for (size_t n = 0; n < group.size(); ++n) {
      group[n]->scores = scores[static_cast<int64_t>(n)];
    }
  }
}

void Batch::collect() {
  for (auto& s : running_) {
    if (!s->ended) continue;
    Generation& out = s->generation;
    s->guard([&] {
      const bool text = out.finish == "eos" || out.finish == "length";
      if (text && !s->filter.push(s->stream.finish())) s->filter.flush();
    });
    if (!s->reading()) out.decode_seconds = seconds_since(s->decoding_since);
    out.text = s->filter.text();
    out.kv_bytes = s->state->bytes();
    used_ -= s->need;
    results_[s->id] = {std::move(out), s->error};
    s.reset();
  }
  std::erase(running_, nullptr);
}

void Batch::cancel(int64_t id) {
  const auto is = [id](const auto& s) { return s && s->id == id; };
  if (const auto at = std::find_if(waiting_.begin(), waiting_.end(), is); at != waiting_.end()) {
    (*at)->generation.finish = "cancelled";
    results_[id] = {std::move((*at)->generation), nullptr};
    waiting_.erase(at);
    return;
  }
  const auto at = std::find_if(running_.begin(), running_.end(), is);
  if (at == running_.end() || (*at)->ended) return;
  (*at)->end("cancelled");  // collected by the next step
}

Generation Batch::take(int64_t id) {
  const auto at = results_.find(id);
  if (at == results_.end()) throw UsageError("request {} has not ended", id);
  const Ended ended = std::move(at->second);
  results_.erase(at);
  if (ended.error) std::rethrow_exception(ended.error);
  return ended.generation;
}

}  // namespace heed
