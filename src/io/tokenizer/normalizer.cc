// Normalizers: NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Replace, Prepend, Strip, Precompiled,
// Nmt, BertNormalizer, ByteLevel and Sequences of them.
#include "io/describe.h"
#include "io/error.h"
#include "io/tokenizer/parts.h"
#include "io/tokenizer/regex.h"
#include "io/tokenizer/unicode.h"

namespace heed::tok {

namespace {

// One character at a time: `map` appends what becomes of it.
template <typename Map>
std::string each_character(std::string_view text, Map&& map) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) map(unicode::next(text, at), out);
  return out;
}

class Sequence : public Normalizer {
 public:
  explicit Sequence(std::vector<std::shared_ptr<const Normalizer>> stages)
      : stages_(std::move(stages)) {}
  std::string apply(std::string text) const override {
    const Growth growth(text.size());
    for (const auto& stage : stages_) {
      text = stage->apply(std::move(text));
      growth.check(text.size());
    }
    return text;
  }
  const std::vector<std::shared_ptr<const Normalizer>>& stages() const { return stages_; }

 private:
  std::vector<std::shared_ptr<const Normalizer>> stages_;
};

class Function : public Normalizer {
 public:
  using Map = std::string (*)(std::string_view);
  explicit Function(Map map) : map_(map) {}
  std::string apply(std::string text) const override { return map_(text); }

 private:
  Map map_;
};

class Replace : public Normalizer {
 public:
  Replace(std::string from, std::shared_ptr<const Regex> regex, std::string to)
      : from_(std::move(from)), to_(std::move(to)), regex_(std::move(regex)) {}
  std::string apply(std::string text) const override {
    std::string out;
    out.reserve(text.size() + text.size() / 4);
    const Growth growth(text.size());
    size_t behind = 0, from = 0, start = 0, end = 0;
    while (from <= text.size()) {
      if (regex_) {
        if (!regex_->find(text, from, start, end)) break;
      } else {
        start = from_.empty() ? std::string::npos : text.find(from_, from);
        if (start == std::string::npos) break;
        end = start + from_.size();
      }
      out.append(text, behind, start - behind);
      out += to_;
      growth.check(out.size());
      behind = from = end;
      if (start == end) {
        if (from >= text.size()) break;
        unicode::next(text, from);
      }
    }
    out.append(text, behind);
    return out;
  }

