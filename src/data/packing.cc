#include "data/packing.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <numeric>
#include <thread>

#include "data/random.h"
#include "io/error.h"

namespace heed::data {
namespace {

// Streams of random numbers that must not meet.
constexpr uint64_t kEpochStream = uint64_t{1} << 48;
constexpr uint64_t kRecallStream = uint64_t{2} << 48;

// Adds `tokens` as one piece whose last target is `last`.
void add_tokens(Batch& batch, std::span<const int32_t> tokens, int64_t last) {
  if (tokens.empty()) return;
  batch.ids.insert(batch.ids.end(), tokens.begin(), tokens.end());
  batch.targets.insert(batch.targets.end(), tokens.begin() + 1, tokens.end());
  batch.targets.push_back(last);
  batch.cu_seqlens.push_back(static_cast<int64_t>(batch.ids.size()));
  batch.longest = std::max(batch.longest, static_cast<int64_t>(tokens.size()));
}

// tokens[begin, begin + length) of a document, whose last target is the document's next token or
// its end.
void add_slice(Batch& batch, const Corpus& corpus, int64_t document, int64_t begin, int64_t length,
               int32_t end_of_text) {
  const bool ends = begin + length >= corpus.length(document);
  const auto tokens = corpus.slice(document, begin, length + (ends ? 0 : 1));
  const std::span<const int32_t> all(tokens);
  add_tokens(batch, all.first(static_cast<size_t>(length)), ends ? end_of_text : all.back());
}

}  // namespace

Packing::Packing(Corpus corpus, const PackingOptions& options, const RecallGenerator* recall)
    : corpus_(std::move(corpus)), options_(options), recall_(recall) {
  if (options_.length < 2) throw UsageError("a row needs at least 2 tokens");
  if (options_.recall < 0 || options_.recall > 1) {
    throw UsageError("the share of recall text must lie in [0, 1], not {}", options_.recall);
  }
  if (options_.recall > 0 &&
      (recall_ == nullptr || options_.length < RecallGenerator::kMinLength)) {
    throw UsageError("recall text needs rows of at least {} tokens, not {}",
                     RecallGenerator::kMinLength, options_.length);
  }
  epoch_ = make_epoch(0);
  first_epoch_rows_ = epoch_.order.size();
  if (first_epoch_rows_ == 0) {
    throw UsageError("the training text has {} tokens, fewer than one row of {}", corpus_.tokens(),
                     options_.length);
  }
}

Packing::Epoch Packing::make_epoch(int64_t number) const {
  Random random(options_.seed, kEpochStream + static_cast<uint64_t>(number));
  const int64_t length = options_.length;
  std::vector<Piece> whole, part;  // whole pieces fill a row
  for (int64_t d = 0; d < corpus_.documents(); ++d) {
    const int64_t tokens = corpus_.length(d);
    int64_t at = 0;
    if (tokens > length) {
      at = static_cast<int64_t>(random.below(static_cast<uint64_t>(length)));
      if (at > 0) part.push_back({d, 0, at});
    }
    for (; at < tokens; at += length) {
      const int64_t count = std::min(length, tokens - at);
      (count == length ? whole : part).push_back({d, at, count});
    }
  }
  random.shuffle(part);
  Epoch epoch;
  epoch.pieces = std::move(whole);
  epoch.row_begin.resize(epoch.pieces.size() + 1);
  std::iota(epoch.row_begin.begin(), epoch.row_begin.end(), 0);
  // The parts, laid end to end and cut where a row is full.
  int64_t filled = 0;
  for (Piece piece : part) {
    while (piece.length > 0) {
      const int64_t count = std::min(piece.length, length - filled);
      epoch.pieces.push_back({piece.document, piece.begin, count});
      piece.begin += count;
      piece.length -= count;
      filled += count;
      if (filled == length) {
        epoch.row_begin.push_back(static_cast<int64_t>(epoch.pieces.size()));
        filled = 0;
      }
    }
  }
  epoch.order.resize(epoch.row_begin.size() - 1);
  std::iota(epoch.order.begin(), epoch.order.end(), 0);
  random.shuffle(epoch.order);
  return epoch;
}

// Makes epoch_ the one that holds `text_row`.
void Packing::seek(int64_t text_row) {
  if (text_row < epoch_.first_row) {
    epoch_number_ = 0;
    epoch_ = make_epoch(0);
  }
  while (text_row >= epoch_.first_row + static_cast<int64_t>(epoch_.order.size())) {
    const int64_t next = epoch_.first_row + static_cast<int64_t>(epoch_.order.size());
    epoch_ = make_epoch(++epoch_number_);
    epoch_.first_row = next;
  }
}

void Packing::add_piece(Batch& batch, const Piece& piece) const {
  add_slice(batch, corpus_, piece.document, piece.begin, piece.length, options_.end_of_text);
}

// Half of the samples take all the room that is left, the others a log-uniform length.
void Packing::add_recall_row(Batch& batch, int64_t row) const {
  Random random(options_.seed, kRecallStream + static_cast<uint64_t>(row));
  int64_t left = options_.length;
  while (left >= RecallGenerator::kMinLength) {
    int64_t length = left;
    if (random.below(2) == 0) {
      const double low = static_cast<double>(RecallGenerator::kMinLength);
      length = static_cast<int64_t>(low * std::pow(left / low, random.uniform()));
    }
    const auto sample = recall_->sample(length, options_.recall_kinds, random);
    add_tokens(batch, sample.tokens, options_.end_of_text);
    left -= length;
  }
  if (left > 0) add_tokens(batch, recall_->text(left, random), -1);
}

Batch Packing::batch(int64_t first, int64_t count) {
  // Rows of recall text come at regular distances; the others read the corpus in order.
  const double share = options_.recall;
  auto recall_rows_before = [share](int64_t row) {
    return static_cast<int64_t>(std::floor(static_cast<double>(row) * share));
  };
  struct Job {
    bool recall = false;
    int64_t row = 0;
    std::vector<Piece> pieces;
  };
  std::vector<Job> jobs(static_cast<size_t>(count));
  for (int64_t n = 0; n < count; ++n) {
    const int64_t row = first + n;
    const int64_t before = recall_rows_before(row);
    Job& job = jobs[static_cast<size_t>(n)];
    job.row = row;
    job.recall = recall_rows_before(row + 1) > before;
    if (job.recall) continue;
    const int64_t text_row = row - before;
    seek(text_row);
    const int64_t which = epoch_.order[static_cast<size_t>(text_row - epoch_.first_row)];
    job.pieces.assign(epoch_.pieces.begin() + epoch_.row_begin[static_cast<size_t>(which)],
                      epoch_.pieces.begin() + epoch_.row_begin[static_cast<size_t>(which) + 1]);
  }
  std::vector<Batch> rows(jobs.size());
  const size_t threads =
      std::clamp<size_t>(std::thread::hardware_concurrency() / 2, 1, jobs.size());
  std::vector<std::exception_ptr> failures(threads);
  auto work = [&](size_t thread) {
    try {
      for (size_t n = thread; n < jobs.size(); n += threads) {
        if (jobs[n].recall) {
          add_recall_row(rows[n], jobs[n].row);
        } else {
          for (const Piece& piece : jobs[n].pieces) add_piece(rows[n], piece);
        }
      }
    } catch (...) {
      failures[thread] = std::current_exception();
    }
  };
  std::vector<std::thread> pool;
  for (size_t n = 1; n < threads; ++n) pool.emplace_back(work, n);
  work(0);
  for (auto& thread : pool) thread.join();
  for (const auto& one : failures) {
    if (one) std::rethrow_exception(one);
  }
  Batch batch;
  batch.cu_seqlens.push_back(0);
  for (const Batch& row : rows) {
    const auto base = static_cast<int64_t>(batch.ids.size());
    batch.ids.insert(batch.ids.end(), row.ids.begin(), row.ids.end());
    batch.targets.insert(batch.targets.end(), row.targets.begin(), row.targets.end());
    for (const int64_t end : row.cu_seqlens) batch.cu_seqlens.push_back(base + end);
    batch.longest = std::max(batch.longest, row.longest);
  }
  return batch;
}

std::vector<Batch> validation_batches(const Corpus& corpus, int64_t length, int64_t rows,
                                      int64_t rows_per_batch, int32_t end_of_text) {
  struct Slice {
    int64_t document, begin, length;
  };
  std::vector<Slice> slices;
  for (int64_t d = 0; d < corpus.documents(); ++d) {
    for (int64_t at = 0; at < corpus.length(d); at += length) {
      slices.push_back({d, at, std::min(length, corpus.length(d) - at)});
    }
  }
  const auto total = static_cast<int64_t>(slices.size());
  rows = std::min(rows, total);
  std::vector<Batch> batches;
  for (int64_t n = 0; n < rows; ++n) {
    if (n % rows_per_batch == 0) {
      batches.emplace_back();
      batches.back().cu_seqlens.push_back(0);
    }
    const Slice& slice = slices[static_cast<size_t>(n * total / rows)];
    add_slice(batches.back(), corpus, slice.document, slice.begin, slice.length, end_of_text);
  }
  return batches;
}

}  // namespace heed::data
