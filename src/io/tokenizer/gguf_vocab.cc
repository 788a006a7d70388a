// Tokenizers from the metadata of GGUF files and from llama2.c files. What GGUF only names is in
// gguf_rules.h.
#include <cmath>
#include <utility>

#include "io/describe.h"
#include "io/error.h"
#include "io/tokenizer/bpe.h"
#include "io/tokenizer/gguf_rules.h"
#include "io/tokenizer/tokenizer.h"
#include "io/tokenizer/tokenizer_parts.h"

namespace heed {

namespace {

enum TokenType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// A blank stands in a piece as U+2581; what is added at the front of every stretch of text.
class Escape : public tok::Normalizer {
 public:
  Escape(std::string blank, bool prefix) : blank_(std::move(blank)), prefix_(prefix) {}
  std::string apply(std::string text) const override {
    std::string out;
    out.reserve(text.size() + text.size() / 2 + blank_.size());
    if (prefix_ && !text.empty()) out = blank_;
    for (const char c : text) {
      if (c == ' ') {
        out += blank_;
      } else {
        out += c;
      }
    }
    return out;
  }

 private:
  std::string blank_;
  bool prefix_;
};

void check_sizes(const GgufVocab& vocab, const std::string& file) {
  const size_t count = vocab.tokens.size();
  if (count == 0) throw Error("{}: tokenizer.ggml.tokens is empty", file);
  if (count > static_cast<size_t>(tok::kMaxVocab)) {
    throw Error("{}: tokenizer.ggml.tokens has {} tokens, more than {}", file, count,
                tok::kMaxVocab);
  }
  if (!vocab.types.empty() && vocab.types.size() != count) {
    throw Error("{}: tokenizer.ggml.token_type has {} entries for {} tokens", file,
                vocab.types.size(), count);
  }
  if (!vocab.scores.empty() && vocab.scores.size() != count) {
    throw Error("{}: tokenizer.ggml.scores has {} entries for {} tokens", file, vocab.scores.size(),
                count);
  }
  const int32_t size = static_cast<int32_t>(count);
  for (const auto& [name, id] : {std::pair{"bos", vocab.special.bos}, {"eos", vocab.special.eos}}) {
    if (id < -1 || id >= size) {
      throw Error("{}: tokenizer.ggml.{}_token_id {} is outside the {} tokens", file, name, id,
                  count);
    }
  }
}

// Decoder and normalizer of the SentencePiece kind, in the words of tokenizer.json.
Json sentencepiece_decoder(bool strips_blank) {
  Json stages = Json::array({{{"type", "Replace"},
                              {"pattern", {{"String", tok::kLowerOneEighthBlock}}},
                              {"content", " "}},
                             {{"type", "ByteFallback"}},
                             {{"type", "Fuse"}}});
  if (strips_blank) {
    stages.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  return {{"type", "Sequence"}, {"decoders", std::move(stages)}};
}

std::vector<bool> mergeable_tokens(const std::vector<int32_t>& types, size_t count) {
  std::vector<bool> mergeable(count, true);
  for (size_t id = 0; id < types.size(); ++id) mergeable[id] = types[id] == kNormal;
  return mergeable;
}

void check_scores(const std::vector<float>& scores, const std::string& file) {
  for (size_t id = 0; id < scores.size(); ++id) {
    if (!std::isfinite(scores[id]))
      throw Error("{}: the score of token {} is not finite", file, id);
  }
}

}  // namespace

Tokenizer Tokenizer::from_gguf_vocab(const GgufVocab& vocab, const std::string& file) {
  check_sizes(vocab, file);
  auto parts = std::make_shared<Parts>();
  parts->file = file;
  parts->model_tokens = vocab.tokens.size();
  parts->special = vocab.special;
  const auto type_of = [&](size_t id) { return vocab.types.empty() ? kNormal : vocab.types[id]; };
  for (size_t i = vocab.tokens.size(); i-- > 0;) {  // of two equal ones the first stays
    const int32_t id = static_cast<int32_t>(i);
    const std::string& token = vocab.tokens[i];
    parts->set_token(id, token);
    parts->token_to_id.insert_or_assign(token, id);
  }
  for (size_t i = 0; i < vocab.tokens.size(); ++i) {
    const int type = type_of(i);
    const bool special = type == kControl || type == kUnknown;
    parts->is_special[i] = special;
    if (special || type == kUserDefined) {
      parts->added.add(
          vocab.tokens[i],
          {.content = vocab.tokens[i], .id = static_cast<int32_t>(i), .special = special});
    }
  }

  tok::BpeOptions options;
  if (vocab.model == "gpt2") {
    options.raw_bytes = true;
    tok::GgufRule rule = tok::gguf_rule(vocab.pre, file);
    options.ignore_merges = rule.ignore_merges;
    parts->pre_tokenizer = std::move(rule.pre_tokenizer);
    std::vector<std::pair<std::string, std::string>> merges;
    merges.reserve(vocab.merges.size());
    for (const std::string& merge : vocab.merges) {
      const size_t blank = merge.find(' ', 1);
      if (blank == std::string::npos) {
        throw Error("{}: tokenizer.ggml.merges[{}]: \"{}\" is not two tokens", file, merges.size(),
                    printable(merge));
      }
      merges.emplace_back(merge.substr(0, blank), merge.substr(blank + 1));
    }
    parts->model =
        std::make_shared<tok::Bpe>(parts->token_to_id, merges, options, file + ": tokenizer.ggml");
    parts->decoder = tok::byte_level_decoder();
    return Tokenizer(std::move(parts));
  }
  if (vocab.model == "llama") {
    if (vocab.scores.empty()) throw Error("{}: tokenizer.ggml.scores is missing", file);
    check_scores(vocab.scores, file);
    options.byte_fallback = true;
    options.unk_id = vocab.special.unk;
    parts->normalizer =
        std::make_shared<Escape>(std::string(tok::kLowerOneEighthBlock), vocab.add_space_prefix);
    parts->model = std::make_shared<tok::Bpe>(
        tok::Bpe::from_scores(parts->token_to_id, vocab.scores,
                              mergeable_tokens(vocab.types, vocab.tokens.size()), options));
    parts->decoder = tok::read_decoder(sentencepiece_decoder(vocab.add_space_prefix), file);
    return Tokenizer(std::move(parts));
  }
  throw Error("{}: tokenizer.ggml.model \"{}\" is not known to Heed (it knows gpt2 and llama)",
              file, printable(vocab.model));
}

Tokenizer Tokenizer::from_llama2c(const std::vector<std::string>& pieces,
                                  const std::vector<float>& scores, const std::string& file) {
  // Ids 0, 1, 2 are <unk>, begin and end; 256 byte tokens follow (github.com/karpathy/llama2.c,
  // run.c, encode()). Blanks are themselves.
  if (pieces.size() < 259 || pieces.size() != scores.size()) {
    throw Error("{}: {} pieces and {} scores: a llama2.c tokenizer has at least 259 of both", file,
                pieces.size(), scores.size());
  }
  check_scores(scores, file);
  auto parts = std::make_shared<Parts>();
  parts->file = file;
  parts->special = {.bos = 1, .eos = 2, .unk = 0, .add_bos = true, .stop = {1, 2}};
  std::vector<int32_t> types(pieces.size(), kNormal);
  for (size_t i = pieces.size(); i-- > 0;) {
    const int32_t id = static_cast<int32_t>(i);
    // In pieces blanks are written as U+2581, so that the model is SentencePiece's.
    std::string piece;
    for (const char c : pieces[i]) {
      if (c == ' ') {
        piece += tok::kLowerOneEighthBlock;
      } else {
        piece += c;
      }
    }
    if (i >= 3 && i < 259) {
      types[i] = kByte;
      piece = fmt::format("<0x{:02X}>", i - 3);
    }
    if (i < 3) {
      types[i] = kControl;
      static constexpr const char* kNames[] = {"<unk>", "<s>", "</s>"};
      piece = kNames[i];
      parts->added.add(piece, {.content = piece, .id = id, .special = true});
    }
    parts->set_token(id, piece);
    parts->token_to_id.insert_or_assign(piece, id);
    parts->is_special[id] = i < 3;
  }
  tok::BpeOptions options;
  options.byte_fallback = true;
  options.unk_id = 0;
  parts->normalizer = std::make_shared<Escape>(std::string(tok::kLowerOneEighthBlock), true);
  parts->model = std::make_shared<tok::Bpe>(tok::Bpe::from_scores(
      parts->token_to_id, scores, mergeable_tokens(types, pieces.size()), options));
  parts->decoder = tok::read_decoder(sentencepiece_decoder(true), file);
  return Tokenizer(std::move(parts));
}

}  // namespace heed