 private:
  std::string from_, to_;
  std::shared_ptr<const Regex> regex_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string text) : text_(std::move(text)) {}
  std::string apply(std::string text) const override {
    if (!text.empty()) text.insert(0, text_);
    return text;
  }

 private:
  std::string text_;
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  std::string apply(std::string text) const override {
    size_t start = 0, end = text.size();
    if (left_) {
      for (size_t at = 0; at < text.size(); start = at) {
        if (!unicode::is_whitespace(unicode::next(text, at))) break;
      }
    }
    while (right_ && end > start) {
      size_t last = end - 1;
      while (last > start && (static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
      size_t at = last;
      if (!unicode::is_whitespace(unicode::next(text, at))) break;
      end = last;
    }
    return text.substr(start, end - start);
  }

 private:
  bool left_, right_;
};

// github.com/google-research/bert, tokenization.py, as `tokenizers` runs it.
class Bert : public Normalizer {
 public:
  Bert(bool clean, bool chinese, bool strip_accents, bool lowercase)
      : clean_(clean), chinese_(chinese), strip_accents_(strip_accents), lowercase_(lowercase) {}
  std::string apply(std::string text) const override {
    text = each_character(text, [&](char32_t c, std::string& out) {
      const bool blank = c == '\t' || c == '\n' || c == '\r' || unicode::is_whitespace(c);
      if (clean_) {
        if (c == 0 || c == 0xFFFD) return;
        if (unicode::is_control(c) && c != '\t' && c != '\n' && c != '\r') return;
        if (blank) c = ' ';
      }
      if (chinese_ && unicode::is_chinese(c)) {
        out += ' ';
        unicode::append(out, c);
        out += ' ';
      } else {
        unicode::append(out, c);
      }
    });
    if (strip_accents_) {
      text = each_character(unicode::normalize(text, unicode::Form::kNfd),
                            [](char32_t c, std::string& out) {
                              if (!unicode::is_nonspacing_mark(c)) unicode::append(out, c);
                            });
    }
    return lowercase_ ? unicode::lower(text) : text;
  }

 private:
  bool clean_, chinese_, strip_accents_, lowercase_;
};

std::string strip_accents(std::string_view text) {
  return each_character(text, [](char32_t c, std::string& out) {
    if (!unicode::is_mark(c)) unicode::append(out, c);
  });
}

// SentencePiece's rules for machine translation (src/builder.cc, BuildNmtNFKCMap).
std::string nmt(std::string_view text) {
  return each_character(text, [](char32_t c, std::string& out) {
    if ((c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F ||
        c == 0x9F) {
      return;
    }
    const bool blank = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 ||
                       (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
                       c == 0xFEFF || c == 0xFFFD;
    unicode::append(out, blank ? U' ' : c);
  });
}

// SentencePiece's compiled normalization: a double-array trie (github.com/s-yata/darts-clone) from
// strings to offsets into a list of replacements, each ended by a zero byte. A grapheme cluster of
// less than six bytes is looked up whole, else each character by itself.
class Precompiled : public Normalizer {
 public:
  Precompiled(std::string_view map, const std::string& where) {
    if (map.size() < 4) throw Error("{}: the character map is too short", where);
    const auto word = [&](size_t at) {
      uint32_t value = 0;
      for (int i = 3; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(map[at + i]);
      return value;
    };
    const uint32_t bytes = word(0);
    if (bytes % 4 != 0 || bytes == 0 || bytes > map.size() - 4) {
      throw Error("{}: the character map's trie of {} bytes does not fit into it", where, bytes);
    }
    for (uint32_t at = 0; at < bytes; at += 4) units_.push_back(word(4 + at));
    replacements_ = map.substr(4 + bytes);
  }

  std::string apply(std::string text) const override {
    std::string out;
    out.reserve(text.size());
    for (size_t at = 0; at < text.size();) {
      // A byte below 128 before another one is a cluster of its own, except CR LF.
      const size_t end = unicode::grapheme_end(text, at);
      const std::string_view cluster = std::string_view(text).substr(at, end - at);
      at = end;
      if (cluster.size() < 6 && append_replacement(cluster, out)) continue;
      for (size_t i = 0; i < cluster.size();) {
        const size_t start = i;
        unicode::next(cluster, i);
        const std::string_view character = cluster.substr(start, i - start);
        if (!append_replacement(character, out)) out += character;
      }
    }
    return out;
  }

 private:
  // The shortest prefix of `key` that the trie holds decides, as in `spm_precompiled`.
  bool append_replacement(std::string_view key, std::string& out) const {
    const auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & 1u << 9) >> 6); };
    uint32_t node = offset(units_[0]);
    for (const char c : key) {
      const uint32_t byte = static_cast<unsigned char>(c);
      if (byte == 0) return false;
      node ^= byte;
      if (node >= units_.size()) return false;
      const uint32_t unit = units_[node];
      if ((unit & (1u << 31 | 0xFF)) != byte) return false;
      node ^= offset(unit);
      if (unit >> 8 & 1) {
        if (node >= units_.size()) return false;
        const uint32_t at = units_[node] & ((1u << 31) - 1);
        if (at >= replacements_.size()) return false;
        const size_t end = std::min(replacements_.find('\0', at), replacements_.size());
        out.append(replacements_, at, end - at);
        return true;
      }
    }
    return false;
  }

  std::vector<uint32_t> units_;
  std::string replacements_;
};

std::string decode_base64(std::string_view text, const std::string& where) {
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    int value = -1;
    if (c >= 'A' && c <= 'Z') value = c - 'A';
    if (c >= 'a' && c <= 'z') value = c - 'a' + 26;
    if (c >= '0' && c <= '9') value = c - '0' + 52;
    if (c == '+') value = 62;
    if (c == '/') value = 63;
    if (c == '=') break;
    if (value < 0) throw Error("{}: not base64", where);
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      out.push_back(static_cast<char>(bits >> count & 0xFF));
    }
  }
  return out;
}

