// See generate.h.
#include "generate/generate.h"

#include <ATen/ATen.h>

#include <chrono>

#include "io/progress.h"
#include "io/template/template.h"
#include "io/tokenizer/open.h"

namespace heed {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string token_text(const Tokenizer& tokenizer, int32_t id) {
  return id >= 0 && id < tokenizer.vocab_size() ? tokenizer.id_to_token(id) : std::string();
}

// Passes text on as soon as it cannot belong to a stop string any more.
class StopFilter {
 public:
  StopFilter(const std::vector<std::string>& stop,
             const std::function<void(const std::string&)>& out)
      : stop_(stop), out_(out) {}

  // True when a stop string has come up: the text before it has been passed on.
  bool push(const std::string& text) {
    held_ += text;
    size_t at = std::string::npos;
    for (const std::string& stop : stop_) {
      if (!stop.empty()) at = std::min(at, held_.find(stop));
    }
    if (at != std::string::npos) {
      held_.resize(at);
      flush();
      return true;
    }
    size_t keep = 0;  // the longest end that begins a stop string
    for (const std::string& stop : stop_) {
      for (size_t n = std::min(stop.size(), held_.size() + 1); n-- > keep + 1;) {
        if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) keep = n;
      }
    }
    emit(held_.substr(0, held_.size() - keep));
    held_.erase(0, held_.size() - keep);
    return false;
  }
  void flush() {
    emit(held_);
    held_.clear();
  }
  const std::string& text() const { return text_; }

 private:
  void emit(const std::string& text) {
    if (text.empty()) return;
    text_ += text;
    if (out_) out_(text);
  }
  const std::vector<std::string>& stop_;
  const std::function<void(const std::string&)>& out_;
  std::string held_, text_;
};

}  // namespace

std::vector<int64_t> prompt_ids(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int64_t> out;
  const SpecialTokens& special = tokenizer.special();
  if (special.add_bos && special.bos >= 0) out.push_back(special.bos);
  for (int32_t id : tokenizer.encode(text)) out.push_back(id);
  return out;
}

std::vector<int64_t> chat_ids(const Tokenizer& tokenizer, const std::string& model_path,
                              const std::string& system, const std::string& user) {
  const std::string source = read_chat_template(model_path);
  if (source.empty()) {
    throw UsageError("{}: this model has no chat template; leave --chat out", model_path);
  }
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
  messages.push_back({{"role", "user"}, {"content", user}});
  ChatOptions options;
  options.add_generation_prompt = true;
  options.bos_token = token_text(tokenizer, tokenizer.special().bos);
  options.eos_token = token_text(tokenizer, tokenizer.special().eos);
  for (const auto& [name, id] :
       {std::pair{"unk_token", tokenizer.special().unk}, {"pad_token", tokenizer.special().pad}}) {
    if (const std::string token = token_text(tokenizer, id); !token.empty()) {
      options.extra[name] = token;
    }
  }
  const std::string text = render_chat(source, messages, options);
  const auto ids = tokenizer.encode(text);
  return {ids.begin(), ids.end()};
}

Generation generate(const Decoder& model, const Tokenizer& tokenizer,
                    const std::vector<int64_t>& prompt, const GenerateOptions& options,
                    const std::function<void(const std::string&)>& on_text) {
  const at::NoGradGuard no_grad;
  if (prompt.empty()) throw UsageError("the prompt is empty: there is no token to start from");
  if (options.max_tokens < 0) throw UsageError("the number of tokens to generate is negative");
  Generation out;
  out.prompt_tokens = static_cast<int64_t>(prompt.size());
  if (out.prompt_tokens > model.context()) {
    throw UsageError("the prompt has {} tokens, the model's context is {}", out.prompt_tokens,
                     model.context());
  }
  std::vector<int64_t> ends = model.config().eos;
  for (int32_t id : tokenizer.special().stop) ends.push_back(id);
  StateOptions state_options;
  state_options.kv_dtype = options.kv_dtype;
  state_options.programs = options.programs;
  const auto state = model.make_state(state_options);
  DecoderState* states[] = {state.get()};
  Sampler sampler(options.sampling);
  StreamDecoder stream(tokenizer, true, prompt);
  StopFilter filter(options.stop, on_text);
  std::vector<int64_t> seen = prompt;

  auto start = Clock::now();
  at::Tensor scores = model.logits(model.prefill(prompt, *state, options.chunk)).flatten();
  out.prefill_seconds = seconds_since(start);
  start = Clock::now();
  out.finish = "length";
  while (static_cast<int64_t>(out.tokens.size()) < options.max_tokens) {
    check_interrupted();
    const int64_t id = sampler.next(scores, seen);
    out.tokens.push_back(id);
    seen.push_back(id);
    if (!options.ignore_eos && std::find(ends.begin(), ends.end(), id) != ends.end()) {
      out.finish = "eos";
      break;
    }
    // Ids beyond the tokenizer's are padding of the embedding matrix and have no text.
    if (id < tokenizer.vocab_size() && filter.push(stream.push(static_cast<int32_t>(id)))) {
      out.finish = "stop";
      break;
    }
    if (static_cast<int64_t>(out.tokens.size()) == options.max_tokens ||
        state->length() == model.context()) {
      break;
    }
    scores = model.logits(model.step({&id, 1}, states)).flatten();
  }
  if (out.finish != "stop" && !filter.push(stream.finish())) filter.flush();
  out.decode_seconds = seconds_since(start);
  out.text = filter.text();
  out.kv_bytes = state->bytes();
  return out;
}

}  // namespace heed
