#include "data/recall.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <set>

#include "io/error.h"

namespace heed::data {
namespace {

constexpr const char* kAdjectives[] = {
    "silver", "golden",  "hidden", "ancient",   "broken",  "quiet",   "crimson",  "distant",
    "frozen", "gentle",  "hollow", "iron",      "jolly",   "lonely",  "marble",   "narrow",
    "orange", "painted", "purple", "rapid",     "rusty",   "sacred",  "secret",   "stormy",
    "sunny",  "velvet",  "violet", "wandering", "wooden",  "yellow",  "black",    "white",
    "green",  "little",  "great",  "royal",     "eastern", "western", "northern", "southern"};
constexpr const char* kNouns[] = {
    "harbour", "garden",  "castle", "river",  "mountain", "bridge",  "forest",  "lantern", "mirror",
    "violin",  "market",  "temple", "valley", "window",   "anchor",  "basket",  "candle",  "desert",
    "engine",  "falcon",  "hammer", "island", "jacket",   "kettle",  "ladder",  "meadow",  "needle",
    "orchard", "palace",  "quarry", "rocket", "saddle",   "tavern",  "village", "wagon",   "tower",
    "gate",    "mill",    "ship",   "clock",  "book",     "stone",   "horse",   "road",    "house",
    "king",    "captain", "doctor", "farmer", "sailor",   "painter", "baker",   "hunter",  "letter",
    "box",     "door",    "key",    "lake",   "wood",     "field"};

// Names that a book hardly uses: for wordings that name a thing by one word, which must not be
// found anywhere else in the text.
constexpr const char* kRareNouns[] = {
    "amber",   "basil",  "cedar",   "delta",  "ember",   "fjord",   "grove",  "heron",
    "ivory",   "jasper", "kelp",    "lotus",  "maple",   "nectar",  "onyx",   "pearl",
    "quartz",  "raven",  "sable",   "topaz",  "umber",   "velvet",  "willow", "yarrow",
    "zephyr",  "acorn",  "birch",   "cobalt", "dune",    "elm",     "fern",   "garnet",
    "hazel",   "iris",   "juniper", "kite",   "larch",   "moss",    "nickel", "opal",
    "plum",    "quince", "reed",    "slate",  "thistle", "urchin",  "walnut", "agate",
    "bramble", "clover", "dahlia",  "falcon", "ginger",  "hemlock", "indigo", "jade",
    "lilac",   "magnet", "nutmeg",  "otter",  "pebble",  "saffron", "tulip",  "vanilla"};

// {name} is the thing, {code} its five digits. The first wording names nothing, so that only one
// such code fits in a text. The last two are no questions in a sentence: SmolLM2-135M answers them
// best (8 needles in 4096 tokens: recall 0.88 and 0.9, against 0.2 to 0.66 for the others).
struct Wording {
  const char* statement;
  const char* question;   // ends where the code follows
  bool one_word = false;  // things are named by one of kRareNouns, as far as these reach
};
constexpr Wording kTexts[] = {
    {"The pass key is{code}. Remember it.{code} is the pass key.",
     "\n\nWhat is the pass key? The pass key is"},
    {"The secret code of the {name} is{code}. Remember it.",
     "\n\nWhat is the secret code of the {name}? The secret code of the {name} is"},
    {"One of the special magic numbers for the {name} is:{code}.",
     "\n\nWhat is the special magic number for the {name} mentioned in the text? The special magic "
     "number for the {name} mentioned in the text is:"},
    {"The number of the {name} is{code}.", "\n\nThe number of the {name} is"},
    {"Note: the {name} has the code{code}; do not forget it.",
     "\n\nQuestion: Which code has the {name}?\nAnswer: the {name} has the code"},
    {"The {name} was given the number{code}.",
     "\n\nWhich number was given to the {name}? The {name} was given the number"},
    {"Remember: {name} ={code}.", "\n\nRemember: {name} ="},
    {"{name}{code}. Remember: {name}{code}.", "\n\nRemember: {name}", true},
};
// Training draws from kTrained up to, not including, kUntrained.
constexpr int kUnnamed = 0, kTrained = 1, kUntrained = 6;

constexpr const char* kPairQuestions[] = {
    "\n\nWhat is the value of {name}? The value of {name} is",
    "\n{name}:",
    "\n\nQuestion: {name}?\nAnswer:",
};

// The filler of the first passkey tests: one sentence after another, always the same.
constexpr const char* kPlainFiller =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";

std::string fill_in(std::string_view pattern, std::string_view name) {
  std::string text(pattern);
  for (size_t at; (at = text.find("{name}")) != std::string::npos;) text.replace(at, 6, name);
  return text;
}

std::string five_digits(Random& random) { return fmt::format("{}", random.between(10000, 99999)); }

double log_uniform(double low, double high, Random& random) {
  return low * std::pow(std::max(high, low) / low, random.uniform());
}

[[noreturn]] void too_short(RecallKind kind, int64_t length) {
  throw UsageError("{} tokens are too few for this {} text; ask for more tokens or fewer items",
                   length, kRecallKinds[static_cast<size_t>(kind)]);
}

}  // namespace

std::vector<int32_t> RecallGenerator::filler(int64_t count, bool plain, Random& random) const {
  if (!plain) return text(count, random);
  const auto line = codec().encode(kPlainFiller);
  std::vector<int32_t> tokens;
  while (std::ssize(tokens) < count) append(tokens, line);
  tokens.resize(static_cast<size_t>(count));
  return tokens;
}

RecallGenerator::RecallGenerator(Corpus filler, const TextCodec& codec)
    : filler_(std::move(filler), codec) {}

std::string RecallGenerator::statement_of(int wording) { return kTexts[wording].statement; }

std::vector<RecallGenerator::Spec> RecallGenerator::make_specs(int64_t count, int wording,
                                                               Random& random) const {
  // More things than there are rare nouns get adjectives too.
  const bool one_word = kTexts[wording].one_word && count <= std::ssize(kRareNouns);
  const auto names = static_cast<int64_t>(one_word ? std::size(kRareNouns)
                                                   : std::size(kNouns) * std::size(kAdjectives));
  if (count > names) throw UsageError("at most {} codes fit in one text, not {}", names, count);
  std::set<int64_t> taken;
  std::vector<Spec> specs(static_cast<size_t>(count));
  for (Spec& spec : specs) {
    if (wording != kUnnamed) {
      int64_t which;
      do {
        which = static_cast<int64_t>(random.below(names));
      } while (!taken.insert(which).second);
      spec.name = one_word ? kRareNouns[which]
                           : fmt::format("{} {}", kAdjectives[which / std::ssize(kNouns)],
                                         kNouns[which % std::ssize(kNouns)]);
    }
    spec.value = five_digits(random);
    spec.answer = codec().encode(" " + spec.value);
    spec.question = codec().encode(fill_in(kTexts[wording].question, spec.name));
    // Words and code are tokenised apart, so that the code has the same tokens everywhere.
    const std::string statement = "\n\n" + fill_in(kTexts[wording].statement, spec.name) + "\n\n";
    std::string_view rest = statement;
    spec.code = -1;
    for (size_t at; (at = rest.find("{code}")) != std::string_view::npos;) {
      append(spec.statement, codec().encode(rest.substr(0, at)));
      if (spec.code < 0) spec.code = static_cast<int64_t>(spec.statement.size());
      append(spec.statement, spec.answer);
      rest.remove_prefix(at + 6);
    }
    append(spec.statement, codec().encode(rest));
  }
  return specs;
}

bool RecallGenerator::place(int64_t length, std::span<const Spec> specs,
                            std::span<const double> depths, bool plain_filler, Random& random,
                            NeedleDocument* out) const {
  int64_t room = length;
  for (const Spec& spec : specs) room -= static_cast<int64_t>(spec.statement.size());
  if (room < 0) return false;
  std::vector<std::vector<int32_t>> statements;
  for (const Spec& spec : specs) statements.push_back(spec.statement);
  NeedleDocument document;
  std::vector<int64_t> begins;
  document.tokens = filler_.plant(filler(room, plain_filler, random), statements, depths, &begins);
  for (size_t n = 0; n < specs.size(); ++n) {
    const Spec& spec = specs[n];
    NeedleDocument::Needle needle;
    needle.begin = begins[n];
    needle.end = needle.begin + static_cast<int64_t>(spec.statement.size());
    needle.code = needle.begin + spec.code;
    needle.depth = length > 0 ? static_cast<double>(needle.begin) / static_cast<double>(length) : 0;
    needle.name = spec.name;
    needle.value = spec.value;
    needle.question = spec.question;
    needle.answer = spec.answer;
    document.needles.push_back(std::move(needle));
  }
  *out = std::move(document);
  return true;
}

NeedleDocument RecallGenerator::needles(int64_t length, int64_t count, Random& random,
                                        int64_t context) const {
  const auto specs = make_specs(count, wording_, random);
  if (context > 0) {
    for (const auto& spec : specs) {
      const auto asked = static_cast<int64_t>(spec.question.size() + spec.answer.size());
      length = std::min(length, context - asked);
    }
  }
  std::vector<double> depths(static_cast<size_t>(count));
  for (size_t n = 0; n < depths.size(); ++n) {
    depths[n] = (static_cast<double>(n) + random.uniform()) / static_cast<double>(count);
  }
  NeedleDocument document;
  if (!place(length, specs, depths, false, random, &document)) {
    too_short(RecallKind::kPasskey, length);
  }
  return document;
}

NeedleDocument RecallGenerator::needle(int64_t length, double depth, Random& random) const {
  const auto specs = make_specs(1, kUnnamed, random);
  NeedleDocument document;
  if (!place(length, specs, std::array{depth}, false, random, &document)) {
    too_short(RecallKind::kPasskey, length);
  }
  return document;
}

bool RecallGenerator::try_passkeys(int64_t length, std::span<const double> depths, int64_t asked,
                                   int wording, bool plain_filler, Random& random,
                                   RecallSample* out) const {
  const auto specs = make_specs(static_cast<int64_t>(depths.size()), wording, random);
  std::vector<size_t> order(specs.size());
  for (size_t n = 0; n < order.size(); ++n) order[n] = n;
  random.shuffle(order);
  order.resize(static_cast<size_t>(std::min<int64_t>(asked, std::ssize(order))));
  int64_t room = length;
  for (const size_t n : order) {
    room -= static_cast<int64_t>(specs[n].question.size() + specs[n].answer.size());
  }
  NeedleDocument document;
  if (room <= 0 || !place(room, specs, depths, plain_filler, random, &document)) return false;
  RecallSample sample;
  sample.kind = RecallKind::kPasskey;
  sample.tokens = std::move(document.tokens);
  for (const size_t n : order) {
    append(sample.tokens, specs[n].question);
    const auto begin = static_cast<int64_t>(sample.tokens.size());
    append(sample.tokens, specs[n].answer);
    sample.answers.push_back(
        {begin, static_cast<int64_t>(sample.tokens.size()), document.needles[n].code});
  }
  *out = std::move(sample);
  return true;
}

RecallSample RecallGenerator::passkey(int64_t length, double depth, Random& random) const {
  RecallSample sample;
  if (!try_passkeys(length, std::array{depth}, 1, kUnnamed, false, random, &sample)) {
    too_short(RecallKind::kPasskey, length);
  }
  return sample;
}

RecallSample RecallGenerator::passkeys(int64_t length, int64_t count, int64_t asked,
                                       Random& random) const {
  std::vector<double> depths(static_cast<size_t>(count));
  for (double& depth : depths) depth = random.uniform();
  std::sort(depths.begin(), depths.end());
  RecallSample sample;
  if (!try_passkeys(length, depths, asked, kTrained, false, random, &sample)) {
    too_short(RecallKind::kPasskey, length);
  }
  return sample;
}

bool RecallGenerator::try_key_value(int64_t length, int64_t pairs, int64_t asked, int wording,
                                    Random& random, RecallSample* out) const {
  struct Pair {
    std::string key;
    std::vector<int32_t> value;
    int64_t source = 0;
  };
  const bool named = random.below(2) == 0;  // keys of two words, else of five random letters
  std::set<std::string> taken;
  std::vector<Pair> list(static_cast<size_t>(pairs));
  for (Pair& pair : list) {
    do {
      if (named) {
        pair.key = fmt::format("{} {}", random.pick(std::span<const char* const>(kAdjectives)),
                               random.pick(std::span<const char* const>(kNouns)));
      } else {
        pair.key.clear();
        for (int n = 0; n < 5; ++n) {
          pair.key.push_back(static_cast<char>('a' + random.below(26)));
        }
      }
    } while (!taken.insert(pair.key).second);
    pair.value = codec().encode(" " + five_digits(random));
  }
  std::vector<int32_t> lines = codec().encode("\n\nA list of keys and values:");
  for (Pair& pair : list) {
    append(lines, codec().encode("\n" + pair.key + ":"));
    pair.source = static_cast<int64_t>(lines.size());
    append(lines, pair.value);
  }
  append(lines, codec().encode("\n\n"));
  std::vector<size_t> order(list.size());
  for (size_t n = 0; n < order.size(); ++n) order[n] = n;
  random.shuffle(order);
  order.resize(static_cast<size_t>(std::min<int64_t>(asked, std::ssize(order))));
  std::vector<int32_t> questions;
  std::vector<std::pair<size_t, size_t>> spans;  // of the answers, within `questions`
  for (const size_t n : order) {
    append(questions, codec().encode(fill_in(kPairQuestions[wording], list[n].key)));
    const size_t begin = questions.size();
    append(questions, list[n].value);
    spans.emplace_back(begin, questions.size());
  }
  const int64_t room = length - std::ssize(lines) - std::ssize(questions);
  if (room < 0) return false;
  const auto before = static_cast<int64_t>(random.below(static_cast<uint64_t>(room) + 1));
  RecallSample sample;
  sample.kind = RecallKind::kKeyValue;
  sample.tokens = text(before, random);
  append(sample.tokens, lines);
  append(sample.tokens, text(room - before, random));
  const auto base = static_cast<int64_t>(sample.tokens.size());
  append(sample.tokens, questions);
  for (size_t n = 0; n < order.size(); ++n) {
    sample.answers.push_back({base + static_cast<int64_t>(spans[n].first),
                              base + static_cast<int64_t>(spans[n].second),
                              before + list[order[n]].source});
  }
  *out = std::move(sample);
  return true;
}

RecallSample RecallGenerator::key_value(int64_t length, int64_t pairs, int64_t asked,
                                        Random& random) const {
  RecallSample sample;
  if (!try_key_value(length, pairs, asked, 0, random, &sample)) {
    too_short(RecallKind::kKeyValue, length);
  }
  return sample;
}

RecallSample RecallGenerator::repeated_passage(int64_t length, int64_t passage, bool random_tokens,
                                               Random& random) const {
  constexpr int64_t kCue = 8;
  const int64_t room = length - 2 * passage;
  if (passage <= kCue || room < 0) too_short(RecallKind::kRepeatedPassage, length);
  std::vector<int32_t> repeated;
  if (random_tokens) {
    for (int64_t n = 0; n < passage; ++n) {
      repeated.push_back(random.pick(std::span<const int32_t>(filler_.words())));
    }
  } else {
    repeated = text(passage, random);
  }
  const auto before = static_cast<int64_t>(random.below(static_cast<uint64_t>(room) + 1));
  RecallSample sample;
  sample.kind = RecallKind::kRepeatedPassage;
  sample.tokens = text(before, random);
  append(sample.tokens, repeated);
  append(sample.tokens, text(room - before, random));
  append(sample.tokens, repeated);
  sample.answers.push_back({length - passage + kCue, length, before + kCue});
  return sample;
}

RecallSample RecallGenerator::associative(int64_t length, int64_t pairs, int64_t asked,
                                          Random& random) const {
  asked = std::min(asked, pairs);
  const int64_t room = length - 2 * (pairs + asked);
  if (room < 0 || pairs < 1) too_short(RecallKind::kAssociative, length);
  if (static_cast<size_t>(pairs) > filler_.words().size()) {
    throw UsageError("the tokenizer has {} words, fewer than {} keys", filler_.words().size(),
                     pairs);
  }
  std::vector<int32_t> keys = filler_.words();
  random.shuffle(keys);
  RecallSample sample;
  sample.kind = RecallKind::kAssociative;
  std::vector<int32_t> values;
  for (int64_t n = 0; n < pairs; ++n) {
    values.push_back(random.pick(std::span<const int32_t>(filler_.words())));
    sample.tokens.push_back(keys[static_cast<size_t>(n)]);
    sample.tokens.push_back(values.back());
  }
  append(sample.tokens, text(room, random));
  std::vector<int64_t> order(static_cast<size_t>(pairs));
  for (int64_t n = 0; n < pairs; ++n) order[static_cast<size_t>(n)] = n;
  random.shuffle(order);
  for (int64_t n = 0; n < asked; ++n) {
    const int64_t which = order[static_cast<size_t>(n)];
    sample.tokens.push_back(keys[static_cast<size_t>(which)]);
    const auto at = static_cast<int64_t>(sample.tokens.size());
    sample.tokens.push_back(values[static_cast<size_t>(which)]);
    sample.answers.push_back({at, at + 1, 2 * which + 1});
  }
  return sample;
}

RecallSample RecallGenerator::sample(int64_t length, std::span<const double> shares,
                                     Random& random) const {
  if (length < kMinLength) too_short(RecallKind::kPasskey, length);
  double total = 0;
  for (const double share : shares) total += share;
  double at = random.uniform() * total;
  size_t kind = 0;
  while (kind + 1 < shares.size() && at >= shares[kind]) at -= shares[kind++];
  RecallSample sample;
  switch (static_cast<RecallKind>(kind)) {
    case RecallKind::kPasskey: {
      const bool plain = random.below(8) == 0;
      const bool single = random.below(2) == 0;
      const int wording =
          single ? kUnnamed : static_cast<int>(random.between(kTrained, kUntrained - 1));
      const int64_t most = std::clamp<int64_t>(length / kMinLength, 1, 8);
      std::vector<double> depths(static_cast<size_t>(single ? 1 : random.between(1, most)));
      for (double& depth : depths) depth = random.uniform();
      std::sort(depths.begin(), depths.end());
      const int64_t asked = random.between(1, std::ssize(depths));
      if (try_passkeys(length, depths, asked, wording, plain, random, &sample)) return sample;
      break;
    }
    case RecallKind::kKeyValue: {
      const double most = std::max(2.0, static_cast<double>(length) / 24);
      const auto pairs = static_cast<int64_t>(log_uniform(2, most, random));
      const int64_t asked = random.between(1, std::min<int64_t>(pairs, 8));
      const auto wording = static_cast<int>(random.below(std::size(kPairQuestions)));
      if (try_key_value(length, pairs, asked, wording, random, &sample)) return sample;
      break;
    }
    case RecallKind::kAssociative: {
      const double most = std::min(static_cast<double>(filler_.words().size()),
                                   std::max(4.0, static_cast<double>(length) / 6));
      const auto pairs = static_cast<int64_t>(log_uniform(2, most, random));
      return associative(length, pairs, random.between(1, pairs), random);
    }
    case RecallKind::kRepeatedPassage:
      break;
  }
  // Also what a text too short for the others becomes.
  const double most = 0.45 * static_cast<double>(length);
  const auto passage = static_cast<int64_t>(log_uniform(std::min(24.0, most), most, random));
  return repeated_passage(length, passage, random.below(4) == 0, random);
}

}  // namespace heed::data
