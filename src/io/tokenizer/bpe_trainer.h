// Learns a byte-level BPE vocabulary (Sennrich et al. 2016, arXiv 1508.07909; bytes as in GPT-2).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "io/progress.h"

namespace heed {

struct BpeTrainerOptions {
  int64_t vocab_size = 8192;                // with the special tokens and the 256 bytes
  std::vector<std::string> special_tokens;  // ids 0, 1, ...; never part of another token
  bool digits_alone = true;                 // every digit is a piece of its own
  int64_t min_frequency = 2;                // of a pair that is merged
};

// Calls `next` until it returns false; each call puts one text (a document, or a part of one cut at
// a line end) into its argument. Returns a tokenizer.json that Hugging Face `tokenizers` and
// Tokenizer::from_tokenizer_json read: pre-tokenizer Sequence[Digits, ByteLevel] (ByteLevel alone
// without digits_alone), byte-level decoder. The same texts give the same bytes, in any order.
// Equal counts are resolved towards the pair of lower ids, as in `tokenizers`. Throws UsageError
// for a vocabulary too small for the bytes and special tokens.
std::string train_byte_bpe(const std::function<bool(std::string& text)>& next,
                           const BpeTrainerOptions& options, Progress& progress = no_progress());

}  // namespace heed
