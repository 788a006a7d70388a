#include "io/tokenizer/unigram.h"

#include <algorithm>
#include <limits>

#include "io/error.h"
#include "io/tokenizer/unicode.h"

namespace heed::tok {

Unigram::Unigram(const std::vector<std::pair<std::string, double>>& pieces, int32_t unk_id,
                 bool byte_fallback, std::string where)
    : unk_id_(unk_id), byte_fallback_(byte_fallback), where_(std::move(where)) {
  double lowest = std::numeric_limits<double>::infinity();
  for (size_t id = 0; id < pieces.size(); ++id) {
    // As in `tokenizers`, the last of two equal pieces counts.
    vocab_.insert_or_assign(pieces[id].first, static_cast<int32_t>(id));
    lowest = std::min(lowest, pieces[id].second);
  }
  unk_score_ = lowest - 10.0;
  for (int b = 0; b < 256; ++b) {
    const auto found = vocab_.find(fmt::format("<0x{:02X}>", b));
    byte_id_[b] = found == vocab_.end() ? -1 : found->second;
  }

  // The trie, breadth first over the sorted pieces.
  std::vector<std::string_view> sorted;
  for (const auto& [text, id] : vocab_) {
    if (!text.empty()) sorted.push_back(text);
  }
  std::sort(sorted.begin(), sorted.end());
  struct Range {
    size_t begin, end, depth;
    uint32_t node;
  };
  nodes_.emplace_back();
  std::vector<Range> ranges{{0, sorted.size(), 0, 0}};
  constexpr size_t kMostNodes = size_t{1} << 24;
  for (size_t r = 0; r < ranges.size(); ++r) {
    if (nodes_.size() > kMostNodes) {
      throw Error("{}: the pieces need a trie of more than {} nodes; the file is damaged", where_,
                  kMostNodes);
    }
    auto [begin, end, depth, node] = ranges[r];
    if (begin < end && sorted[begin].size() == depth) {
      const int32_t id = vocab_.find(sorted[begin])->second;
      nodes_[node].leaf = static_cast<int32_t>(leaves_.size());
      leaves_.push_back({id, pieces[id].second});
      ++begin;
    }
    nodes_[node].first_child = static_cast<uint32_t>(nodes_.size());
    for (size_t i = begin; i < end;) {
      size_t j = i;
      while (j < end && sorted[j][depth] == sorted[i][depth]) ++j;
      ranges.push_back({i, j, depth + 1, static_cast<uint32_t>(nodes_.size())});
      nodes_.emplace_back();
      nodes_.back().byte = static_cast<uint8_t>(sorted[i][depth]);
      ++nodes_[node].children;
      i = j;
    }
  }
}

const Unigram::Node* Unigram::child(const Node& node, uint8_t byte) const {
  const Node* first = nodes_.data() + node.first_child;
  const Node* last = first + node.children;
  const Node* found =
      std::lower_bound(first, last, byte, [](const Node& n, uint8_t b) { return n.byte < b; });
  return found != last && found->byte == byte ? found : nullptr;
}

void Unigram::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  struct Best {
    double score = 0;
    int64_t start = -1;  // -1: not reached
    int32_t id = 0;
  };
  std::vector<Best> best(piece.size() + 1);
  const auto offer = [&](size_t start, size_t end, double score, int32_t id) {
    Best& target = best[end];
    if (target.start < 0 || score > target.score) target = {score, static_cast<int64_t>(start), id};
  };
  for (size_t at = 0; at < piece.size();) {
    const size_t start = at;
    unicode::next(piece, at);
    const double here = best[start].score;
    bool single = false;  // is the character itself a piece?
    const Node* node = &nodes_[0];
    for (size_t i = start; i < piece.size(); ++i) {
      node = child(*node, static_cast<uint8_t>(piece[i]));
      if (!node) break;
      if (node->leaf < 0) continue;
      const Leaf& leaf = leaves_[node->leaf];
      offer(start, i + 1, here + leaf.score, leaf.id);
      single = single || i + 1 == at;
    }
    if (!single) {
      if (unk_id_ < 0) {
        throw Error("{}: the text has a character that is no piece, and unk_id is not set", where_);
      }
      offer(start, at, here + unk_score_, unk_id_);
    }
  }

  // Back from the end; neighbouring unknown characters are one.
  struct Span {
    size_t start, end;
  };
  std::vector<Span> spans;
  bool in_unknown = false;
  for (size_t end = piece.size(); end > 0;) {
    const Best& node = best[end];
    const bool unknown = unk_id_ >= 0 && node.id == unk_id_;
    const size_t start = static_cast<size_t>(node.start);
    if (unknown && in_unknown) {
      spans.back().start = start;
    } else {
      spans.push_back({start, end});
    }
    in_unknown = unknown;
    end = start;
  }
  for (size_t i = spans.size(); i-- > 0;) {
    const std::string_view text = piece.substr(spans[i].start, spans[i].end - spans[i].start);
    const auto found = vocab_.find(text);
    if (found != vocab_.end()) {
      ids.push_back(found->second);
      continue;
    }
    const bool spelled_out = byte_fallback_ && std::all_of(text.begin(), text.end(), [&](char c) {
                               return byte_id_[static_cast<uint8_t>(c)] >= 0;
                             });
    if (spelled_out) {
      for (const char c : text) ids.push_back(byte_id_[static_cast<uint8_t>(c)]);
    } else {
      ids.push_back(unk_id_);
    }
  }
}

}  // namespace heed::tok
