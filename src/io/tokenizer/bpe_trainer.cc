#include "io/tokenizer/bpe_trainer.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <unordered_map>
#include <unordered_set>

#include "io/describe.h"
#include "io/error.h"
#include "io/tokenizer/added_tokens.h"
#include "io/tokenizer/parts.h"
#include "io/tokenizer/unicode.h"

namespace heed {

namespace {

using tok::StringHash;
using Counts = std::unordered_map<std::string, int64_t, StringHash, std::equal_to<>>;

Counts count_words(const std::function<bool(std::string&)>& next, const BpeTrainerOptions& options,
                   Progress& progress) {
  std::vector<std::shared_ptr<const tok::PreTokenizer>> stages;
  if (options.digits_alone) stages.push_back(tok::single_digits());
  stages.push_back(tok::split_isolated(tok::kGpt2Pattern));
  const auto pre_tokenizer = tok::sequence_of(stages);
  tok::AddedTokenMatcher special;
  for (size_t i = 0; i < options.special_tokens.size(); ++i) {
    const std::string& content = options.special_tokens[i];
    special.add(content, {.content = content, .id = static_cast<int32_t>(i), .special = true});
  }

  Counts counts;
  tok::Pieces pieces;
  std::string text;
  int64_t bytes = 0;
  progress.begin("counting words (bytes)", 0);
  while (next(text)) {
    if (!unicode::is_valid(text)) text = unicode::to_valid(text);
    for (const auto& part : special.split(text, true)) {
      if (part.id >= 0) continue;
      pieces.list.assign(1, {part.text, true});
      pre_tokenizer->apply(pieces);
      for (const tok::Piece& piece : pieces.list) {
        const auto found = counts.find(piece.text);
        if (found != counts.end()) {
          ++found->second;
        } else {
          counts.emplace(piece.text, 1);
        }
      }
    }
    bytes += static_cast<int64_t>(text.size());
    progress.step(bytes);
  }
  progress.end();
  return counts;
}

// Byte of the n-th symbol of GPT-2's alphabet in code point order, the order of the first ids.
std::vector<int> bytes_in_symbol_order() {
  std::vector<int> order(256);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [](int a, int b) {
    size_t i = 0, j = 0;
    return unicode::next(unicode::byte_to_symbol(static_cast<unsigned char>(a)), i) <
           unicode::next(unicode::byte_to_symbol(static_cast<unsigned char>(b)), j);
  });
  return order;
}

// Words as symbols, and how often each pair of neighbours occurs in them, kept up to date.
class PairIndex {
 public:
  PairIndex(const Counts& counts, const std::vector<int32_t>& byte_id) {
    words_.reserve(counts.size());
    for (const auto& [text, count] : counts) {
      Word word{{}, count};
      word.symbols.reserve(text.size());
      for (const char c : text) word.symbols.push_back(byte_id[static_cast<unsigned char>(c)]);
      if (word.symbols.size() > 1) words_.push_back(std::move(word));
    }
    for (uint32_t w = 0; w < words_.size(); ++w) {
      const std::vector<int32_t>& s = words_[w].symbols;
      for (size_t i = 0; i + 1 < s.size(); ++i) change(s[i], s[i + 1], words_[w].count, w);
    }
    for (const auto& [pair, entry] : pairs_) queue_.push({entry.count, pair});
  }

  // The most frequent pair (the lowest ids on a tie); its count, 0 when none is left.
  int64_t best(int32_t& left, int32_t& right) {
    while (!queue_.empty()) {
      const Candidate top = queue_.top();
      queue_.pop();
      const int64_t count = pairs_[top.pair].count;
      if (count != top.count) {
        if (count > 0 && count < top.count) queue_.push({count, top.pair});
        continue;
      }
      left = static_cast<int32_t>(top.pair >> 32);
      right = static_cast<int32_t>(top.pair & 0xFFFFFFFFu);
      return count;
    }
    return 0;
  }

  void merge(int32_t left, int32_t right, int32_t product) {
    std::vector<uint32_t> where;
    where.swap(pairs_[pack(left, right)].words);
    std::sort(where.begin(), where.end());
    where.erase(std::unique(where.begin(), where.end()), where.end());
    grown_.clear();
    for (const uint32_t w : where) {
      std::vector<int32_t>& s = words_[w].symbols;
      const int64_t count = words_[w].count;
      size_t out = 0;
      for (size_t i = 0; i < s.size(); ++out) {
        if (i + 1 < s.size() && s[i] == left && s[i + 1] == right) {
          change(left, right, -count, w);
          if (out > 0) {
            change(s[out - 1], left, -count, w);
            change(s[out - 1], product, count, w);
          }
          if (i + 2 < s.size()) {
            change(right, s[i + 2], -count, w);
            change(product, s[i + 2], count, w);
          }
          s[out] = product;
          i += 2;
        } else {
          s[out] = s[i++];
        }
      }
      s.resize(out);
    }
    for (const uint64_t pair : grown_) {
      const int64_t count = pairs_[pair].count;
      if (count > 0) queue_.push({count, pair});
    }
  }

