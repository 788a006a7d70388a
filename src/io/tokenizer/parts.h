// The stages a tokenizer is made of, in the order in which text runs through them: normalizer,
// pre-tokenizer, model; and the decoder for the way back. Names and behaviour are those of
// tokenizer.json (github.com/huggingface/tokenizers); each is read from its JSON object. All are
// immutable once made and may be used by many threads at once.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/error.h"
#include "io/json.h"

namespace heed::tok {

// Rules may make a text longer, and a chain of hostile ones doubles it again and again: what they
// make of `input` bytes is bounded far above what any tokenizer in use needs.
class Growth {
 public:
  explicit Growth(size_t input) : input_(input) {}
  void check(size_t made) const {
    if (made > (size_t{16} << 20) + 16 * input_) {
      throw Error(
          "the tokenizer's rules make {} bytes and more of a text of {}; its file is damaged", made,
          input_);
    }
  }

 private:
  size_t input_;
};

// Text to text (valid UTF-8 both).
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual std::string apply(std::string text) const = 0;
};

// A stretch of text that no token may cross. `at_start`: nothing of the input lies before it.
struct Piece {
  std::string_view text;
  bool at_start = false;
};

// Pieces and the texts that were made on the way (views stay valid as long as this lives).
struct Pieces {
  std::vector<Piece> list;
  std::deque<std::string> made;

  size_t bytes() const {
    size_t total = 0;
    for (const Piece& piece : list) total += piece.text.size();
    return total;
  }
  std::string_view keep(std::string text) { return made.emplace_back(std::move(text)); }
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(Pieces& pieces) const = 0;
};

// Pieces to ids.
class Model {
 public:
  virtual ~Model() = default;
  virtual void encode(std::string_view piece, std::vector<int32_t>& ids) const = 0;
};

// The strings of tokens to the strings whose concatenation is the text, as bytes (a token may hold
// a part of a character).
class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual void apply(std::vector<std::string>& tokens) const = 0;
};

// Strings to ids without a copy for the look-up.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
};
using Vocab = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

// `where` names file and key in every error.
std::shared_ptr<const Normalizer> read_normalizer(const Json& json, const std::string& where);
std::shared_ptr<const Decoder> read_decoder(const Json& json, const std::string& where);

// Where the last stage is ByteLevel and `raw_bytes` is given, that stage splits only, leaves bytes
// as they are, and *raw_bytes becomes true: the model then works on bytes.
std::shared_ptr<const PreTokenizer> read_pre_tokenizer(const Json& json, const std::string& where,
                                                       bool* raw_bytes = nullptr);

// The splitting rules that GGUF files only name.
std::shared_ptr<const PreTokenizer> sequence_of(
    std::vector<std::shared_ptr<const PreTokenizer>> stages);
std::shared_ptr<const PreTokenizer> single_digits();
std::shared_ptr<const PreTokenizer> split_isolated(std::string_view pattern);

std::shared_ptr<const Normalizer> precompiled_normalizer(std::string_view charsmap,
                                                         const std::string& where);
std::shared_ptr<const Decoder> byte_level_decoder();

// GPT-2's split pattern (github.com/openai/gpt-2, src/encoder.py).
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

inline constexpr std::string_view kLowerOneEighthBlock =
    "\xE2\x96\x81";  // U+2581, shown as a blank

// Deepest nesting of Sequence objects.
inline constexpr int kMaxDepth = 16;

// Largest id + 1 that a vocabulary may have: keeps a lying file from taking all memory.
inline constexpr int64_t kMaxVocab = int64_t{1} << 22;

}  // namespace heed::tok
