// Reads tokenizer.json, the format of Hugging Face `tokenizers`.
#include <algorithm>
#include <cmath>

#include "io/describe.h"
#include "io/error.h"
#include "io/tokenizer/bpe.h"
#include "io/tokenizer/tokenizer.h"
#include "io/tokenizer/tokenizer_parts.h"
#include "io/tokenizer/unigram.h"
#include "io/tokenizer/wordpiece.h"

namespace heed {

namespace {

using tok::Vocab;

// `tokens`: how many the file has. Some vocabularies have holes, but a short file must not ask for
// millions of ids.
int32_t as_id(const Json& value, const std::string& what, const std::string& file, size_t tokens) {
  const int64_t id = as_int(value, what, file);
  const int64_t end = std::min<int64_t>(tok::kMaxVocab, 4 * static_cast<int64_t>(tokens) + 4096);
  if (id < 0 || id >= end) {
    throw Error("{}: {} is the id {}; 0 to {} was expected with {} tokens", file, what, id, end - 1,
                tokens);
  }
  return static_cast<int32_t>(id);
}

Vocab read_vocab(const Json& model, const std::string& where) {
  Vocab vocab;
  const Json& entries = get_object(model, "vocab", where);
  vocab.reserve(entries.size());
  for (const auto& [token, id] : entries.items()) {
    vocab.emplace(token, as_id(id, "vocab", where, entries.size()));
  }
  return vocab;
}

// The id of the model's unk_token, -1 where it has none.
int32_t read_unk(const Json& model, const Vocab& vocab, const std::string& where) {
  const std::string token = get_string(model, "unk_token", where, "");
  if (token.empty()) return -1;
  const auto found = vocab.find(token);
  if (found == vocab.end()) {
    throw Error("{}.unk_token: \"{}\" is not in the vocabulary", where, printable(token));
  }
  return found->second;
}

std::shared_ptr<const tok::Model> read_bpe(const Json& model, const Vocab& vocab, bool raw_bytes,
                                           const std::string& where) {
  std::vector<std::pair<std::string, std::string>> merges;
  const Json& list = get_array(model, "merges", where);
  merges.reserve(list.size());
  for (const Json& entry : list) {
    const std::string what = fmt::format("merges[{}]", merges.size());
    if (entry.is_array() && entry.size() == 2) {
      merges.emplace_back(as_string(entry[0], what, where), as_string(entry[1], what, where));
      continue;
    }
    const std::string text = as_string(entry, what, where);
    const size_t blank = text.find(' ');
    if (blank == std::string::npos || text.find(' ', blank + 1) != std::string::npos) {
      throw Error("{}.{}: \"{}\" is not two tokens with a blank between", where, what,
                  printable(text));
    }
    merges.emplace_back(text.substr(0, blank), text.substr(blank + 1));
  }
  if (get_float(model, "dropout", where, 0.0) != 0.0) {
    throw Error("{}.dropout: random merges are not supported", where);
  }
  tok::BpeOptions options;
  options.raw_bytes = raw_bytes;
  options.byte_fallback = get_bool(model, "byte_fallback", where, false);
  options.fuse_unk = get_bool(model, "fuse_unk", where, false);
  options.ignore_merges = get_bool(model, "ignore_merges", where, false);
  options.unk_id = read_unk(model, vocab, where);
  options.continuing_prefix = get_string(model, "continuing_subword_prefix", where, "");
  options.word_suffix = get_string(model, "end_of_word_suffix", where, "");
  return std::make_shared<tok::Bpe>(vocab, merges, std::move(options), where);
}

std::shared_ptr<const tok::Model> read_unigram(const Json& model, Tokenizer::Parts& parts,
                                               const std::string& where) {
  const Json& list = get_array(model, "vocab", where);
  std::vector<std::pair<std::string, double>> pieces;
  pieces.reserve(list.size());
  for (const Json& entry : list) {
    const std::string what = fmt::format("vocab[{}]", pieces.size());
    if (!entry.is_array() || entry.size() != 2) {
      throw Error("{}.{}: expected a pair of a piece and its score", where, what);
    }
    pieces.emplace_back(as_string(entry[0], what, where), as_float(entry[1], what, where));
    const int32_t id = static_cast<int32_t>(pieces.size() - 1);
    parts.set_token(id, pieces.back().first);
    parts.token_to_id.insert_or_assign(pieces.back().first, id);
  }
  parts.model_tokens = pieces.size();
  const int64_t unk = get_int(model, "unk_id", where, -1);
  if (unk < -1 || unk >= static_cast<int64_t>(pieces.size())) {
    throw Error("{}.unk_id: {} is outside the vocabulary of {}", where, unk, pieces.size());
  }
  return std::make_shared<tok::Unigram>(pieces, static_cast<int32_t>(unk),
                                        get_bool(model, "byte_fallback", where, false), where);
}

// A model without a type is told by its members, as `tokenizers` does.
std::string model_type(const Json& model, const std::string& where) {
  std::string type = get_string(model, "type", where, "");
  if (!type.empty()) return type;
  if (find_field(model, "merges", where)) return "BPE";
  if (find_field(model, "unk_id", where)) return "Unigram";
  if (find_field(model, "max_input_chars_per_word", where)) return "WordPiece";
  throw Error("{}: has no type", where);
}

void read_model(const Json& model, bool raw_bytes, Tokenizer::Parts& parts) {
  const std::string where = parts.file + ": model";
  const std::string type = model_type(model, where);
  if (type == "Unigram") {
    parts.model = read_unigram(model, parts, where);
    return;
  }
  if (type != "BPE" && type != "WordPiece") {
    throw Error("{}: the model \"{}\" is not known to Heed", where, printable(type));
  }
  Vocab vocab = read_vocab(model, where);
  for (const auto& [token, id] : vocab) parts.set_token(id, token);
  if (type == "BPE") {
    parts.model = read_bpe(model, vocab, raw_bytes, where);
  } else {
    const int64_t longest = get_int(model, "max_input_chars_per_word", where, 100);
    const int32_t unk = read_unk(model, vocab, where);
    if (unk < 0) throw Error("{}.unk_token: missing", where);
    parts.model = std::make_shared<tok::WordPiece>(
        vocab, unk, get_string(model, "continuing_subword_prefix", where, "##"),
        static_cast<size_t>(std::clamp<int64_t>(longest, 0, 10'000)));
  }
  parts.model_tokens = vocab.size();
  parts.token_to_id = std::move(vocab);
}

// As in `tokenizers`, a token that the vocabulary has keeps the vocabulary's id, and any other gets
// the next free one, whatever id the entry names (published files name the same).
void read_added_tokens(const Json& root, Tokenizer::Parts& parts) {
  const Json* list = find_field(root, "added_tokens", parts.file);
  if (!list) return;
  if (!list->is_array()) throw Error("{}: added_tokens: expected a list", parts.file);
  const size_t tokens = parts.id_to_token.size() + list->size();
  for (size_t i = 0; i < list->size(); ++i) {
    const Json& entry = (*list)[i];
    const std::string where = fmt::format("{}: added_tokens[{}]", parts.file, i);
    tok::AddedToken token;
    token.content = get_string(entry, "content", where);
    as_id(get_field(entry, "id", where), "id", where, tokens);  // must be one, but see below
    token.special = get_bool(entry, "special", where, false);
    token.single_word = get_bool(entry, "single_word", where, false);
    token.lstrip = get_bool(entry, "lstrip", where, false);
    token.rstrip = get_bool(entry, "rstrip", where, false);
    token.normalized = get_bool(entry, "normalized", where, !token.special);
    token.id = parts.id_for_added(token.content);
    parts.add(token);
  }
}

// The ids that the post-processor would put around one text: kept as facts, never added.
void read_post_processor(const Json& json, Tokenizer::Parts& parts, int depth = 0) {
  const std::string where = parts.file + ": post_processor";
  const auto id_of = [&](const std::string& token) {
    const auto found = parts.token_to_id.find(token);
    return found == parts.token_to_id.end() ? -1 : found->second;
  };
  const auto begins = [&](int32_t id) {
    parts.special.bos = id;
    parts.special.add_bos = id >= 0;
  };
  const auto ends = [&](int32_t id) {
    parts.special.eos = id;
    parts.special.add_eos = id >= 0;
  };
  const std::string type = get_string(json, "type", where);
  if (type == "Sequence") {
    if (depth >= tok::kMaxDepth) throw Error("{}: nested too deeply", where);
    for (const Json& stage : get_array(json, "processors", where)) {
      read_post_processor(stage, parts, depth + 1);
    }
  } else if (type == "TemplateProcessing") {
    bool behind_text = false;
    for (const Json& item : get_array(json, "single", where)) {
      if (find_field(item, "Sequence", where)) behind_text = true;
      const Json* special = find_field(item, "SpecialToken", where);
      if (!special) continue;
      const int32_t id = id_of(get_string(*special, "id", where));
      if (behind_text) {
        ends(id);
      } else if (!parts.special.add_bos) {
        begins(id);
      }
    }
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    for (const char* key : {"cls", "sep"}) {
      const Json& pair = get_array(json, key, where);
      if (pair.size() != 2) throw Error("{}.{}: expected a token and its id", where, key);
      const int32_t id = id_of(as_string(pair[0], key, where));
      key[0] == 'c' ? begins(id) : ends(id);
    }
  }  // ByteLevel and others add no token
}

}  // namespace

Tokenizer Tokenizer::from_tokenizer_json(std::string_view json, const std::string& file) {
  const Json root = parse_json(json, file);
  auto parts = std::make_shared<Parts>();
  parts->file = file;
  if (const Json* normalizer = find_field(root, "normalizer", file)) {
    parts->normalizer = tok::read_normalizer(*normalizer, file + ": normalizer");
  }
  bool raw_bytes = false;
  const Json& model = get_object(root, "model", file);
  if (const Json* pre = find_field(root, "pre_tokenizer", file)) {
    // Only BPE's vocabulary is turned into bytes.
    const bool bpe = model_type(model, file + ": model") == "BPE" &&
                     get_string(model, "continuing_subword_prefix", file, "").empty() &&
                     get_string(model, "end_of_word_suffix", file, "").empty() &&
                     !get_bool(model, "byte_fallback", file, false);
    parts->pre_tokenizer =
        tok::read_pre_tokenizer(*pre, file + ": pre_tokenizer", bpe ? &raw_bytes : nullptr);
  }
  if (const Json* decoder = find_field(root, "decoder", file)) {
    parts->decoder = tok::read_decoder(*decoder, file + ": decoder");
  }
  read_model(model, raw_bytes, *parts);
  read_added_tokens(root, *parts);
  if (const Json* post = find_field(root, "post_processor", file)) {
    read_post_processor(*post, *parts);
  }
  return Tokenizer(std::move(parts));
}

}  // namespace heed
