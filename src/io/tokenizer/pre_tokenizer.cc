// Pre-tokenizers: ByteLevel, Split, Metaspace, Whitespace, WhitespaceSplit, Digits, Punctuation,
// BertPreTokenizer, CharDelimiterSplit and Sequences of them. None keeps offsets into the original
// text: only whether a piece is the text's first, which Metaspace asks for.
#include <functional>

#include "io/describe.h"
#include "io/error.h"
#include "io/tokenizer/parts.h"
#include "io/tokenizer/regex.h"
#include "io/tokenizer/unicode.h"

namespace heed::tok {

namespace {

// `\w+|[^\w\s]+` of Rust's regex, whose words take in the two joiners.
constexpr std::string_view kRustWords = R"([\w\x{200c}\x{200d}]+|[^\w\x{200c}\x{200d}\s]+)";

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

Behavior read_behavior(const Json& json, const std::string& where, const std::string& fallback) {
  const std::string name = get_string(json, "behavior", where, fallback);
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  throw Error("{}.behavior: unknown behavior \"{}\"", where, printable(name));
}

// Stretches of a text, matches and what lies between, in order; then the behavior joins or drops.
struct Stretch {
  size_t start, end;
  bool match;
};

void join(std::vector<Stretch>& stretches, Behavior behavior) {
  std::vector<Stretch> out;
  bool previous = false;
  switch (behavior) {
    case Behavior::kIsolated:
      return;
    case Behavior::kRemoved:
      std::erase_if(stretches, [](const Stretch& s) { return s.match; });
      return;
    case Behavior::kContiguous:
      for (const Stretch& s : stretches) {
        if (!out.empty() && s.match == previous) {
          out.back().end = s.end;
        } else {
          out.push_back(s);
        }
        previous = s.match;
      }
      break;
    case Behavior::kMergedWithPrevious:
      for (const Stretch& s : stretches) {
        if (s.match && !previous && !out.empty()) {
          out.back().end = s.end;
        } else {
          out.push_back(s);
        }
        previous = s.match;
      }
      break;
    case Behavior::kMergedWithNext:
      for (size_t i = stretches.size(); i-- > 0;) {
        const Stretch& s = stretches[i];
        if (s.match && !previous && !out.empty()) {
          out.back().start = s.start;
        } else {
          out.push_back(s);
        }
        previous = s.match;
      }
      out = std::vector<Stretch>(out.rbegin(), out.rend());
      break;
  }
  stretches.swap(out);
}

// Splits every piece at what `find` reports; `find(text, from, start, end)` as Regex::find.
template <typename Find>
void split(Pieces& pieces, Behavior behavior, bool invert, Find&& find) {
  std::vector<Piece> out;
  out.reserve(pieces.list.size() * 2);
  std::vector<Stretch> stretches;
  for (const Piece& piece : pieces.list) {
    const std::string_view text = piece.text;
    stretches.clear();
    size_t behind = 0, from = 0, start = 0, end = 0;
    while (from <= text.size() && find(text, from, start, end)) {
      if (start > behind) stretches.push_back({behind, start, invert});
      stretches.push_back({start, end, !invert});
      behind = end;
      from = end;
      if (start == end) {  // an empty match: go on behind the next character
        if (from >= text.size()) break;
        unicode::next(text, from);
      }
    }
    if (behind < text.size()) stretches.push_back({behind, text.size(), invert});
    join(stretches, behavior);
    for (const Stretch& s : stretches) {
      if (s.end > s.start) {
        out.push_back({text.substr(s.start, s.end - s.start), piece.at_start && s.start == 0});
      }
    }
  }
  pieces.list.swap(out);
}

// The same for single characters that have a property; runs of them stay together where `runs`.
template <typename Property>
void split_characters(Pieces& pieces, Behavior behavior, Property&& property) {
  split(pieces, behavior, false,
        [&](std::string_view text, size_t from, size_t& start, size_t& end) {
          while (from < text.size()) {
            start = from;
            const char32_t c = unicode::next(text, from);
            if (property(c)) {
              end = from;
              return true;
            }
          }
          return false;
        });
}

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::shared_ptr<const PreTokenizer>> stages)
      : stages_(std::move(stages)) {}
  void apply(Pieces& pieces) const override {
    const Growth growth(pieces.bytes());
    size_t made = 0;  // by all stages: `pieces` keeps what each has made
    for (const auto& stage : stages_) {
      stage->apply(pieces);
      growth.check(made += pieces.bytes());
    }
  }
  const std::vector<std::shared_ptr<const PreTokenizer>>& stages() const { return stages_; }

