// Batches for training: documents cut into pieces, shuffled, packed into rows of a fixed length
// with their boundaries beside them. Stateless: the rows of a step follow from the seed and their
// number alone, so that a resumed run reads on where it stopped.
#pragma once

#include <cstdint>
#include <vector>

#include "data/corpus.h"
#include "data/recall.h"

namespace heed::data {

// Rows laid end to end as one pack of ids.size() tokens.
struct Batch {
  std::vector<int32_t> ids;
  std::vector<int64_t> targets;     // what follows each token; -1: not trained on
  std::vector<int64_t> cu_seqlens;  // 0 = first < ... < last = ids.size(): pieces between which no
                                    // attention and no state passes
  int64_t longest = 0;              // tokens of the longest piece
};

struct PackingOptions {
  int64_t length = 2048;  // tokens of a row
  uint64_t seed = 0;
  int32_t end_of_text = -1;  // ends every document as its last target; -1: none
  double recall = 0;         // share of rows made by the recall generator, 0 to 1
  std::vector<double> recall_kinds = {1, 1, 1, 1};  // shares, in the order of RecallKind
};

// Endless shuffled rows of a corpus. Within an epoch every token of the corpus is trained on once,
// but for less than one row of left-over pieces; where long documents are cut differs by epoch.
class Packing {
 public:
  // `recall` may be null when options.recall is 0. Throws UsageError for a corpus without a row.
  Packing(Corpus corpus, const PackingOptions& options, const RecallGenerator* recall = nullptr);

  // Rows [first, first + count), made by several threads. Not to be called by two threads at once.
  Batch batch(int64_t first, int64_t count);
  // Rows of text in an epoch (the first one's; later ones differ by a few).
  int64_t rows_per_epoch() const { return static_cast<int64_t>(first_epoch_rows_); }

 private:
  struct Piece {
    int64_t document = 0, begin = 0, length = 0;
  };
  struct Epoch {
    std::vector<Piece> pieces;
    std::vector<int64_t> row_begin;  // pieces of row r: [row_begin[r], row_begin[r + 1])
    std::vector<int64_t> order;      // rows, shuffled
    int64_t first_row = 0;           // text rows of the epochs before
  };
  Epoch make_epoch(int64_t number) const;
  void seek(int64_t text_row);
  // Appends to a batch: the piece's tokens and targets.
  void add_piece(Batch& batch, const Piece& piece) const;
  void add_recall_row(Batch& batch, int64_t row) const;

  Corpus corpus_;
  PackingOptions options_;
  const RecallGenerator* recall_;
  int64_t epoch_number_ = 0;
  Epoch epoch_;
  size_t first_epoch_rows_ = 0;
};

// `rows` rows for measuring the loss, spread evenly over the corpus, each inside one document where
// documents are long enough; the same at every call. Fewer when the corpus is smaller.
std::vector<Batch> validation_batches(const Corpus& corpus, int64_t length, int64_t rows,
                                      int64_t rows_per_batch, int32_t end_of_text);

}  // namespace heed::data
