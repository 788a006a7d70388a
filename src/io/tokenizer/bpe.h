// Byte-pair encoding by merge rank (Sennrich et al. 2016, arXiv 1508.07909), as the BPE model of
// tokenizer.json runs it: merge the pair of lowest rank, the leftmost on a tie, until none is left.
#pragma once

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "io/tokenizer/parts.h"

namespace heed::tok {

// Pairs of ids to (rank, merged id): an open-addressing table, filled once.
class MergeTable {
 public:
  struct Entry {
    uint64_t pair;
    int32_t rank;
    int32_t id;
  };
  explicit MergeTable(size_t expected = 0);
  // The first rank of a pair stays.
  void add(int32_t left, int32_t right, int32_t rank, int32_t id);
  const Entry* find(int32_t left, int32_t right) const;
  size_t size() const { return size_; }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  size_t slot(uint64_t pair) const;
  void grow();
  std::vector<Entry> entries_;
  size_t size_ = 0;
  int shift_ = 0;
};

struct BpeOptions {
  bool raw_bytes = false;  // pieces are bytes; vocabulary strings spell bytes in GPT-2's alphabet
  bool byte_fallback = false, fuse_unk = false, ignore_merges = false;
  int32_t unk_id = -1;
  std::string continuing_prefix, word_suffix;
};

class Bpe : public Model {
 public:
  // `merges` in rank order; a pair's product is looked up in `vocab`. `where` for errors.
  Bpe(const Vocab& vocab, const std::vector<std::pair<std::string, std::string>>& merges,
      BpeOptions options, const std::string& where);
  // Merges between all pairs of pieces whose concatenation is a piece, the highest score first
  // (SentencePiece's rule, src/bpe_model.cc); `scores[id]`, only ids with `mergeable[id]` take
  // part.
  static Bpe from_scores(const Vocab& vocab, const std::vector<float>& scores,
                         const std::vector<bool>& mergeable, BpeOptions options);

  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;

 private:
  Bpe(const Vocab& vocab, BpeOptions options);
  void encode_stretch(std::string_view piece, std::vector<int32_t>& ids) const;
  void append_symbols(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge(std::vector<int32_t>& ids, size_t first) const;

  uint32_t serial_;  // whose words they are, in the cache that all models share
  BpeOptions options_;
  Vocab vocab_;  // of bytes where raw_bytes
  MergeTable merges_;
  std::array<int32_t, 256> byte_id_;  // raw_bytes: the token of a byte; byte_fallback: <0xNN>
  bool all_bytes_ = true;
  // No merge joins "...x" with U+2581: long texts without a pre-tokenizer can be cut there.
  bool split_at_blank_ = false;
};

}  // namespace heed::tok
