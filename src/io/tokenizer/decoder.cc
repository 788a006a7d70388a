// Decoders: ByteLevel, Metaspace, ByteFallback, Fuse, Replace, Strip, WordPiece, BPEDecoder and
// Sequences of them.
#include "io/describe.h"
#include "io/error.h"
#include "io/tokenizer/parts.h"
#include "io/tokenizer/regex.h"
#include "io/tokenizer/unicode.h"

namespace heed::tok {

namespace {

size_t total_bytes(const std::vector<std::string>& tokens) {
  size_t total = 0;
  for (const std::string& token : tokens) total += token.size();
  return total;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (from.empty()) return;
  const Growth growth(text.size());
  std::string out;
  size_t at = 0;
  for (size_t found; (found = text.find(from, at)) != std::string::npos; at = found + from.size()) {
    out.append(text, at, found - at);
    out += to;
    growth.check(out.size());
  }
  out.append(text, at);
  text = std::move(out);
}

class Sequence : public Decoder {
 public:
  explicit Sequence(std::vector<std::shared_ptr<const Decoder>> stages)
      : stages_(std::move(stages)) {}
  void apply(std::vector<std::string>& tokens) const override {
    const Growth growth(total_bytes(tokens));
    for (const auto& stage : stages_) {
      stage->apply(tokens);
      growth.check(total_bytes(tokens));
    }
  }
  const std::vector<std::shared_ptr<const Decoder>>& stages() const { return stages_; }

 private:
  std::vector<std::shared_ptr<const Decoder>> stages_;
};

// A token with a character outside the byte alphabet stands for itself.
class ByteLevel : public Decoder {
 public:
  void apply(std::vector<std::string>& tokens) const override {
    std::string bytes, all;
    for (const std::string& token : tokens) {
      all += unicode::symbols_to_bytes(token, bytes) ? bytes : token;
    }
    tokens.clear();
    tokens.push_back(std::move(all));
  }
};

class Metaspace : public Decoder {
 public:
  Metaspace(std::string replacement, bool strips)
      : replacement_(std::move(replacement)), strips_(strips) {}
  void apply(std::vector<std::string>& tokens) const override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i == 0 && strips_ && tokens[i].starts_with(replacement_)) {
        tokens[i].erase(0, replacement_.size());
      }
      replace_all(tokens[i], replacement_, " ");
    }
  }

 private:
  std::string replacement_;
  bool strips_;
};

class ByteFallback : public Decoder {
 public:
  void apply(std::vector<std::string>& tokens) const override {
    for (std::string& token : tokens) {
      if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') continue;
      int value = 0;
      for (const char c : {token[3], token[4]}) {
        const int lower = c | 0x20;
        const int digit = c >= '0' && c <= '9'           ? c - '0'
                          : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10
                                                         : -1000;
        value = value * 16 + digit;
      }
      if (value >= 0) token.assign(1, static_cast<char>(value));
    }
  }
};

class Fuse : public Decoder {
 public:
  void apply(std::vector<std::string>& tokens) const override {
    std::string all;
    for (const std::string& token : tokens) all += token;
    tokens.clear();
    tokens.push_back(std::move(all));
  }
};

class Replace : public Decoder {
 public:
  Replace(std::string from, std::shared_ptr<const Regex> regex, std::string to)
      : from_(std::move(from)), to_(std::move(to)), regex_(std::move(regex)) {}
  void apply(std::vector<std::string>& tokens) const override {
    const Growth growth(total_bytes(tokens));
    size_t made = 0;  // from the tokens before
    for (std::string& token : tokens) {
      if (!regex_) {
        replace_all(token, from_, to_);
        growth.check(made += token.size());
        continue;
      }
      if (!unicode::is_valid(token)) continue;  // a byte of a broken character matches nothing
      std::string out;
      size_t behind = 0, from = 0, start = 0, end = 0;
      while (from <= token.size() && regex_->find(token, from, start, end)) {
        out.append(token, behind, start - behind);
        out += to_;
        growth.check(made + out.size());
        behind = from = end;
        if (start == end) {
          if (from >= token.size()) break;
          unicode::next(token, from);
        }
      }
      out.append(token, behind);
      token = std::move(out);
      made += token.size();
    }
  }

 private:
  std::string from_, to_;
  std::shared_ptr<const Regex> regex_;
};

