#include "io/tokenizer/open.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <set>

#include "io/describe.h"
#include "io/error.h"
#include "io/file_kind.h"
#include "io/json.h"
#include "io/llama2c.h"
#include "io/mapped_file.h"
#include "io/tokenizer/added_tokens.h"
#include "io/tokenizer/gguf_rules.h"

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

// The names under which a folder's files give single special tokens, and lists of them.
void read_special_tokens(const fs::path& path, const Tokenizer& tokenizer, SpecialTokens& special) {
  if (!fs::exists(path)) return;
  const std::string file = path.string();
  const Json config = read_json(file);
  special.bos = named_token(config, "bos_token", tokenizer, file, special.bos);
  special.eos = named_token(config, "eos_token", tokenizer, file, special.eos);
  special.unk = named_token(config, "unk_token", tokenizer, file, special.unk);
  special.pad = named_token(config, "pad_token", tokenizer, file, special.pad);
  special.add_bos = get_bool(config, "add_bos_token", file, special.add_bos);
  special.add_eos = get_bool(config, "add_eos_token", file, special.add_eos);
}

// Texts of the special tokens that special_tokens_map.json or tokenizer_config.json name.
void collect_special_texts(const fs::path& path, std::set<std::string>& texts) {
  if (!fs::exists(path)) return;
  const Json config = read_json(path.string());
  const auto take = [&](const Json& value) {
    const Json* text = value.is_object() ? find_field(value, "content", path.string()) : &value;
    if (text && text->is_string()) texts.insert(text->get<std::string>());
  };
  for (const auto& [key, value] : config.items()) {
    if (key.ends_with("_token")) take(value);
    if (key != "additional_special_tokens" && key != "extra_special_tokens") continue;
    if (!value.is_array() && !value.is_object()) continue;
    for (const Json& entry : value) take(entry);
  }
}

// added_tokens_decoder of tokenizer_config.json, else added_tokens.json, in the order of ids.
std::vector<tok::AddedToken> read_added_tokens(const fs::path& folder) {
  std::map<int64_t, tok::AddedToken> found;
  const auto add = [&](int64_t id, tok::AddedToken token, const std::string& where) {
    if (id < 0 || id >= tok::kMaxVocab) throw Error("{}: {} is no id of a token", where, id);
    token.id = static_cast<int32_t>(id);
    found.emplace(id, std::move(token));
  };
  const fs::path config_path = folder / "tokenizer_config.json";
  std::set<std::string> special{};
  collect_special_texts(folder / "special_tokens_map.json", special);
  collect_special_texts(config_path, special);
  if (fs::exists(config_path)) {
    const std::string file = config_path.string();
    const Json config = read_json(file);
    if (const Json* decoder = find_field(config, "added_tokens_decoder", file)) {
      if (!decoder->is_object()) throw Error("{}: added_tokens_decoder: expected an object", file);
      for (const auto& [key, entry] : decoder->items()) {
        const std::string where = file + ": added_tokens_decoder." + printable(key);
        int64_t id = -1;
        std::from_chars(key.data(), key.data() + key.size(), id);
        tok::AddedToken token;
        token.content = get_string(entry, "content", where);
        token.special = get_bool(entry, "special", where, special.contains(token.content));
        token.single_word = get_bool(entry, "single_word", where, false);
        token.lstrip = get_bool(entry, "lstrip", where, false);
        token.rstrip = get_bool(entry, "rstrip", where, false);
        token.normalized = get_bool(entry, "normalized", where, !token.special);
        add(id, std::move(token), where);
      }
    }
  }
  const fs::path path = folder / "added_tokens.json";
  if (found.empty() && fs::exists(path)) {
    const Json tokens = read_json(path.string());
    if (!tokens.is_object()) throw Error("{}: expected an object of tokens and ids", path.string());
    for (const auto& [content, id] : tokens.items()) {
      tok::AddedToken token;
      token.content = content;
      token.special = special.contains(content);
      token.normalized = !token.special;
      add(as_int(id, printable(content), path.string()), std::move(token), path.string());
    }
  }
  std::vector<tok::AddedToken> out;
  out.reserve(found.size());
  for (auto& [id, token] : found) out.push_back(std::move(token));
  return out;
}

// `ids_count`: the ids of the folder's added tokens hold, as they do beside a SentencePiece model.
Tokenizer with_folder_facts(const Tokenizer& plain, const fs::path& folder, bool ids_count) {
  const std::vector<tok::AddedToken> added = read_added_tokens(folder);
  const Tokenizer tokenizer = added.empty() ? plain : plain.with_added(added, ids_count);
  SpecialTokens special = tokenizer.special();
  read_special_tokens(folder / "special_tokens_map.json", tokenizer, special);
  read_special_tokens(folder / "tokenizer_config.json", tokenizer, special);
  if (special.eos >= 0) add_stop(special, special.eos, tokenizer);
  read_stop_ids(folder / "generation_config.json", tokenizer, special);
  read_stop_ids(folder / "config.json", tokenizer, special);
  return tokenizer.with_special(std::move(special));
}

bool is_gguf(const fs::path& path) { return is_gguf_file(path.string()); }

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
  const bool llama = vocab.model == "llama";  // whose files may leave out what is always the same
  SpecialTokens& special = vocab.special;
  const auto id_or = [&](const char* name, int32_t usual) {
    const int32_t found = id(name);
    return found >= 0 || !llama || usual >= static_cast<int32_t>(tokens.size()) ? found : usual;
  };
  special.bos = id_or("bos", 1);
  special.eos = id_or("eos", 2);
  special.unk = id_or("unknown", 0);
  special.pad = id("padding");
  special.add_bos =
      gguf.boolean("tokenizer.ggml.add_bos_token", llama || tok::gguf_rule_adds_bos(vocab.pre));
  special.add_eos = gguf.boolean("tokenizer.ggml.add_eos_token", false);
  for (const int32_t stop : {special.eos, id("eot"), id("eom")}) {
    if (stop >= 0 && std::count(special.stop.begin(), special.stop.end(), stop) == 0) {
      special.stop.push_back(stop);
    }
  }
  vocab.fill_pad = id("fim_pad");
  vocab.fill_repository = id("fim_rep");
  vocab.fill_file = id("fim_sep");
  tok::find_end_tokens(vocab);
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
      return with_folder_facts(Tokenizer::from_tokenizer_json(read_text(file), file), p, false);
    }
    if (fs::exists(p / "tokenizer.model")) {
      return with_folder_facts(Tokenizer::from_sentencepiece((p / "tokenizer.model").string()), p,
                               true);
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
  // The file of processors, which goes before that of tokenizers.
  const char* name =
      fs::exists(p / "chat_template.json") ? "chat_template.json" : "tokenizer_config.json";
  if (!fs::exists(p / name)) return "";
  const std::string file = (p / name).string();
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
