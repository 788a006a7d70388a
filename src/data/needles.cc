// See needles.h.
#include "data/needles.h"

#include <algorithm>
#include <cmath>

#include "io/error.h"

namespace heed::data {

void append(std::vector<int32_t>& to, std::span<const int32_t> tokens) {
  to.insert(to.end(), tokens.begin(), tokens.end());
}

Filler::Filler(Corpus corpus, const TextCodec& codec) : corpus_(std::move(corpus)), codec_(codec) {
  if (corpus_.tokens() == 0) throw UsageError("recall text needs some text as filler");
  int64_t total = 0;
  for (int64_t d = 0; d < corpus_.documents(); ++d) {
    document_end_.push_back(total += corpus_.length(d));
  }
  const auto vocabulary = static_cast<size_t>(codec_.vocab_size);
  ends_sentence_.assign(vocabulary, 0);
  starts_word_.assign(vocabulary, 0);
  // Decoded behind another token: some tokenizers drop a space that comes first.
  const auto lead = codec_.encode("a");
  if (lead.empty()) throw UsageError("the tokenizer encodes \"a\" as nothing");
  const std::string lead_text = codec_.decode(lead);
  std::vector<int32_t> letters;
  std::vector<int32_t> ids = lead;
  ids.push_back(0);
  for (int32_t id = 0; id < codec_.vocab_size; ++id) {
    ids.back() = id;
    std::string text = codec_.decode(ids);
    if (text.size() <= lead_text.size() || text.compare(0, lead_text.size(), lead_text) != 0) {
      continue;
    }
    text.erase(0, lead_text.size());
    const char first = text.front(), last = text.back();
    ends_sentence_[static_cast<size_t>(id)] =
        last == '.' || last == '!' || last == '?' || last == '\n' || text.ends_with(".\"");
    starts_word_[static_cast<size_t>(id)] = first == ' ' || first == '\n';
    const bool lower = std::all_of(text.begin() + (first == ' '), text.end(),
                                   [](unsigned char c) { return c >= 'a' && c <= 'z'; });
    if (lower && first == ' ' && text.size() >= 4) words_.push_back(id);
    if (lower && first != ' ') letters.push_back(id);
  }
  if (words_.size() < 256) words_.insert(words_.end(), letters.begin(), letters.end());
  const auto digits = codec_.encode(" 10234");
  if (words_.size() < 2 || codec_.decode(digits).find("10234") == std::string::npos) {
    throw UsageError("the tokenizer cannot write words and digits, which recall text is made of");
  }
}

int64_t Filler::boundary(std::span<const int32_t> tokens, int64_t wanted) const {
  const auto size = static_cast<int64_t>(tokens.size());
  if (wanted <= 0 || wanted >= size) return std::clamp<int64_t>(wanted, 0, size);
  const int64_t last = std::min(size - 1, wanted + 48);
  int64_t word = -1;
  for (int64_t n = wanted; n <= last; ++n) {
    const auto before = static_cast<size_t>(tokens[static_cast<size_t>(n - 1)]);
    const auto here = static_cast<size_t>(tokens[static_cast<size_t>(n)]);
    if (!starts_word_[here]) continue;
    if (ends_sentence_[before]) return n;
    if (word < 0) word = n;
  }
  return word < 0 ? wanted : word;
}

std::vector<int32_t> Filler::text(int64_t count, Random& random) const {
  std::vector<int32_t> tokens;
  while (static_cast<int64_t>(tokens.size()) < count) {
    const int64_t need = count - static_cast<int64_t>(tokens.size());
    const auto at = static_cast<int64_t>(random.below(static_cast<uint64_t>(corpus_.tokens())));
    const int64_t document =
        std::upper_bound(document_end_.begin(), document_end_.end(), at) - document_end_.begin();
    const int64_t length = corpus_.length(document);
    int64_t begin = at - (document_end_[static_cast<size_t>(document)] - length);
    begin = std::clamp<int64_t>(begin, 0, std::max<int64_t>(0, length - need - 64));
    // Looks for a place to begin in the tokens that may be spared.
    const int64_t spare = std::min<int64_t>(64, length - begin - 1);
    auto piece = corpus_.slice(document, begin, std::min(length - begin, need + spare));
    int64_t skip = begin == 0 ? 0 : boundary(piece, std::min<int64_t>(1, spare));
    skip = std::min(skip, std::max<int64_t>(0, static_cast<int64_t>(piece.size()) - need));
    const int64_t take = std::min<int64_t>(need, static_cast<int64_t>(piece.size()) - skip);
    append(tokens, std::span(piece).subspan(static_cast<size_t>(skip), static_cast<size_t>(take)));
  }
  return tokens;
}

std::vector<int32_t> Filler::plant(std::span<const int32_t> between,
                                   std::span<const std::vector<int32_t>> pieces,
                                   std::span<const double> depths,
                                   std::vector<int64_t>* begins) const {
  std::vector<int32_t> tokens;
  begins->clear();
  int64_t used = 0;
  for (size_t n = 0; n < pieces.size(); ++n) {
    const auto wanted =
        static_cast<int64_t>(std::llround(depths[n] * static_cast<double>(between.size())));
    const int64_t cut = std::max(used, boundary(between, wanted));
    append(tokens, between.subspan(static_cast<size_t>(used), static_cast<size_t>(cut - used)));
    used = cut;
    begins->push_back(static_cast<int64_t>(tokens.size()));
    append(tokens, pieces[n]);
  }
  append(tokens, between.subspan(static_cast<size_t>(used)));
  return tokens;
}

}  // namespace heed::data