 private:
  struct Word {
    std::vector<int32_t> symbols;
    int64_t count;
  };
  struct Entry {
    int64_t count = 0;
    std::vector<uint32_t> words;  // where the pair may be; may name a word twice
  };
  struct Candidate {
    int64_t count;
    uint64_t pair;
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };

  static uint64_t pack(int32_t left, int32_t right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  }

  void change(int32_t left, int32_t right, int64_t by, uint32_t word) {
    Entry& entry = pairs_[pack(left, right)];
    entry.count += by;
    if (by <= 0) return;
    if (entry.words.empty() || entry.words.back() != word) entry.words.push_back(word);
    grown_.insert(pack(left, right));
  }

  std::vector<Word> words_;
  std::unordered_map<uint64_t, Entry> pairs_;
  std::unordered_set<uint64_t> grown_;  // pairs whose count rose since the last merge began
  std::priority_queue<Candidate> queue_;
};

// The text of a tokenizer.json.
std::string tokenizer_text(const std::vector<std::string>& tokens, nlohmann::ordered_json added,
                           nlohmann::ordered_json merges, bool digits_alone) {
  nlohmann::ordered_json vocab = nlohmann::ordered_json::object();
  // Through the underlying list: ordered_json looks for a key of the same name each time.
  auto& entries = vocab.get_ref<nlohmann::ordered_json::object_t&>();
  for (size_t id = 0; id < tokens.size(); ++id) {
    entries.std::vector<std::pair<const std::string, nlohmann::ordered_json>>::emplace_back(
        tokens[id], id);
  }
  const nlohmann::ordered_json byte_level = {{"type", "ByteLevel"},
                                             {"add_prefix_space", false},
                                             {"trim_offsets", true},
                                             {"use_regex", true}};
  nlohmann::ordered_json pre_tokenizer = byte_level;
  if (digits_alone) {
    pre_tokenizer = {{"type", "Sequence"}};
    pre_tokenizer["pretokenizers"] = nlohmann::ordered_json::array(
        {{{"type", "Digits"}, {"individual_digits", true}}, byte_level});
  }
  nlohmann::ordered_json root;
  root["version"] = "1.0";
  root["truncation"] = nullptr;
  root["padding"] = nullptr;
  root["added_tokens"] = std::move(added);
  root["normalizer"] = nullptr;
  root["pre_tokenizer"] = std::move(pre_tokenizer);
  root["post_processor"] = nullptr;
  root["decoder"] = byte_level;
  root["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"ignore_merges", false}};
  root["model"]["vocab"] = std::move(vocab);
  root["model"]["merges"] = std::move(merges);
  return root.dump(2) + "\n";
}

}  // namespace

std::string train_byte_bpe(const std::function<bool(std::string&)>& next,
                           const BpeTrainerOptions& options, Progress& progress) {
  const int64_t first = static_cast<int64_t>(options.special_tokens.size()) + 256;
  if (options.vocab_size < first || options.vocab_size > tok::kMaxVocab) {
    throw UsageError("a vocabulary of {} tokens: expected {} (the bytes and special tokens) to {}",
                     options.vocab_size, first, tok::kMaxVocab);
  }
  std::vector<std::string> tokens;  // spelled in the byte alphabet
  std::unordered_map<std::string, int32_t> id_of;
  const auto add = [&](const std::string& token) {
    const auto [entry, fresh] = id_of.try_emplace(token, static_cast<int32_t>(tokens.size()));
    if (fresh) tokens.push_back(token);
    return entry->second;
  };
  nlohmann::ordered_json added = nlohmann::ordered_json::array();
  for (const std::string& token : options.special_tokens) {
    const size_t before = tokens.size();
    const int32_t id = add(token);
    if (token.empty() || before == tokens.size()) {
      throw UsageError("special token \"{}\" is empty or stands twice", printable(token));
    }
    added.push_back({{"id", id},
                     {"content", token},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  std::vector<int32_t> byte_id(256);
  for (const int byte : bytes_in_symbol_order()) {
    byte_id[byte] = add(unicode::byte_to_symbol(static_cast<unsigned char>(byte)));
  }

  PairIndex index(count_words(next, options, progress), byte_id);
  nlohmann::ordered_json merges = nlohmann::ordered_json::array();
  progress.begin("merging pairs (tokens)", options.vocab_size);
  while (static_cast<int64_t>(tokens.size()) < options.vocab_size) {
    int32_t left = 0, right = 0;
    const int64_t count = index.best(left, right);
    if (count < std::max<int64_t>(1, options.min_frequency)) break;
    merges.push_back(tokens[left] + " " + tokens[right]);
    index.merge(left, right, add(tokens[left] + tokens[right]));
    progress.step(static_cast<int64_t>(tokens.size()));
  }
  progress.end();

  return tokenizer_text(tokens, std::move(added), std::move(merges), options.digits_alone);
}

}  // namespace heed
