// See generate.h.
#include "generate/generate.h"

#include "generate/batch.h"
#include "io/error.h"
#include "io/template/template.h"
#include "io/tokenizer/open.h"

namespace heed {
namespace {

std::string token_text(const Tokenizer& tokenizer, int32_t id) {
  return id >= 0 && id < tokenizer.vocab_size() ? tokenizer.id_to_token(id) : std::string();
}

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
  Batch batch(model, tokenizer);
  const int64_t id = batch.add({prompt, options, on_text});
  while (batch.step()) {
  }
  return batch.take(id);
}

}  // namespace heed