// Takes up to `start` characters off the front and `stop` off the end of every token.
class Strip : public Decoder {
 public:
  Strip(std::string content, int64_t start, int64_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  void apply(std::vector<std::string>& tokens) const override {
    for (std::string& token : tokens) {
      for (int64_t i = 0; i < start_ && token.starts_with(content_) && !token.empty(); ++i) {
        token.erase(0, content_.size());
      }
      for (int64_t i = 0; i < stop_ && token.ends_with(content_) && !token.empty(); ++i) {
        token.erase(token.size() - content_.size());
      }
    }
  }

 private:
  std::string content_;
  int64_t start_, stop_;
};

class WordPiece : public Decoder {
 public:
  WordPiece(std::string prefix, bool cleanup) : prefix_(std::move(prefix)), cleanup_(cleanup) {}
  void apply(std::vector<std::string>& tokens) const override {
    static constexpr std::pair<std::string_view, std::string_view> kTidy[] = {
        {" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
        {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
        {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    for (size_t i = 0; i < tokens.size(); ++i) {
      std::string& token = tokens[i];
      if (i > 0) {
        if (token.starts_with(prefix_)) {
          token.erase(0, prefix_.size());
        } else {
          token.insert(0, " ");
        }
      }
      if (!cleanup_) continue;
      for (const auto& [from, to] : kTidy) replace_all(token, from, to);
    }
  }

 private:
  std::string prefix_;
  bool cleanup_;
};

// Words end with a suffix, which becomes a blank except behind the last.
class WordSuffix : public Decoder {
 public:
  explicit WordSuffix(std::string suffix) : suffix_(std::move(suffix)) {}
  void apply(std::vector<std::string>& tokens) const override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      replace_all(tokens[i], suffix_, i + 1 == tokens.size() ? "" : " ");
    }
  }

 private:
  std::string suffix_;
};

std::shared_ptr<const Decoder> read(const Json& json, const std::string& where, int depth) {
  const std::string type = printable(get_string(json, "type", where), 60);
  const std::string here = where + " (" + type + ")";
  if (type == "Sequence") {
    if (depth >= kMaxDepth) throw Error("{}: nested too deeply", where);
    const Json& list = get_field(json, "decoders", here);
    if (!list.is_array()) throw Error("{}.decoders: expected a list", here);
    std::vector<std::shared_ptr<const Decoder>> stages;
    for (size_t i = 0; i < list.size(); ++i) {
      auto stage = read(list[i], fmt::format("{}[{}]", where, i), depth + 1);
      if (const auto* inner = dynamic_cast<const Sequence*>(stage.get())) {
        stages.insert(stages.end(), inner->stages().begin(), inner->stages().end());
      } else {
        stages.push_back(std::move(stage));
      }
    }
    return std::make_shared<Sequence>(std::move(stages));
  }
  if (type == "ByteLevel") return std::make_shared<ByteLevel>();
  if (type == "Metaspace") {
    const bool always = get_bool(json, "add_prefix_space", here, true);
    const std::string scheme =
        get_string(json, "prepend_scheme", here, always ? "always" : "never");
    return std::make_shared<Metaspace>(
        get_string(json, "replacement", here, std::string(kLowerOneEighthBlock)),
        scheme != "never");
  }
  if (type == "ByteFallback") return std::make_shared<ByteFallback>();
  if (type == "Fuse") return std::make_shared<Fuse>();
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
  if (type == "Strip") {
    const auto count = [&](const char* key) {
      const int64_t value = get_int(json, key, here);
      if (value < 0) throw Error("{}.{}: {} is not a count", here, key, value);
      return std::min<int64_t>(value, 1 << 20);
    };
    const std::string content = get_string(json, "content", here);
    if (content.empty()) throw Error("{}.content: empty", here);
    return std::make_shared<Strip>(content, count("start"), count("stop"));
  }
  if (type == "WordPiece") {
    return std::make_shared<WordPiece>(get_string(json, "prefix", here, "##"),
                                       get_bool(json, "cleanup", here, true));
  }
  if (type == "BPEDecoder") {
    return std::make_shared<WordSuffix>(get_string(json, "suffix", here, "</w>"));
  }
  throw Error("{}: the decoder \"{}\" is not known to Heed", where, type);
}

}  // namespace

std::shared_ptr<const Decoder> read_decoder(const Json& json, const std::string& where) {
  return read(json, where, 0);
}

std::shared_ptr<const Decoder> byte_level_decoder() { return std::make_shared<ByteLevel>(); }

}  // namespace heed::tok