 private:
  std::vector<std::shared_ptr<const PreTokenizer>> stages_;
};

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, bool use_regex, bool raw)
      : add_prefix_space_(add_prefix_space), raw_(raw) {
    if (use_regex) regex_ = std::make_shared<Regex>(kGpt2Pattern, "ByteLevel");
  }
  void apply(Pieces& pieces) const override {
    if (add_prefix_space_) {
      for (Piece& piece : pieces.list) {
        if (!piece.text.starts_with(' ')) piece.text = pieces.keep(' ' + std::string(piece.text));
      }
    }
    if (regex_) {
      split(pieces, Behavior::kIsolated, false,
            [&](std::string_view text, size_t from, size_t& start, size_t& end) {
              return regex_->find(text, from, start, end);
            });
    }
    if (!raw_) {
      for (Piece& piece : pieces.list) {
        piece.text = pieces.keep(unicode::bytes_to_symbols(piece.text));
      }
    }
  }

 private:
  bool add_prefix_space_, raw_;
  std::shared_ptr<const Regex> regex_;
};

class SplitAtRegex : public PreTokenizer {
 public:
  SplitAtRegex(Regex regex, Behavior behavior, bool invert)
      : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}
  void apply(Pieces& pieces) const override {
    split(pieces, behavior_, invert_,
          [&](std::string_view text, size_t from, size_t& start, size_t& end) {
            return regex_.find(text, from, start, end);
          });
  }

 private:
  Regex regex_;
  Behavior behavior_;
  bool invert_;
};

class SplitAtString : public PreTokenizer {
 public:
  SplitAtString(std::string pattern, Behavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  void apply(Pieces& pieces) const override {
    split(pieces, behavior_, invert_,
          [&](std::string_view text, size_t from, size_t& start, size_t& end) {
            if (pattern_.empty()) return false;
            start = text.find(pattern_, from);
            end = start + pattern_.size();
            return start != std::string_view::npos;
          });
  }

 private:
  std::string pattern_;
  Behavior behavior_;
  bool invert_;
};

class Metaspace : public PreTokenizer {
 public:
  enum class Prepend { kFirst, kNever, kAlways };
  Metaspace(std::string replacement, Prepend prepend, bool split)
      : replacement_(std::move(replacement)), prepend_(prepend), split_(split) {}
  void apply(Pieces& pieces) const override {
    const Growth growth(pieces.bytes());
    size_t made = 0;  // from the pieces before
    for (Piece& piece : pieces.list) {
      std::string text;
      text.reserve(piece.text.size() + piece.text.size() / 2);
      for (const char c : piece.text) {
        if (c == ' ') {
          text += replacement_;
          growth.check(made + text.size());
        } else {
          text += c;
        }
      }
      if ((prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && piece.at_start)) &&
          !text.starts_with(replacement_)) {
        text.insert(0, replacement_);
      }
      growth.check(made += text.size());
      piece.text = pieces.keep(std::move(text));
    }
    if (!split_) return;
    split(pieces, Behavior::kMergedWithNext, false,
          [&](std::string_view text, size_t from, size_t& start, size_t& end) {
            start = text.find(replacement_, from);
            end = start + replacement_.size();
            return start != std::string_view::npos;
          });
  }

 private:
  std::string replacement_;
  Prepend prepend_;
  bool split_;
};

class SplitAtCharacters : public PreTokenizer {
 public:
  using Property = bool (*)(char32_t);
  SplitAtCharacters(Property property, Behavior behavior)
      : property_(property), behavior_(behavior) {}
  void apply(Pieces& pieces) const override { split_characters(pieces, behavior_, property_); }

 private:
  Property property_;
  Behavior behavior_;
};

