// Text corpora as token files: documents of any length, read through a memory map, so that a corpus
// larger than memory can be trained on.
//
// Text comes from plain or .xz files. A file is one document, or several when a separator line is
// named (the book data uses the line `<|endofbook|>`). Token files are cached, keyed by a hash of
// the tokenizer, the separator and the contents of the files.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/codec.h"
#include "io/progress.h"

namespace heed::data {

// Cuts `text` at lines that hold only `separator`; the line breaks around it belong to no document.
// An empty separator gives the whole text. Empty documents are left out.
std::vector<std::string_view> split_documents(std::string_view text, std::string_view separator);

struct CorpusOptions {
  std::string separator;  // empty: a file is one document
  std::string cache;      // folder of cached token files; empty: tokens stay in memory
  int threads = 0;        // 0: all cores
};

// Documents as token ids (without end-of-text tokens). Copies share the tokens.
class Corpus {
 public:
  Corpus() = default;

  // Reads and tokenises `files`, or opens the cached result. The result does not depend on
  // `threads`. Throws Error for a file that cannot be read or a corpus without a token.
  static Corpus load(const std::vector<std::string>& files, const TextCodec& codec,
                     const CorpusOptions& options = {}, Progress& progress = no_progress());
  static Corpus from_documents(const std::vector<std::vector<int32_t>>& documents);
  static Corpus from_texts(const std::vector<std::string>& texts, const TextCodec& codec);

  int64_t documents() const { return static_cast<int64_t>(index_.size()); }
  int64_t tokens() const { return tokens_; }
  int64_t length(int64_t document) const { return index_[document].length; }
  // tokens[begin, begin + out.size()) of a document; the range must lie inside.
  void copy(int64_t document, int64_t begin, std::span<int32_t> out) const;
  std::vector<int32_t> slice(int64_t document, int64_t begin, int64_t count) const;

  // The documents with these numbers, as a corpus over the same tokens.
  Corpus subset(const std::vector<int64_t>& documents) const;
  // Holds out `count` documents chosen by `seed`: {the rest, held out}. Throws UsageError when
  // nothing would be left to train on.
  std::pair<Corpus, Corpus> hold_out(int64_t count, uint64_t seed) const;

 private:
  struct Storage;
  struct Range {
    int64_t begin = 0, length = 0;
  };
  static Corpus open(const std::string& path);
  std::shared_ptr<const Storage> storage_;
  std::vector<Range> index_;
  int64_t tokens_ = 0;
};

}  // namespace heed::data
