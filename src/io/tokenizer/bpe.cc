#include "io/tokenizer/bpe.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <queue>

#include "io/describe.h"
#include "io/error.h"
#include "io/tokenizer/unicode.h"

namespace heed::tok {

namespace {

// The words met last and their ids, one table a thread: text repeats itself.
struct WordCache {
  struct Slot {
    uint32_t owner = 0;
    uint8_t length = 0, count = 0;
    char word[26];
    int32_t ids[8];
  };
  std::vector<Slot> slots = std::vector<Slot>(size_t{1} << 14);

  Slot& slot(std::string_view word) {
    return slots[std::hash<std::string_view>{}(word) & (slots.size() - 1)];
  }
};

uint32_t next_serial() {
  static std::atomic<uint32_t> serial{0};
  return ++serial;
}

uint64_t pack(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

MergeTable::MergeTable(size_t expected) {
  int bits = 4;
  while ((size_t{1} << bits) < expected * 2) ++bits;
  shift_ = 64 - bits;
  entries_.assign(size_t{1} << bits, Entry{kEmpty, 0, 0});
}

size_t MergeTable::slot(uint64_t pair) const {
  const size_t mask = entries_.size() - 1;
  size_t at = (pair ^ pair >> 29) * 0x9E3779B97F4A7C15ull >> shift_;
  while (entries_[at].pair != kEmpty && entries_[at].pair != pair) at = (at + 1) & mask;
  return at;
}

void MergeTable::grow() {
  std::vector<Entry> old(entries_.size() * 2, Entry{kEmpty, 0, 0});
  old.swap(entries_);
  --shift_;
  for (const Entry& entry : old) {
    if (entry.pair != kEmpty) entries_[slot(entry.pair)] = entry;
  }
}

void MergeTable::add(int32_t left, int32_t right, int32_t rank, int32_t id) {
  if ((size_ + 1) * 2 > entries_.size()) grow();
  const uint64_t pair = pack(left, right);
  Entry& entry = entries_[slot(pair)];
  if (entry.pair == pair) return;
  entry = {pair, rank, id};
  ++size_;
}

const MergeTable::Entry* MergeTable::find(int32_t left, int32_t right) const {
  const Entry& entry = entries_[slot(pack(left, right))];
  return entry.pair == kEmpty ? nullptr : &entry;
}

Bpe::Bpe(const Vocab& vocab, BpeOptions options)
    : serial_(next_serial()), options_(std::move(options)) {
  byte_id_.fill(-1);
  vocab_.reserve(vocab.size());
  if (options_.raw_bytes) {
    std::string bytes;
    for (const auto& [text, id] : vocab) {
      if (!unicode::symbols_to_bytes(text, bytes)) continue;  // never spelled by bytes
      if (bytes.size() == 1) byte_id_[static_cast<unsigned char>(bytes[0])] = id;
      vocab_.emplace(bytes, id);
    }
  } else {
    vocab_ = vocab;
    if (options_.byte_fallback) {
      for (int b = 0; b < 256; ++b) {
        const auto found = vocab_.find(fmt::format("<0x{:02X}>", b));
        if (found != vocab_.end()) byte_id_[b] = found->second;
      }
    }
  }
  for (const int32_t id : byte_id_) all_bytes_ = all_bytes_ && id >= 0;
}

Bpe::Bpe(const Vocab& vocab, const std::vector<std::pair<std::string, std::string>>& merges,
         BpeOptions options, const std::string& where)
    : Bpe(vocab, std::move(options)) {
  merges_ = MergeTable(merges.size());
  bool blank_joins = false;
  std::string product;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const auto a = vocab.find(left), b = vocab.find(right);
    std::string_view tail = right;
    if (tail.starts_with(options_.continuing_prefix)) {
      tail.remove_prefix(options_.continuing_prefix.size());
    }
    product = left;
    product += tail;
    const auto c = vocab.find(product);
    if (a == vocab.end() || b == vocab.end() || c == vocab.end()) {
      throw Error("{}.merges[{}]: \"{}\" is not in the vocabulary", where, rank,
                  printable(a == vocab.end()   ? left
                            : b == vocab.end() ? right
                                               : product));
    }
    merges_.add(a->second, b->second, static_cast<int32_t>(rank), c->second);
    if (right.starts_with(kLowerOneEighthBlock) && !left.ends_with(kLowerOneEighthBlock)) {
      blank_joins = true;
    }
  }
  split_at_blank_ = !options_.raw_bytes && !blank_joins && options_.word_suffix.empty() &&
                    options_.continuing_prefix.empty() && !options_.ignore_merges &&
                    vocab_.find(kLowerOneEighthBlock) != vocab_.end();
}

Bpe Bpe::from_scores(const Vocab& vocab, const std::vector<float>& scores,
                     const std::vector<bool>& mergeable, BpeOptions options) {
  Bpe model(vocab, std::move(options));
  std::vector<std::pair<int32_t, const std::string*>> order;  // products, best score first
  for (const auto& [text, id] : vocab) {
    if (mergeable[id]) order.emplace_back(id, &text);
  }
  std::sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
    return scores[a.first] != scores[b.first] ? scores[a.first] > scores[b.first]
                                              : a.first < b.first;
  });
  model.merges_ = MergeTable(order.size() * 4);
  bool blank_joins = false;
  int32_t rank = -1;
  for (size_t i = 0; i < order.size(); ++i) {
    // Equal scores share a rank: the leftmost goes first.
    if (i == 0 || scores[order[i].first] != scores[order[i - 1].first]) ++rank;
    const std::string_view text = *order[i].second;
    for (size_t cut = 1; cut < text.size(); ++cut) {
      if ((static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) continue;
      const auto a = vocab.find(text.substr(0, cut)), b = vocab.find(text.substr(cut));
      if (a == vocab.end() || b == vocab.end()) continue;
      if (!mergeable[a->second] || !mergeable[b->second]) continue;
      model.merges_.add(a->second, b->second, rank, order[i].first);
      blank_joins = blank_joins || (b->first.starts_with(kLowerOneEighthBlock) &&
                                    !a->first.ends_with(kLowerOneEighthBlock));
    }
  }
  model.split_at_blank_ = !blank_joins && model.vocab_.find(kLowerOneEighthBlock) != vocab.end();
  return model;
}

void Bpe::append_symbols(std::string_view piece, std::vector<int32_t>& ids) const {
  const size_t first = ids.size();
  if (options_.raw_bytes) {
    for (const char c : piece) {
      const int32_t id = byte_id_[static_cast<unsigned char>(c)];
      if (id >= 0) {
        ids.push_back(id);
      } else if (options_.unk_id >= 0) {
        if (!options_.fuse_unk || ids.size() == first || ids.back() != options_.unk_id) {
          ids.push_back(options_.unk_id);
        }
      }  // else the byte has no token and is left out
    }
    return;
  }
  const bool affixes = !options_.continuing_prefix.empty() || !options_.word_suffix.empty();
  bool pending_unk = false;
  std::string spelled;
  for (size_t at = 0; at < piece.size();) {
    const size_t start = at;
    unicode::next(piece, at);
    std::string_view symbol = piece.substr(start, at - start);
    if (affixes) {
      spelled.clear();
      if (start > 0) spelled = options_.continuing_prefix;
      spelled += symbol;
      if (at == piece.size()) spelled += options_.word_suffix;
      symbol = spelled;
    }
    const auto found = vocab_.find(symbol);
    if (found != vocab_.end()) {
      if (pending_unk) ids.push_back(options_.unk_id);
      pending_unk = false;
      ids.push_back(found->second);
      continue;
    }
    if (options_.byte_fallback) {
      const bool spelled_out = std::all_of(symbol.begin(), symbol.end(), [&](char c) {
        return byte_id_[static_cast<unsigned char>(c)] >= 0;
      });
      if (spelled_out) {
        for (const char c : symbol) ids.push_back(byte_id_[static_cast<unsigned char>(c)]);
        continue;
      }
    }
    if (options_.unk_id < 0) continue;
    if (pending_unk && !options_.fuse_unk) ids.push_back(options_.unk_id);
    pending_unk = true;
  }
  if (pending_unk) ids.push_back(options_.unk_id);
}

// Merges ids[first..]. Short stretches are searched for the lowest rank again and again; long ones
// use a heap of candidates over a linked list, so that no input takes quadratic time.
void Bpe::merge(std::vector<int32_t>& ids, size_t first) const {
  constexpr int32_t kNone = INT32_MAX;
  const size_t count = ids.size() - first;
  if (count < 2) return;
  if (count <= 32) {
    int32_t* id = ids.data() + first;
    int32_t rank[32] = {}, product[32] = {};
    size_t n = count;
    const auto look = [&](size_t i) {
      const MergeTable::Entry* entry = merges_.find(id[i], id[i + 1]);
      rank[i] = entry ? entry->rank : kNone;
      product[i] = entry ? entry->id : 0;
    };
    for (size_t i = 0; i + 1 < n; ++i) look(i);
    while (n > 1) {
      size_t best = 0;
      for (size_t i = 1; i + 1 < n; ++i) {
        if (rank[i] < rank[best]) best = i;
      }
      if (rank[best] == kNone) break;
      id[best] = product[best];
      for (size_t i = best + 1; i + 1 < n; ++i) {
        id[i] = id[i + 1];
        rank[i] = rank[i + 1];
        product[i] = product[i + 1];
      }
      --n;
      if (best + 1 < n) look(best);
      if (best > 0) look(best - 1);
    }
    ids.resize(first + n);
    return;
  }

  if (count > INT32_MAX / 2) throw Error("a piece of {} symbols is too long to tokenize", count);
  struct Candidate {
    int32_t rank, at, left, right, id;
    bool operator<(const Candidate& other) const {  // std::priority_queue puts the largest first
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  struct Symbol {
    int32_t id, previous, next;  // id -1: merged away
  };
  const int32_t n = static_cast<int32_t>(count);
  std::vector<Symbol> symbols(count);
  for (int32_t i = 0; i < n; ++i) symbols[i] = {ids[first + i], i - 1, i + 1 < n ? i + 1 : -1};
  std::vector<Candidate> heap;
  heap.reserve(count);
  const auto candidate = [&](int32_t at, auto&& push) {
    if (at < 0 || symbols[at].next < 0) return;
    const int32_t left = symbols[at].id, right = symbols[symbols[at].next].id;
    if (const MergeTable::Entry* entry = merges_.find(left, right)) {
      push(Candidate{entry->rank, at, left, right, entry->id});
    }
  };
  for (int32_t i = 0; i < n; ++i) candidate(i, [&](const Candidate& c) { heap.push_back(c); });
  std::priority_queue<Candidate> queue(std::less<Candidate>(), std::move(heap));
  const auto push = [&](const Candidate& c) { queue.push(c); };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[top.at];
    if (left.id != top.left || left.next < 0 || symbols[left.next].id != top.right) continue;
    Symbol& right = symbols[left.next];
    left.id = top.id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = top.at;
    candidate(left.previous, push);
    candidate(top.at, push);
  }
  ids.resize(first);
  for (int32_t i = 0; i >= 0; i = symbols[i].next) ids.push_back(symbols[i].id);
}

void Bpe::encode_stretch(std::string_view piece, std::vector<int32_t>& ids) const {
  static thread_local WordCache cache;
  WordCache::Slot& slot = cache.slot(piece);
  if (slot.owner == serial_ && std::string_view(slot.word, slot.length) == piece) {
    ids.insert(ids.end(), slot.ids, slot.ids + slot.count);
    return;
  }
  const size_t first = ids.size();
  append_symbols(piece, ids);
  merge(ids, first);
  const size_t count = ids.size() - first;
  if (piece.size() <= sizeof(slot.word) && count <= std::size(slot.ids)) {
    slot.owner = serial_;
    slot.length = static_cast<uint8_t>(piece.size());
    slot.count = static_cast<uint8_t>(count);
    std::copy(piece.begin(), piece.end(), slot.word);
    std::copy(ids.begin() + first, ids.end(), slot.ids);
  }
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (options_.ignore_merges) {
    const auto found = vocab_.find(piece);
    if (found != vocab_.end()) {
      ids.push_back(found->second);
      return;
    }
  }
  if (!split_at_blank_) return encode_stretch(piece, ids);
  const size_t width = kLowerOneEighthBlock.size();
  size_t start = 0;
  for (size_t at = 1; at < piece.size();) {
    const size_t blank = piece.find(kLowerOneEighthBlock, at);
    if (blank == std::string_view::npos) break;
    const bool behind_blank =
        blank >= width && piece.substr(blank - width, width) == kLowerOneEighthBlock;
    if (!behind_blank) {
      encode_stretch(piece.substr(start, blank - start), ids);
      start = blank;
    }
    at = blank + width;
  }
  encode_stretch(piece.substr(start), ids);
}

}  // namespace heed::tok