// Null for a Precompiled without a map, which changes nothing.
std::shared_ptr<const Normalizer> read(const Json& json, const std::string& where, int depth) {
  using unicode::Form;
  const auto function = [](Function::Map map) { return std::make_shared<Function>(map); };
  const std::string type = printable(get_string(json, "type", where), 60);
  const std::string here = where + " (" + type + ")";
  if (type == "Sequence") {
    if (depth >= kMaxDepth) throw Error("{}: nested too deeply", where);
    const Json& list = get_field(json, "normalizers", here);
    if (!list.is_array()) throw Error("{}.normalizers: expected a list", here);
    std::vector<std::shared_ptr<const Normalizer>> stages;
    for (size_t i = 0; i < list.size(); ++i) {
      auto stage = read(list[i], fmt::format("{}[{}]", where, i), depth + 1);
      if (const auto* inner = dynamic_cast<const Sequence*>(stage.get())) {
        stages.insert(stages.end(), inner->stages().begin(), inner->stages().end());
      } else if (stage) {
        stages.push_back(std::move(stage));
      }
    }
    return std::make_shared<Sequence>(std::move(stages));
  }
  if (type == "NFC") {
    return function([](std::string_view s) { return unicode::normalize(s, Form::kNfc); });
  }
  if (type == "NFD") {
    return function([](std::string_view s) { return unicode::normalize(s, Form::kNfd); });
  }
  if (type == "NFKC") {
    return function([](std::string_view s) { return unicode::normalize(s, Form::kNfkc); });
  }
  if (type == "NFKD") {
    return function([](std::string_view s) { return unicode::normalize(s, Form::kNfkd); });
  }
  if (type == "Lowercase") return function(unicode::lower);
  if (type == "StripAccents") return function(strip_accents);
  if (type == "Nmt") return function(nmt);
  if (type == "ByteLevel") return function(unicode::bytes_to_symbols);
  if (type == "Prepend") return std::make_shared<Prepend>(get_string(json, "prepend", here));
  if (type == "Strip") {
    return std::make_shared<Strip>(get_bool(json, "strip_left", here, true),
                                   get_bool(json, "strip_right", here, true));
  }
  if (type == "Replace") {
    const Json& pattern = get_field(json, "pattern", here);
    std::shared_ptr<const Regex> regex;
    std::string from;
    if (pattern.is_object() && pattern.contains("Regex")) {
      regex = std::make_shared<Regex>(get_string(pattern, "Regex", here), here);
    } else {
      from = get_string(pattern, "String", here + ".pattern");
    }
    return std::make_shared<Replace>(from, regex, get_string(json, "content", here));
  }
  if (type == "Precompiled") {
    const auto map = json.find("precompiled_charsmap");
    if (map == json.end() || map->is_null()) return nullptr;
    return precompiled_normalizer(
        decode_base64(get_string(json, "precompiled_charsmap", here), here), here);
  }
  if (type == "BertNormalizer") {
    const bool lowercase = get_bool(json, "lowercase", here, true);
    return std::make_shared<Bert>(get_bool(json, "clean_text", here, true),
                                  get_bool(json, "handle_chinese_chars", here, true),
                                  get_bool(json, "strip_accents", here, lowercase), lowercase);
  }
  throw Error("{}: the normalizer \"{}\" is not known to Heed", where, type);
}

}  // namespace

std::shared_ptr<const Normalizer> precompiled_normalizer(std::string_view charsmap,
                                                         const std::string& where) {
  if (charsmap.empty()) return nullptr;
  return std::make_shared<Precompiled>(charsmap, where);
}

std::shared_ptr<const Normalizer> read_normalizer(const Json& json, const std::string& where) {
  return read(json, where, 0);
}

}  // namespace heed::tok
