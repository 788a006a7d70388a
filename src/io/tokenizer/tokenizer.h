// Tokenizers: text to ids and back, from tokenizer.json, GGUF metadata, SentencePiece models and
// llama2.c files. Compared with Hugging Face `tokenizers` in tests/interop/tokenizer_equality.py.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace heed {

// Which ids begin, end and pad a text; -1 where there is none. `add_bos`, `add_eos`: the model was
// trained with them around a text (encode() never adds them). `stop`: every id that ends
// generation.
struct SpecialTokens {
  int32_t bos = -1, eos = -1, unk = -1, pad = -1;
  bool add_bos = false, add_eos = false;
  std::vector<int32_t> stop;
};

// The tokenizer part of a GGUF file (keys tokenizer.ggml.*), as plain values.
struct GgufVocab {
  std::string model, pre;  // `gpt2` or `llama`; the name of the splitting rule
  std::vector<std::string> tokens;
  std::vector<float> scores;   // model `llama`; may be empty for `gpt2`
  std::vector<int32_t> types;  // 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
  std::vector<std::string> merges;  // model `gpt2`: "left right", in rank order
  bool add_space_prefix = true;     // model `llama`
  SpecialTokens special;
  // Tokens that fill the middle of code (tokenizer.ggml.fim_{pad,rep,sep}_token_id); -1: none.
  int32_t fill_pad = -1, fill_repository = -1, fill_file = -1;
};

namespace tok {
struct AddedToken;  // added_tokens.h
}

// Immutable, cheap to copy, safe to use from many threads at once.
class Tokenizer {
 public:
  // `json` is the text of a tokenizer.json, `file` its name in messages. Throws Error naming file,
  // key and type where something is broken or not known.
  static Tokenizer from_tokenizer_json(std::string_view json, const std::string& file);
  static Tokenizer from_gguf_vocab(const GgufVocab& vocab, const std::string& file);
  // A SentencePiece `.model` file, run by libsentencepiece.
  static Tokenizer from_sentencepiece(const std::string& path);
  // The pieces of a llama2.c tokenizer (a blank is a blank, <0xNN> are bytes) and their scores.
  static Tokenizer from_llama2c(const std::vector<std::string>& pieces,
                                const std::vector<float>& scores, const std::string& file);

  // Ids of `text`; nothing is added, nothing is cut. Text that spells a special token becomes that
  // token unless `parse_special` is false. Bytes that are not UTF-8 count as U+FFFD.
  std::vector<int32_t> encode(std::string_view text, bool parse_special = true) const;

  // The text of `ids`, valid UTF-8: one U+FFFD for each maximal broken part. Throws Error on an id
  // outside the vocabulary.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;
  // The same before broken parts are replaced.
  std::string decode_bytes(std::span<const int32_t> ids, bool skip_special = false) const;

  // Largest id + 1. Ids that no token has (holes) are spelled "".
  int32_t vocab_size() const;
  std::optional<int32_t> token_to_id(std::string_view token) const;
  const std::string& id_to_token(int32_t id) const;  // throws Error outside the vocabulary
  bool is_special(int32_t id) const;

  const SpecialTokens& special() const;
  Tokenizer with_special(SpecialTokens special) const;
  // The same with more tokens that are found in a text before anything else. Those that are known
  // as such stay as they are. `ids_count`: each gets the id that it names (Error where another
  // token has it); else the one that Hugging Face `tokenizers` would give it.
  Tokenizer with_added(const std::vector<tok::AddedToken>& tokens, bool ids_count) const;

  struct Parts;  // tokenizer_parts.h; for the readers of formats
  explicit Tokenizer(std::shared_ptr<const Parts> parts);

 private:
  std::shared_ptr<const Parts> parts_;
  std::shared_ptr<const SpecialTokens> special_;
};

// Text of tokens as they are generated: push() returns what is certain so far and holds back the
// bytes of a character that later tokens may complete. The parts joined with finish() are
// decode(all ids); behind a prompt, `before`, what those ids add to the prompt's text (a decoder
// that drops the blank at the front of a text keeps it there).
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, bool skip_special = true,
                         std::span<const int64_t> before = {});
  std::string push(int32_t id);
  std::string finish();

 private:
  Tokenizer tokenizer_;
  bool skip_special_;
  std::vector<int32_t> window_;  // the last ids, enough for what depends on the neighbour
  size_t emitted_ = 0;           // bytes of the window's text that were given out
};

}  // namespace heed
