#include "io/tokenizer/tokenizer.h"

#include <algorithm>

#include "io/describe.h"
#include "io/error.h"
#include "io/tokenizer/tokenizer_parts.h"
#include "io/tokenizer/unicode.h"

namespace heed {

namespace {
constexpr size_t kKeep = 8;  // tokens in front of a StreamDecoder's new ones
}

void Tokenizer::Parts::set_token(int64_t id, const std::string& token) {
  if (id < 0 || id >= tok::kMaxVocab) {
    throw Error("{}: token \"{}\" has the id {}, outside 0..{}", file, printable(token), id,
                tok::kMaxVocab - 1);
  }
  if (static_cast<size_t>(id) >= id_to_token.size()) {
    id_to_token.resize(id + 1);
    is_special.resize(id + 1);
  }
  id_to_token[id] = token;
}

void Tokenizer::Parts::add(const tok::AddedToken& token) {
  if (token.content.empty() || !added_names.insert(token.content).second) return;
  set_token(token.id, token.content);
  token_to_id.insert_or_assign(token.content, token.id);
  last_added = std::max(last_added, token.id);
  if (token.special) is_special[token.id] = true;
  if (token.normalized) {
    added_normalized.add(normalizer ? normalizer->apply(token.content) : token.content, token);
  } else {
    added.add(token.content, token);
  }
}

int32_t Tokenizer::Parts::id_for_added(const std::string& content) const {
  const auto found = token_to_id.find(content);
  if (found != token_to_id.end()) return found->second;
  const int32_t behind_model = static_cast<int32_t>(model_tokens);
  return last_added >= behind_model ? last_added + 1 : behind_model;
}

Tokenizer::Tokenizer(std::shared_ptr<const Parts> parts)
    : parts_(std::move(parts)),
      special_(std::shared_ptr<const SpecialTokens>(parts_, &parts_->special)) {}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool parse_special) const {
  std::vector<int32_t> ids;
  std::string repaired;
  if (!unicode::is_valid(text)) {
    repaired = unicode::to_valid(text);
    text = repaired;
  }
  ids.reserve(text.size() / 3 + 4);
  tok::Pieces pieces;
  const auto encode_text = [&](std::string_view part, bool at_start) {
    pieces.list.assign(1, {part, at_start});
    pieces.made.clear();
    if (parts_->pre_tokenizer) parts_->pre_tokenizer->apply(pieces);
    for (const tok::Piece& piece : pieces.list) {
      if (!piece.text.empty()) parts_->model->encode(piece.text, ids);
    }
  };
  for (const auto& part : parts_->added.split(text, parse_special)) {
    if (part.id >= 0) {
      ids.push_back(part.id);
      continue;
    }
    const bool at_start = part.text.data() == text.data();
    std::string normalized;
    std::string_view plain = part.text;
    if (parts_->normalizer) {
      normalized = parts_->normalizer->apply(std::string(part.text));
      plain = normalized;
    }
    if (plain.empty()) continue;
    if (parts_->added_normalized.empty()) {
      encode_text(plain, at_start);
      continue;
    }
    for (const auto& inner : parts_->added_normalized.split(plain, parse_special)) {
      if (inner.id >= 0) {
        ids.push_back(inner.id);
      } else {
        encode_text(inner.text, at_start && inner.text.data() == plain.data());
      }
    }
  }
  return ids;
}

std::string Tokenizer::decode_bytes(std::span<const int32_t> ids, bool skip_special) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const int32_t id : ids) {
    const std::string& token = id_to_token(id);
    if (skip_special && parts_->is_special[id]) continue;
    tokens.push_back(token);
  }
  if (parts_->decoder) parts_->decoder->apply(tokens);
  std::string out;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i && !parts_->decoder) out += ' ';
    out += tokens[i];
  }
  return out;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes = decode_bytes(ids, skip_special);
  return unicode::is_valid(bytes) ? bytes : unicode::to_valid(bytes);
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(parts_->id_to_token.size()); }

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const auto found = parts_->token_to_id.find(token);
  if (found == parts_->token_to_id.end()) return std::nullopt;
  return found->second;
}

const std::string& Tokenizer::id_to_token(int32_t id) const {
  if (id < 0 || id >= vocab_size()) {
    throw UsageError("{}: token id {} is outside the vocabulary 0..{}", parts_->file, id,
                     vocab_size() - 1);
  }
  return parts_->id_to_token[id];
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && parts_->is_special[id];
}

const SpecialTokens& Tokenizer::special() const { return *special_; }

Tokenizer Tokenizer::with_special(SpecialTokens special) const {
  Tokenizer copy = *this;
  copy.special_ = std::make_shared<const SpecialTokens>(std::move(special));
  return copy;
}

Tokenizer Tokenizer::with_added(const std::vector<tok::AddedToken>& tokens, bool ids_count) const {
  auto parts = std::make_shared<Parts>(*parts_);
  for (tok::AddedToken token : tokens) {
    if (!ids_count) token.id = parts->id_for_added(token.content);
    const bool taken =
        ids_count && token.id >= 0 && static_cast<size_t>(token.id) < parts->id_to_token.size() &&
        !parts->id_to_token[token.id].empty() && parts->id_to_token[token.id] != token.content;
    if (taken) {
      throw Error("{}: the added token \"{}\" has the id {}, which \"{}\" has already", parts->file,
                  printable(token.content), token.id, printable(parts->id_to_token[token.id]));
    }
    parts->add(token);
  }
  Tokenizer out(std::move(parts));
  out.special_ = special_;
  return out;
}

StreamDecoder::StreamDecoder(Tokenizer tokenizer, bool skip_special,
                             std::span<const int64_t> before)
    : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {
  // The last ordinary tokens of the prompt stay in front of the window.
  for (size_t i = before.size(); i-- > 0 && window_.size() < kKeep;) {
    if (before[i] < 0 || before[i] >= tokenizer_.vocab_size()) continue;
    const int32_t id = static_cast<int32_t>(before[i]);
    if (!tokenizer_.is_special(id)) window_.insert(window_.begin(), id);
  }
  const std::string bytes = tokenizer_.decode_bytes(window_, skip_special_);
  emitted_ = bytes.size() - unicode::incomplete_tail(bytes);
}

std::string StreamDecoder::push(int32_t id) {
  constexpr size_t kMost = 64;
  window_.push_back(id);
  const std::string bytes = tokenizer_.decode_bytes(window_, skip_special_);
  const size_t sure = bytes.size() - unicode::incomplete_tail(bytes);
  std::string out;
  if (sure > emitted_) {
    out = unicode::to_valid(std::string_view(bytes).substr(emitted_, sure - emitted_));
    emitted_ = sure;
  }
  if (window_.size() >= kMost && emitted_ == bytes.size()) {
    window_.erase(window_.begin(), window_.end() - kKeep);
    emitted_ = tokenizer_.decode_bytes(window_, skip_special_).size();
  }
  return out;
}

std::string StreamDecoder::finish() {
  const std::string bytes = tokenizer_.decode_bytes(window_, skip_special_);
  const std::string out =
      bytes.size() > emitted_ ? unicode::to_valid(std::string_view(bytes).substr(emitted_)) : "";
  window_.clear();
  emitted_ = 0;
  return out;
}

}  // namespace heed
