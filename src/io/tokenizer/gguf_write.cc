// See gguf_write.h. Types of tokens: enum llama_token_type of llama.h.
#include "io/tokenizer/gguf_write.h"

#include "io/error.h"
#include "io/json.h"
#include "io/tokenizer/gguf_rules.h"
#include "io/tokenizer/open.h"

namespace heed {
namespace {

constexpr int32_t kNormalToken = 1, kControlToken = 3, kUserToken = 4, kUnusedToken = 5;

// The patterns by which a pre-tokenizer cuts, in their order; "digits" for digits one by one,
// "gpt2" for the rule that byte-level ones have built in. Something else: an empty list.
std::vector<std::string> patterns_of(const Json& pre) {
  const std::string type = pre.value("type", "");
  if (type == "Sequence") {
    std::vector<std::string> all;
    for (const Json& stage : pre.value("pretokenizers", Json::array())) {
      if (stage.value("type", "") == "ByteLevel" && !stage.value("use_regex", true)) continue;
      const auto some = patterns_of(stage);
      if (some.empty()) return {};
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }
  if (type == "ByteLevel" && pre.value("use_regex", true) &&
      !pre.value("add_prefix_space", false)) {
    return {"gpt2"};
  }
  if (type == "Digits" && pre.value("individual_digits", false)) return {"digits"};
  if (type == "Split" && pre.value("behavior", "") == "Isolated" && pre.contains("pattern") &&
      pre["pattern"].contains("Regex")) {
    return {pre["pattern"]["Regex"].get<std::string>()};
  }
  return {};
}

std::string merge_text(const Json& merge) {
  if (merge.is_string()) return merge.get<std::string>();
  return merge.at(0).get<std::string>() + " " + merge.at(1).get<std::string>();
}

struct Tokens {
  std::vector<std::string> texts;
  std::vector<int32_t> types;

  void set(int64_t id, const std::string& text, int32_t type, const std::string& file) {
    if (id < 0 || id >= static_cast<int64_t>(texts.size())) {
      throw Error("{}: token {} is outside the model's {} tokens", file, id, texts.size());
    }
    texts[static_cast<size_t>(id)] = text;
    types[static_cast<size_t>(id)] = type;
  }
};

}  // namespace

void write_gguf_tokenizer(const std::string& folder, int64_t vocab, GgufMetadata& metadata) {
  const std::string file = folder + "/tokenizer.json";
  const Json json = read_json(file);
  const Tokenizer tokenizer = open_tokenizer(folder);
  const Json& model = json.at("model");
  if (model.value("type", "") != "BPE" || model.value("byte_fallback", false)) {
    throw Error("{}: only byte-level BPE is written to GGUF", file);
  }
  const auto patterns = patterns_of(json.value("pre_tokenizer", Json::object()));
  const auto pre = tok::gguf_rule_name(patterns, model.value("ignore_merges", false));
  if (!pre) {
    throw Error("{}: its rule of splitting text (pre_tokenizer) has no name in GGUF", file);
  }
  Tokens tokens;
  tokens.types.assign(static_cast<size_t>(vocab), kUnusedToken);
  for (int64_t id = 0; id < vocab; ++id) tokens.texts.push_back(fmt::format("[PAD{}]", id));
  for (const auto& [text, id] : model.at("vocab").items()) {
    tokens.set(id.get<int64_t>(), text, kNormalToken, file);
  }
  for (const Json& added : json.value("added_tokens", Json::array())) {
    tokens.set(get_int(added, "id", file), get_string(added, "content", file),
               added.value("special", false) ? kControlToken : kUserToken, file);
  }
  std::vector<std::string> merges;
  for (const Json& merge : model.at("merges")) merges.push_back(merge_text(merge));
  metadata.string("tokenizer.ggml.model", "gpt2");
  metadata.string("tokenizer.ggml.pre", *pre);
  metadata.strings("tokenizer.ggml.tokens", tokens.texts);
  metadata.integers("tokenizer.ggml.token_type", tokens.types);
  metadata.strings("tokenizer.ggml.merges", merges);
  const SpecialTokens& special = tokenizer.special();
  const auto id = [&](const char* name, int32_t value) {
    if (value < 0) return;
    metadata.integer(fmt::format("tokenizer.ggml.{}_token_id", name), static_cast<uint32_t>(value));
  };
  id("bos", special.bos);
  id("eos", special.eos);
  id("unknown", special.unk);
  id("padding", special.pad);
  for (const int32_t stop : special.stop) {
    if (stop != special.eos) id("eot", stop);
  }
  metadata.boolean("tokenizer.ggml.add_bos_token", special.add_bos);
  metadata.boolean("tokenizer.ggml.add_eos_token", special.add_eos);
  const std::string chat = read_chat_template(folder);
  if (!chat.empty()) metadata.string("tokenizer.chat_template", chat);
}

}  // namespace heed
