// Regular expressions of tokenizer files against Oniguruma (fixtures/patterns.json, made by
// make_pattern_fixtures.py), what is refused, and patterns that would never end.
#include "io/tokenizer/regex.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "io/error.h"
#include "io/tokenizer/regex_translate.h"
#include "io/tokenizer/unicode.h"

namespace {

using nlohmann::json;

const json& expected() {
  static const json value =
      json::parse(std::ifstream(std::string(HEED_SOURCE_DIR) + "/tests/io/fixtures/patterns.json"));
  return value;
}

// All matches that are not empty, as [start, end].
json matches(const heed::Regex& regex, const std::string& text) {
  json out = json::array();
  size_t from = 0, start = 0, end = 0;
  while (from <= text.size() && regex.find(text, from, start, end)) {
    if (end > start) out.push_back({start, end});
    from = end;
    if (start < end) continue;
    if (from >= text.size()) break;
    heed::unicode::next(text, from);
  }
  return out;
}

std::string refusal(const std::string& pattern) {
  try {
    const heed::Regex regex(pattern, "here");
    return "";
  } catch (const heed::Error& error) {
    return error.what();
  }
}

TEST(Regex, FindsWhatOnigurumaFinds) {
  ASSERT_GT(expected()["patterns"].size(), 500u);
  for (const json& entry : expected()["patterns"]) {
    const std::string pattern = entry["pattern"].get<std::string>();
    ASSERT_EQ(refusal(pattern), "");
    const heed::Regex regex(pattern, "here");
    for (size_t i = 0; i < expected()["strings"].size(); ++i) {
      const std::string text = expected()["strings"][i].get<std::string>();
      EXPECT_EQ(matches(regex, text), entry["matches"][i])
          << pattern << " in " << json(text).dump();
    }
  }
}

TEST(Regex, SetsHoldTheCharactersOfOniguruma) {
  const std::string sample = expected()["sample"].get<std::string>();
  for (const json& entry : expected()["sets"]) {
    const heed::Regex regex(entry["pattern"].get<std::string>(), "here");
    std::string members;
    for (size_t at = 0; at < sample.size();) {
      const size_t start = at;
      heed::unicode::next(sample, at);
      const std::string character = sample.substr(start, at - start);
      if (!matches(regex, character).empty()) members += character;
    }
    EXPECT_EQ(members, entry["members"].get<std::string>()) << entry["pattern"].dump();
  }
}

TEST(Regex, PatternsOfTokenizersStayAsTheyAre) {
  for (const char* same : {"\\p{L}+", "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+", "(?i:'s|'t)", "a{1,3}?",
                           "a++", "\\p{N}{1,3}", "(?<=a)b", "(?>a|b)", "[]a]", "^a$"}) {
    std::string wanted = same, translated = heed::translate_pattern(same, "t");
    for (const auto& [code, letter] :
         {std::pair{"\\x{d}", "\\r"}, {"\\x{a}", "\\n"}, {"\\x{27}", "'"}, {"\\x{5d}", "]"}}) {
      for (size_t at; (at = translated.find(code)) != std::string::npos;) {
        translated.replace(at, std::string(code).size(), letter);
      }
    }
    EXPECT_EQ(translated, wanted);
  }
}

TEST(Regex, WhatCannotBeTranslatedIsNamed) {
  const auto names = [](const std::string& pattern, const std::string& what) {
    const std::string got = refusal(pattern);
    EXPECT_TRUE(got.starts_with("here: ")) << got;
    EXPECT_NE(got.find(what), std::string::npos) << pattern << ": " << got;
  };
  names("(?~abc)", "absent");
  names("(?{x})", "callouts");
  names("(*FAIL)", "callouts");
  names("(a)(?(1)b|c)", "conditions");
  names("a\\yb", "\\y");
  names("\\M-a", "\\M-");
  names("\\k<a+1>", "level");
  names("\\p{InBasicLatin}", "InBasicLatin");
  names("\\p{Xwd}", "Xwd");
  names("\\p{Nonsense}", "Nonsense");
  names("[[:nonsense:]]", "nonsense");
  names("(?s:.)", "option \"s\"");
  names("(?L)a", "option \"L\"");
  names("(?y{w})a", "option \"y\"");
  names("[z-a]", "range");
  names("[]", "empty");
  names("[^]", "empty");
  names("[a", "not closed");
  names("[a[b]", "not closed");
  names("(a", "not closed");
  names("a)", "not opened");
  names("*a", "nothing to repeat");
  names("a|+", "nothing to repeat");
  names("a\\", "backslash");
  names("\\x{110000}", "out of range");
  names("\\xE4a", "UTF-8");
  names("\\u12", "four");
  names("a{70000}", "65535");
  names("(?#open", "not closed");
  names("\\g<missing>", "cannot be read");
  names(std::string(500, '('), "deeply");
  names(std::string(500, '['), "deeply");
}

TEST(Regex, NewUnicodeAndOld) {
  // U+180E is no blank in Unicode since version 6.3.
  EXPECT_TRUE(matches(heed::Regex("\\s", "t"), "\xE1\xA0\x8E").empty());
  EXPECT_EQ(matches(heed::Regex("\\s", "t"), "\xC2\x85").size(), 1u);
}

TEST(Regex, HostilePatternsEndWithAnError) {
  const heed::Regex regex("^(a|aa|aaa)+$", "here");
  size_t start, end;
  EXPECT_THROW(regex.find(std::string(5000, 'a') + '!', 0, start, end), heed::Error);
  // Quantifiers of quantifiers are one.
  EXPECT_EQ(matches(heed::Regex("a**+?b", "here"), std::string(5000, 'a') + "b").size(), 1u);
}

}  // namespace
