#include "io/tokenizer/open.h"

#include <algorithm>
#include <filesystem>

#include "io/error.h"
#include "io/json.h"
#include "io/llama2c.h"
#include "io/mapped_file.h"

namespace heed {

namespace {

namespace fs = std::filesystem;

std::string read_text(const fs::path& path) {
  const MappedFile file(path.string());
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

// bos_token and the like are a string or an object with `content`.
int32_t named_token(const Json& config, const char* key, const Tokenizer& tokenizer,
                    const std::string& file, int32_t otherwise) {
  const Json* value = find_field(config, key, file);
  if (!value) return otherwise;
  const std::string token =
      value->is_object() ? get_string(*value, "content", file) : as_string(*value, key, file);
  return tokenizer.token_to_id(token).value_or(otherwise);
}

void add_stop(SpecialTokens& special, int64_t id, const Tokenizer& tokenizer) {
  if (id < 0 || id >= tokenizer.vocab_size()) return;
  const int32_t stop = static_cast<int32_t>(id);
  if (std::find(special.stop.begin(), special.stop.end(), stop) == special.stop.end()) {
    special.stop.push_back(stop);
  }
}

// eos_token_id of generation_config.json or config.json: an id or a list of them.
void read_stop_ids(const fs::path& path, const Tokenizer& tokenizer, SpecialTokens& special) {
  if (!fs::exists(path)) return;
  const Json config = read_json(path.string());
  const auto first_id = [&](const char* key, int32_t otherwise) {
    const Json* value = find_field(config, key, path.string());
    if (!value || !value->is_number_integer()) return otherwise;
    const int64_t id = value->get<int64_t>();
    return id >= 0 && id < tokenizer.vocab_size() ? static_cast<int32_t>(id) : otherwise;
  };
  if (special.bos < 0) special.bos = first_id("bos_token_id", -1);
  if (special.pad < 0) special.pad = first_id("pad_token_id", -1);
  const Json* eos = find_field(config, "eos_token_id", path.string());
  if (!eos) return;
  for (const Json& id : eos->is_array() ? *eos : Json::array({*eos})) {
    add_stop(special, as_int(id, "eos_token_id", path.string()), tokenizer);
    if (special.eos < 0 && !special.stop.empty()) special.eos = special.stop.front();
  }
}

Tokenizer with_folder_facts(const Tokenizer& tokenizer, const fs::path& folder) {
  SpecialTokens special = tokenizer.special();
  const fs::path path = folder / "tokenizer_config.json";
  if (fs::exists(path)) {
    const std::string file = path.string();
    const Json config = read_json(file);
    special.bos = named_token(config, "bos_token", tokenizer, file, special.bos);
    special.eos = named_token(config, "eos_token", tokenizer, file, special.eos);
    special.unk = named_token(config, "unk_token", tokenizer, file, special.unk);
    special.pad = named_token(config, "pad_token", tokenizer, file, special.pad);
    special.add_bos = get_bool(config, "add_bos_token", file, special.add_bos);
    special.add_eos = get_bool(config, "add_eos_token", file, special.add_eos);
  }
  if (special.eos >= 0) add_stop(special, special.eos, tokenizer);
  read_stop_ids(folder / "generation_config.json", tokenizer, special);
  read_stop_ids(folder / "config.json", tokenizer, special);
  return tokenizer.with_special(std::move(special));
}

bool is_gguf(const fs::path& path) { return path.extension() == ".gguf"; }

}  // namespace

GgufVocab read_gguf_vocab(const GgufFile& gguf) {
  GgufVocab vocab;
  vocab.model = gguf.string("tokenizer.ggml.model");
  vocab.pre = gguf.string("tokenizer.ggml.pre", "");
  const auto tokens = gguf.strings("tokenizer.ggml.tokens");
  vocab.tokens.assign(tokens.begin(), tokens.end());
  if (gguf.has("tokenizer.ggml.scores")) vocab.scores = gguf.reals("tokenizer.ggml.scores");
  if (gguf.has("tokenizer.ggml.token_type")) {
    for (const int64_t type : gguf.integers("tokenizer.ggml.token_type")) {
      vocab.types.push_back(static_cast<int32_t>(std::clamp<int64_t>(type, 0, 7)));
    }
  }
  if (gguf.has("tokenizer.ggml.merges")) {
    const auto merges = gguf.strings("tokenizer.ggml.merges");
    vocab.merges.assign(merges.begin(), merges.end());
  }
  vocab.add_space_prefix = gguf.boolean("tokenizer.ggml.add_space_prefix", true);
  const auto id = [&](const char* name) {
    const int64_t value = gguf.integer(fmt::format("tokenizer.ggml.{}_token_id", name), -1);
    // Some files write 2^32 - 1 for "none".
    return value >= 0 && value < static_cast<int64_t>(tokens.size()) ? static_cast<int32_t>(value)
                                                                     : -1;
  };
  const bool llama = vocab.model == "llama";
  SpecialTokens& special = vocab.special;
  special.bos = id("bos");
  special.eos = id("eos");
  special.unk = id("unknown");
  special.pad = id("padding");
  special.add_bos = gguf.boolean("tokenizer.ggml.add_bos_token", llama);
  special.add_eos = gguf.boolean("tokenizer.ggml.add_eos_token", false);
  for (const int32_t stop : {special.eos, id("eot"), id("eom")}) {
    if (stop >= 0 && std::count(special.stop.begin(), special.stop.end(), stop) == 0) {
      special.stop.push_back(stop);
    }
  }
  return vocab;
}

Tokenizer tokenizer_from_gguf(const GgufFile& gguf) {
  return Tokenizer::from_gguf_vocab(read_gguf_vocab(gguf), gguf.path);
}

Tokenizer open_tokenizer(const std::string& path) {
  const fs::path p(path);
  if (fs::is_directory(p)) {
    if (fs::exists(p / "tokenizer.json")) {
      const std::string file = (p / "tokenizer.json").string();
      return with_folder_facts(Tokenizer::from_tokenizer_json(read_text(file), file), p);
    }
    if (fs::exists(p / "tokenizer.model")) {
      return with_folder_facts(Tokenizer::from_sentencepiece((p / "tokenizer.model").string()), p);
    }
    throw Error("{}: holds neither tokenizer.json nor tokenizer.model", path);
  }
  if (!fs::exists(p)) throw Error("{}: no such file or folder", path);
  if (is_gguf(p)) return tokenizer_from_gguf(open_gguf(path));
  if (p.extension() == ".model") return Tokenizer::from_sentencepiece(path);
  if (p.extension() == ".bin") {
    const Llama2cVocab vocab = open_llama2c_vocab(path);
    return Tokenizer::from_llama2c(vocab.pieces, vocab.scores, path);
  }
  if (p.extension() == ".json") return Tokenizer::from_tokenizer_json(read_text(p), path);
  throw Error("{}: not a tokenizer that Heed knows; give a folder, a .gguf, .json, .model or .bin",
              path);
}

std::string read_chat_template(const std::string& path) {
  const fs::path p(path);
  if (is_gguf(p)) return open_gguf(path).string("tokenizer.chat_template", "");
  if (!fs::is_directory(p)) return "";
  if (fs::exists(p / "chat_template.jinja")) return read_text(p / "chat_template.jinja");
  if (!fs::exists(p / "tokenizer_config.json")) return "";
  const std::string file = (p / "tokenizer_config.json").string();
  const Json config = read_json(file);
  const Json* value = find_field(config, "chat_template", file);
  if (!value) return "";
  if (value->is_string()) return value->get<std::string>();
  if (!value->is_array()) throw Error("{}: chat_template: expected a text or a list", file);
  for (const Json& entry : *value) {
    if (get_string(entry, "name", file) == "default") return get_string(entry, "template", file);
  }
  return "";
}

}  // namespace heed
