// WordPiece (Schuster and Nakajima 2012): the longest piece that fits, from the left, as BERT's
// tokenizer runs it.
#pragma once

#include <string>
#include <vector>

#include "io/tokenizer/parts.h"

namespace heed::tok {

class WordPiece : public Model {
 public:
  WordPiece(Vocab vocab, int32_t unk_id, std::string prefix, size_t max_characters);
  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;

 private:
  Vocab vocab_;
  int32_t unk_id_;
  std::string prefix_;
  size_t max_characters_;
};

}  // namespace heed::tok
