// See tasks.h.
#include "data/tasks.h"

#include <algorithm>
#include <array>

#include "data/task_scene.h"
#include "data/task_words.h"
#include "io/error.h"

namespace heed::data {
namespace {

std::string replaced(std::string_view pattern, std::string_view name, std::string_view by) {
  std::string text(pattern);
  for (size_t at; (at = text.find(name)) != std::string::npos;) {
    text.replace(at, name.size(), by);
  }
  return text;
}

std::vector<const Sentence*> sentences_of(std::string_view kind) {
  std::vector<const Sentence*> found;
  for (const Sentence& sentence : task_sentences()) {
    if (sentence.kind == kind) found.push_back(&sentence);
  }
  return found;
}

// Sentences of the table, each asked for: single needles.
void make_sentences(Scene& scene) {
  const auto wordings = sentences_of(scene.kind());
  for (int64_t n = 0; n < scene.questions(); ++n) {
    const Sentence& sentence = *wordings[static_cast<size_t>(n) % wordings.size()];
    const std::string key = scene.fresh(sentence.key), answer = scene.fresh(sentence.answer);
    const size_t said = scene.say(replaced(sentence.statement, "{k}", key), answer);
    // Who remembers the answers, but not which is whose, hits one in so many.
    scene.ask(said, replaced(sentence.question, "{k}", key), answer,
              1.0 / static_cast<double>(scene.questions()));
  }
}

// Many needles of one wording, a few of them asked for.
void make_keys(Scene& scene) {
  constexpr int64_t kMost = 16;
  struct Guest {
    std::string head, room;
    size_t said;
  };
  std::vector<Guest> guests;
  for (int64_t used = 0; std::ssize(guests) < kMost;) {
    const std::string head =
        fmt::format("The guests are {}, in room", scene.fresh("{first} {last}"));
    const std::string room = scene.fresh(" ###");
    guests.push_back({head, room, scene.say(head + "{a}.", room)});
    used += std::ssize(scene.statements().back().tokens);
    if (2 * used > scene.room() && std::ssize(guests) >= scene.questions()) break;
  }
  const double chance = 1.0 / static_cast<double>(guests.size());
  guests.resize(std::min<size_t>(guests.size(), static_cast<size_t>(scene.questions())));
  for (const Guest& guest : guests) scene.ask(guest.said, guest.head, guest.room, chance);
}

// One key with three values in three places: the two that come first are given, the last is asked.
void make_values(Scene& scene) {
  constexpr int kValues = 3;
  const int64_t ships = std::clamp<int64_t>(scene.questions() / 2, 1, 16);  // names for 16
  for (int64_t n = 0; n < ships; ++n) {
    const std::string ship = scene.fresh("{ship}");
    const int series = scene.new_series();
    std::string listed = fmt::format("Ports of call of the {}:", ship), port;
    size_t said = 0;
    for (int v = 0; v < kValues; ++v) {
      port = scene.fresh(" {port}");
      said = scene.say(fmt::format("Port of call of the {}:{{a}}.", ship), port, series);
      if (v + 1 < kValues) listed += v == 0 ? port + "," : port + " and";
    }
    scene.ask(said, listed, port, 1.0 / static_cast<double>(kValues * ships));
  }
}

// Three needles in one question: each is asked for behind the answers to those before it.
void make_queries(Scene& scene) {
  constexpr int kAsked = 3;
  for (int64_t left = scene.questions(); left > 0; left -= kAsked) {
    std::vector<std::string> names, dates;
    std::vector<size_t> said;
    std::string text = "Birthdays of";
    for (int64_t q = 0; q < std::min<int64_t>(left, kAsked); ++q) {
      names.push_back(scene.fresh("{first} {last}"));
      dates.push_back(scene.fresh(" {month} 1#"));
      said.push_back(scene.say(fmt::format("Born was {} on{{a}}.", names.back()), dates.back()));
      text += (q == 0 ? " " : ", ") + names.back();
    }
    text += ".";
    for (size_t q = 0; q < names.size(); ++q) {
      text += fmt::format(" Born was {} on", names[q]);
      scene.ask(said[q], text, dates[q], 1.0 / static_cast<double>(scene.questions()));
      text += dates[q] + ".";
    }
  }
}

// A table of two columns, a few of its rows asked for.
struct Row {
  std::string key, value;
  int64_t at = 0;
};
void make_rows(Scene& scene, std::string_view head, std::string_view key, std::string_view value,
               std::string_view before, std::string_view after, size_t most) {
  const TextCodec& codec = scene.filler().codec();
  std::vector<int32_t> tokens = codec.encode("\n\n" + std::string(head));
  std::vector<Row> rows;
  do {
    Row row{scene.fresh(key), scene.fresh(value)};
    append(tokens, codec.encode(replaced(before, "{k}", row.key)));
    row.at = std::ssize(tokens);
    append(tokens, codec.encode(row.value));
    append(tokens, codec.encode(after));
    rows.push_back(std::move(row));
  } while (rows.size() < most && 2 * std::ssize(tokens) < scene.room());
  append(tokens, codec.encode("\n\n"));
  scene.random().shuffle(rows);
  const double chance = 1.0 / static_cast<double>(rows.size());
  rows.resize(std::min<size_t>(rows.size(), static_cast<size_t>(scene.questions())));
  const size_t said = scene.say(std::move(tokens), rows[0].at);
  for (const Row& row : rows) {
    scene.ask(said, replaced(before, "{k}", row.key).substr(1), row.value, chance).answer = row.at;
  }
}

void make_pairs(Scene& scene) {
  make_rows(scene, "Prices in crowns\n", "{material} {ware}", " ###", "\n- {k}", "", 24);
}

void make_lists(Scene& scene) {
  const auto most = static_cast<size_t>(scene.random().between(8, 64));
  if (scene.random().below(2) == 0) {
    make_rows(scene, "A list of keys and values:", "{shade} {tool}", " #####", "\n{k}:", "", most);
  } else {
    make_rows(scene, "[values]", "{planet}_{thing}", " \"{weight} {tool}\"", "\n{k} =", ",", most);
  }
}

// Chains of variables, each handed on to the next in a place of its own: a chain is given so far,
// its next variable asked for.
void make_variables(Scene& scene) {
  constexpr int kLength = 4, kHops = kLength - 2;  // the first hop has no chain behind it
  // There are names for five.
  const int64_t chains = std::min<int64_t>((scene.questions() + kHops - 1) / kHops, 5);
  const double chance = 1.0 / static_cast<double>(kLength * chains);
  for (int64_t n = 0; n < chains; ++n) {
    const int series = scene.new_series();
    std::string last = scene.fresh("{variable}"), chain = last;
    for (int hop = 0; hop <= kHops; ++hop) {
      const std::string next = scene.fresh("{variable}");
      const size_t said = scene.say(fmt::format("{} becomes{{a}}.", last), " " + next, series);
      if (hop > 0) scene.ask(said, chain + " ->", " " + next, chance);
      chain += " -> " + next;
      last = next;
    }
  }
}

// A passage of the text, named; its beginning is repeated, its continuation asked for.
void make_copies(Scene& scene) {
  constexpr int64_t kCue = 8, kAnswer = 24, kPassage = 48;
  const TextCodec& codec = scene.filler().codec();
  for (int64_t n = 0; n < scene.questions(); ++n) {
    const std::string head =
        fmt::format("\n\nFrom the diary of {}:\n", scene.fresh("{first} {last}"));
    const auto passage = scene.filler().text(kPassage, scene.random());
    const auto cue = std::span(passage).first(kCue);
    std::vector<int32_t> tokens = codec.encode(head);
    std::vector<int32_t> question = tokens;
    const int64_t at = std::ssize(tokens) + kCue;
    append(tokens, passage);
    append(tokens, codec.encode("\n\n"));
    append(question, cue);
    const auto answer = std::span(passage).subspan(kCue, kAnswer);
    scene.ask(scene.say(std::move(tokens), at), std::move(question),
              {answer.begin(), answer.end()});
  }
}

// A passage that comes again as it is, of many lengths: its beginning is the question.
void make_passages(Scene& scene) {
  constexpr int64_t kCue = 6;
  for (int64_t n = 0; n < scene.questions(); ++n) {
    const int64_t most = std::clamp<int64_t>(scene.room() / (2 * scene.questions()), kCue + 8, 240);
    const int64_t length = scene.random().between(kCue + 8, most);
    auto passage = scene.filler().text(length, scene.random());
    const std::vector<int32_t> cue(passage.begin(), passage.begin() + kCue);
    const std::vector<int32_t> answer(passage.begin() + kCue, passage.end());
    scene.ask(scene.say(std::move(passage), kCue), cue, answer);
  }
}

// The same said again and again with one word, and now and then, the last time too, with another:
// the word that is common is asked for, and who sees the end of the text alone does not know it.
void make_common_words(Scene& scene) {
  constexpr int kOften = 10, kOthers = 5;
  const int64_t eaters = std::clamp<int64_t>(scene.questions() / 2, 1, 6);
  for (int64_t n = 0; n < eaters; ++n) {
    const std::string who = scene.fresh("{first}"), often = scene.fresh(" {food}");
    std::vector<std::string> words(kOften, often);
    for (int k = 0; k < kOthers; ++k) words.push_back(scene.fresh(" {food}"));
    const std::string last = words.back();
    words.pop_back();
    scene.random().shuffle(words);
    words.push_back(last);
    const int series = scene.new_series();
    size_t said = 0;
    for (const std::string& word : words) {
      const size_t place = scene.say(fmt::format("{} ate{{a}}.", who), word, series);
      if (word == often) said = place;
    }
    scene.ask(said, fmt::format("Most of the time {} ate", who), often, 1.0 / (kOthers + 1));
  }
}

constexpr Split kEval = Split::kEvaluation, kCalibrate = Split::kCalibration;
constexpr TaskKind kKinds[] = {
    {"digits", kEval, "needles", "a planted sentence with a number", make_sentences},
    {"words", kEval, "needles", "a planted sentence with a word", make_sentences},
    {"phrases", kEval, "needles", "a planted sentence with four words", make_sentences},
    {"hex", kEval, "needles", "a planted sentence with hexadecimal digits", make_sentences},
    {"code", kEval, "needles", "a planted line of a program", make_sentences},
    {"keys", kEval, "keys", "one of many sentences of one wording", make_keys},
    {"values", kEval, "several", "the last of three values of one key", make_values},
    {"queries", kEval, "several", "three sentences in one question", make_queries},
    {"pairs", kEval, "pairs", "a row of a table of keys and values", make_pairs},
    {"variables", kEval, "variables", "a chain of variables, each handed on to the next",
     make_variables},
    {"copies", kEval, "copies", "a passage continued from its beginning", make_copies},
    {"common_words", kEval, "words", "the word that is said most often", make_common_words},
    {"planted_digits", kCalibrate, "planted", "sentences with numbers", make_sentences},
    {"planted_words", kCalibrate, "planted", "sentences with one or two words", make_sentences},
    {"planted_names", kCalibrate, "planted", "sentences with names of people", make_sentences},
    {"planted_phrases", kCalibrate, "planted", "sentences with phrases", make_sentences},
    {"planted_hex", kCalibrate, "planted", "sentences with hexadecimal digits", make_sentences},
    {"planted_code", kCalibrate, "planted", "lines of programs", make_sentences},
    {"passages", kCalibrate, "passages", "passages of 14 to 240 tokens that come again",
     make_passages},
    {"lists", kCalibrate, "lists", "lists of keys and values", make_lists},
};

// Depths for statements, evenly spread and jittered: in random order, but for a series, which keeps
// its own. Gives the statements' numbers by depth.
std::vector<size_t> arranged(const std::vector<Scene::Statement>& statements, Random& random) {
  std::vector<size_t> order(statements.size());
  for (size_t n = 0; n < order.size(); ++n) order[n] = n;
  random.shuffle(order);
  for (size_t slot = 0; slot < order.size(); ++slot) {
    const int series = statements[order[slot]].series;
    if (series < 0) continue;
    for (size_t later = slot + 1; later < order.size(); ++later) {
      if (statements[order[later]].series == series && order[later] < order[slot]) {
        std::swap(order[slot], order[later]);
      }
    }
  }
  return order;
}

// The statements planted in filler; together with the longest question `length` tokens.
std::optional<NeedleDocument> planted(const Scene& scene, const Filler& filler,
                                      std::span<const int32_t> front, int64_t length,
                                      Random& random) {
  int64_t room = length - std::ssize(front), longest = 0;
  for (const auto& statement : scene.statements()) room -= std::ssize(statement.tokens);
  for (const auto& [at, needle, answer] : scene.asked()) {
    longest = std::max(longest, std::ssize(needle.question) + std::ssize(needle.answer));
  }
  room -= longest;
  if (room < (length - longest) / 2) return std::nullopt;
  const auto order = arranged(scene.statements(), random);
  std::vector<std::vector<int32_t>> pieces;
  std::vector<double> depths;
  for (size_t n = 0; n < order.size(); ++n) {
    pieces.push_back(scene.statements()[order[n]].tokens);
    depths.push_back((static_cast<double>(n) + random.uniform()) /
                     static_cast<double>(order.size()));
  }
  std::vector<int64_t> begins;
  NeedleDocument document;
  document.tokens.assign(front.begin(), front.end());
  append(document.tokens, filler.plant(filler.text(room, random), pieces, depths, &begins));
  std::vector<int64_t> place(order.size());
  for (size_t n = 0; n < order.size(); ++n) place[order[n]] = begins[n] + std::ssize(front);
  for (const auto& [at, needle, answer] : scene.asked()) {
    const auto& statement = scene.statements()[at];
    NeedleDocument::Needle placed = needle;
    placed.begin = place[at];
    placed.end = placed.begin + std::ssize(statement.tokens);
    placed.code = placed.begin + answer;
    placed.depth = static_cast<double>(placed.begin) / static_cast<double>(document.tokens.size());
    document.needles.push_back(std::move(placed));
  }
  return document;
}

}  // namespace

std::span<const TaskKind> task_kinds(Split split) {
  const std::span<const TaskKind> all(kKinds);
  const auto middle = static_cast<size_t>(
      std::find_if(all.begin(), all.end(), [](const auto& k) { return k.split == kCalibrate; }) -
      all.begin());
  return split == kEval ? all.first(middle) : all.subspan(middle);
}

const TaskKind& find_task(std::string_view name) {
  std::string names;
  for (const TaskKind& kind : kKinds) {
    if (kind.name == name) return kind;
    names += (names.empty() ? "" : ", ") + std::string(kind.name);
  }
  throw UsageError("{}: there is no such kind of task; there are {}", name, names);
}

TaskGenerator::TaskGenerator(Corpus filler, const TextCodec& codec, std::vector<int32_t> front)
    : filler_(std::move(filler), codec), front_(std::move(front)) {}

std::optional<NeedleDocument> TaskGenerator::document(std::span<const TaskKind* const> kinds,
                                                      int64_t length, int64_t questions,
                                                      Random& random) const {
  const int64_t share = length / 2 / std::max<int64_t>(1, std::ssize(kinds));
  for (; questions > 0; --questions) {
    Scene scene(filler_, random, share, questions);
    for (const TaskKind* kind : kinds) {
      scene.begin_kind(kind->name);
      kind->make(scene);
    }
    auto document = planted(scene, filler_, front_, length, random);
    if (document) return document;
  }
  return std::nullopt;
}

}  // namespace heed::data
