// Unigram language model (Kudo 2018, arXiv 1804.10959): the segmentation of highest total score, by
// Viterbi over the characters, as the Unigram model of tokenizer.json runs it.
#pragma once

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "io/tokenizer/parts.h"

namespace heed::tok {

class Unigram : public Model {
 public:
  // `pieces[id]` is (text, score); `unk_id` -1 if there is none.
  Unigram(const std::vector<std::pair<std::string, double>>& pieces, int32_t unk_id,
          bool byte_fallback, std::string where);
  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;

 private:
  struct Leaf {
    int32_t id;
    double score;
  };
  // Trie in an array of nodes: children of one node are a run sorted by byte.
  struct Node {
    uint32_t first_child = 0;
    uint16_t children = 0;
    uint8_t byte = 0;
    int32_t leaf = -1;
  };
  const Node* child(const Node& node, uint8_t byte) const;

  std::vector<Node> nodes_;
  std::vector<Leaf> leaves_;
  Vocab vocab_;
  std::array<int32_t, 256> byte_id_;
  int32_t unk_id_;
  bool byte_fallback_;
  double unk_score_;
  std::string where_;
};

}  // namespace heed::tok
