#include "io/tokenizer/wordpiece.h"

#include "io/tokenizer/unicode.h"

namespace heed::tok {

WordPiece::WordPiece(Vocab vocab, int32_t unk_id, std::string prefix, size_t max_characters)
    : vocab_(std::move(vocab)),
      unk_id_(unk_id),
      prefix_(std::move(prefix)),
      max_characters_(max_characters) {}

void WordPiece::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  std::vector<size_t> cuts;  // where a piece may end
  for (size_t at = 0; at < piece.size();) {
    unicode::next(piece, at);
    cuts.push_back(at);
    if (cuts.size() > max_characters_) return ids.push_back(unk_id_);
  }
  const size_t before = ids.size();
  std::string key;
  for (size_t start = 0, first = 0; start < piece.size();) {
    size_t last = cuts.size();
    for (; last > first; --last) {
      key = start > 0 ? prefix_ : std::string();
      key += piece.substr(start, cuts[last - 1] - start);
      const auto found = vocab_.find(key);
      if (found == vocab_.end()) continue;
      ids.push_back(found->second);
      break;
    }
    if (last == first) {  // one part is unknown: so is the whole word
      ids.resize(before);
      return ids.push_back(unk_id_);
    }
    start = cuts[last - 1];
    first = last;
  }
}

}  // namespace heed::tok
