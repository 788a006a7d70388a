// Making a tokenizer for a model: `heed tokenizer train`, and training runs that name none.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/progress.h"

namespace heed::train {

inline constexpr const char* kEndOfText = "<|endoftext|>";

// Learns a byte-level BPE of `vocab_size` tokens from text files (plain or .xz; `separator` as in
// data::CorpusOptions) and writes tokenizer.json and tokenizer_config.json into `folder`. Token 0
// is
// <|endoftext|>, which ends a document; every digit stands alone.
void train_tokenizer(const std::vector<std::string>& files, const std::string& separator,
                     int64_t vocab_size, const std::string& folder,
                     Progress& progress = no_progress());

}  // namespace heed::train
