// Added tokens: strings that are found in the text before anything else and become one id, with the
// matching rules of Hugging Face `tokenizers` (leftmost, then longest; single_word, lstrip,
// rstrip).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace heed::tok {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false, single_word = false, lstrip = false, rstrip = false, normalized = false;
};

class AddedTokenMatcher {
 public:
  struct Part {
    std::string_view text;
    int32_t id = -1;  // -1: ordinary text
  };

  // `spelling` is what is searched for: the content, normalized or not. Empty ones are ignored; the
  // first of two with the same spelling stays.
  void add(std::string spelling, const AddedToken& token);
  bool empty() const { return tokens_.empty(); }

  // `text` cut at the tokens; stretches that are empty are left out. Special tokens are ordinary
  // text unless `parse_special`.
  std::vector<Part> split(std::string_view text, bool parse_special) const;

 private:
  // Length of the longest token at `at`, 0 where there is none.
  size_t longest(std::string_view text, size_t at, size_t& index) const;

  std::vector<AddedToken> tokens_;
  // A trie: (node, byte) to node, and the token that ends at a node (-1: none).
  std::unordered_map<uint64_t, uint32_t> edges_;
  std::vector<int32_t> ends_{-1};
  bool first_[256] = {};
};

}  // namespace heed::tok