std::shared_ptr<const PreTokenizer> read(const Json& json, const std::string& where,
                                         bool* raw_bytes, int depth) {
  const std::string type = printable(get_string(json, "type", where), 60);
  const std::string here = where + " (" + type + ")";
  if (type == "Sequence") {
    if (depth >= kMaxDepth) throw Error("{}: nested too deeply", where);
    const Json& list = get_field(json, "pretokenizers", here);
    if (!list.is_array()) throw Error("{}.pretokenizers: expected a list", here);
    std::vector<std::shared_ptr<const PreTokenizer>> stages;
    for (size_t i = 0; i < list.size(); ++i) {
      auto stage = read(list[i], fmt::format("{}[{}]", where, i),
                        i + 1 == list.size() ? raw_bytes : nullptr, depth + 1);
      if (const auto* inner = dynamic_cast<const Sequence*>(stage.get())) {
        stages.insert(stages.end(), inner->stages().begin(), inner->stages().end());
      } else {
        stages.push_back(std::move(stage));
      }
    }
    return std::make_shared<Sequence>(std::move(stages));
  }
  if (type == "ByteLevel") {
    if (raw_bytes) *raw_bytes = true;
    return std::make_shared<ByteLevel>(get_bool(json, "add_prefix_space", here, true),
                                       get_bool(json, "use_regex", here, true),
                                       raw_bytes != nullptr);
  }
  if (type == "Split") {
    const Json& pattern = get_field(json, "pattern", here);
    const Behavior behavior = read_behavior(json, here, "Isolated");
    const bool invert = get_bool(json, "invert", here, false);
    if (pattern.is_object() && pattern.contains("Regex")) {
      return std::make_shared<SplitAtRegex>(
          Regex(get_string(pattern, "Regex", here + ".pattern"), here), behavior, invert);
    }
    return std::make_shared<SplitAtString>(get_string(pattern, "String", here + ".pattern"),
                                           behavior, invert);
  }
  if (type == "CharDelimiterSplit") {
    return std::make_shared<SplitAtString>(get_string(json, "delimiter", here), Behavior::kRemoved,
                                           false);
  }
  if (type == "Metaspace") {
    const bool always = get_bool(json, "add_prefix_space", here, true);
    const std::string scheme =
        get_string(json, "prepend_scheme", here, always ? "always" : "never");
    Metaspace::Prepend prepend = Metaspace::Prepend::kAlways;
    if (scheme == "first") {
      prepend = Metaspace::Prepend::kFirst;
    } else if (scheme == "never") {
      prepend = Metaspace::Prepend::kNever;
    } else if (scheme != "always") {
      throw Error("{}.prepend_scheme: unknown scheme \"{}\"", here, printable(scheme));
    }
    const std::string replacement =
        get_string(json, "replacement", here, std::string(kLowerOneEighthBlock));
    if (replacement.empty()) throw Error("{}.replacement: empty", here);
    return std::make_shared<Metaspace>(replacement, prepend, get_bool(json, "split", here, true));
  }
  if (type == "Whitespace") {
    return std::make_shared<SplitAtRegex>(Regex(kRustWords, here), Behavior::kRemoved, true);
  }
  if (type == "WhitespaceSplit") {
    return std::make_shared<SplitAtCharacters>(unicode::is_whitespace, Behavior::kRemoved);
  }
  if (type == "Digits") {
    const bool alone = get_bool(json, "individual_digits", here, false);
    return std::make_shared<SplitAtCharacters>(unicode::is_number,
                                               alone ? Behavior::kIsolated : Behavior::kContiguous);
  }
  if (type == "Punctuation") {
    return std::make_shared<SplitAtCharacters>(unicode::is_punctuation,
                                               read_behavior(json, here, "Isolated"));
  }
  if (type == "BertPreTokenizer") {
    return sequence_of(
        {std::make_shared<SplitAtCharacters>(unicode::is_whitespace, Behavior::kRemoved),
         std::make_shared<SplitAtCharacters>(unicode::is_punctuation, Behavior::kIsolated)});
  }
  throw Error("{}: the pre-tokenizer \"{}\" is not known to Heed", where, type);
}

}  // namespace

std::shared_ptr<const PreTokenizer> read_pre_tokenizer(const Json& json, const std::string& where,
                                                       bool* raw_bytes) {
  if (raw_bytes) *raw_bytes = false;
  return read(json, where, raw_bytes, 0);
}

std::shared_ptr<const PreTokenizer> sequence_of(
    std::vector<std::shared_ptr<const PreTokenizer>> stages) {
  return std::make_shared<Sequence>(std::move(stages));
}

std::shared_ptr<const PreTokenizer> single_digits() {
  return std::make_shared<SplitAtCharacters>(unicode::is_number, Behavior::kIsolated);
}

std::shared_ptr<const PreTokenizer> split_isolated(std::string_view pattern) {
  return std::make_shared<SplitAtRegex>(Regex(pattern, "splitting rule"), Behavior::kIsolated,
                                        false);
}

}  // namespace heed::tok
