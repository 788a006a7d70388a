// Tokenizers against Hugging Face `tokenizers` and SentencePiece (fixtures/tokenizers, made by
// make_tokenizer_fixtures.py), GGUF's own rules, the trainer, streaming, and files that are broken.
#include "io/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "io/error.h"
#include "io/tokenizer/bpe_trainer.h"
#include "io/tokenizer/gguf_rules.h"
#include "io/tokenizer/open.h"
#include "io/tokenizer/unicode.h"
#include "temp_folder.h"

namespace {

using heed::Tokenizer;
using nlohmann::json;
using Ids = std::vector<int32_t>;

const std::string kFolder = std::string(HEED_SOURCE_DIR) + "/tests/io/fixtures/tokenizers/";

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

const json& expected() {
  static const json value = json::parse(read_text(kFolder + "expected.json"));
  return value;
}

// The vocabulary of GPT-2's byte alphabet with a few merges; the byte 0xFF has no token.
heed::GgufVocab small_gguf(const std::string& pre) {
  heed::GgufVocab vocab;
  vocab.model = "gpt2";
  vocab.pre = pre;
  vocab.tokens = {"<|im_start|>", "<|im_end|>"};
  vocab.types = {3, 3};
  for (int b = 0; b < 255; ++b) {
    vocab.tokens.push_back(heed::unicode::byte_to_symbol(static_cast<unsigned char>(b)));
  }
  for (const char* token : {"12", "ab", "Ġa", "Ġab"}) vocab.tokens.push_back(token);
  vocab.types.resize(vocab.tokens.size(), 1);
  vocab.merges = {"1 2", "a b", "Ġ ab", "Ġ a"};
  return vocab;
}

std::vector<std::string> spelled(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::string> out;
  for (const int32_t id : tokenizer.encode(text)) out.push_back(tokenizer.id_to_token(id));
  return out;
}

TEST(Tokenizer, SameIdsAndTextsAsTheLibrariesThatMadeTheFiles) {
  for (const auto& [file, wanted] : expected()["tokenizers"].items()) {
    const Tokenizer tokenizer = heed::open_tokenizer(kFolder + file);
    const json& strings = wanted.contains("strings") ? wanted["strings"] : expected()["strings"];
    std::vector<Ids> lists;
    int wrong = 0;
    for (size_t i = 0; i < strings.size(); ++i) {
      const Ids want = wanted["ids"][i].get<Ids>();
      lists.push_back(want);
      const Ids got = tokenizer.encode(strings[i].get<std::string>());
      if (got != want && ++wrong <= 3) {
        EXPECT_EQ(got, want) << file << ": " << strings[i].dump();
      }
    }
    EXPECT_EQ(wrong, 0) << file;
    for (const json& ids : wanted["decode"]) lists.push_back(ids.get<Ids>());
    wrong = 0;
    for (size_t i = 0; i < lists.size(); ++i) {
      const std::string want = wanted["texts"][i].get<std::string>();
      const std::string got = tokenizer.decode(lists[i]);
      if (got != want && ++wrong <= 3) {
        EXPECT_EQ(got, want) << file << ": " << json(lists[i]).dump();
      }
    }
    EXPECT_EQ(wrong, 0) << file;
  }
}

TEST(Tokenizer, StreamedTextIsTheDecodedText) {
  for (const auto& [file, wanted] : expected()["tokenizers"].items()) {
    const Tokenizer tokenizer = heed::open_tokenizer(kFolder + file);
    for (const char* key : {"ids", "decode"}) {
      for (size_t i = 0; i < wanted[key].size(); i += 7) {
        const Ids ids = wanted[key][i].get<Ids>();
        heed::StreamDecoder stream(tokenizer, false);
        std::string text;
        for (const int32_t id : ids) {
          const std::string part = stream.push(id);
          EXPECT_TRUE(heed::unicode::is_valid(part)) << file;
          text += part;
        }
        text += stream.finish();
        EXPECT_EQ(text, tokenizer.decode(ids)) << file;
      }
    }
  }
}

TEST(Tokenizer, StreamHoldsBackHalfACharacter) {
  const Tokenizer tokenizer = Tokenizer::from_gguf_vocab(small_gguf("smollm"), "small");
  const Ids ids = tokenizer.encode("é😀!");
  ASSERT_EQ(ids.size(), 7u);
  heed::StreamDecoder stream(tokenizer);
  std::vector<std::string> parts;
  for (const int32_t id : ids) parts.push_back(stream.push(id));
  EXPECT_EQ(parts, (std::vector<std::string>{"", "é", "", "", "", "😀", "!"}));
  EXPECT_EQ(stream.push(ids[2]), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
}

TEST(Tokenizer, SmollmRule) {
  const Tokenizer tokenizer = Tokenizer::from_gguf_vocab(small_gguf("smollm"), "small");
  using List = std::vector<std::string>;
  // Digits stand alone, and the end of a stretch before one counts as the end of the text: all
  // blanks before a digit are one piece.
  EXPECT_EQ(spelled(tokenizer, "12 ab"), (List{"1", "2", "Ġab"}));
  EXPECT_EQ(spelled(tokenizer, "ab  1"), (List{"ab", "Ġ", "Ġ", "1"}));
  EXPECT_EQ(spelled(tokenizer, "<|im_start|>ab<|im_end|>"),
            (List{"<|im_start|>", "ab", "<|im_end|>"}));
  EXPECT_EQ(tokenizer.encode("<|im_end|>", false).size(), 10u);
  EXPECT_EQ(tokenizer.decode(Ids{0, 1}), "<|im_start|><|im_end|>");
  EXPECT_EQ(tokenizer.decode(Ids{0, 1}, true), "");
  EXPECT_TRUE(tokenizer.encode("").empty());

  const Tokenizer gpt2 = Tokenizer::from_gguf_vocab(small_gguf("gpt-2"), "small");
  EXPECT_EQ(spelled(gpt2, "12 ab"), (List{"12", "Ġab"}));
}

TEST(Tokenizer, BytesWithoutATokenAreLeftOut) {
  heed::GgufVocab vocab = small_gguf("smollm");
  vocab.tokens[2 + 0x01] = "<unused>";  // the byte 1 loses its token
  const Tokenizer tokenizer = Tokenizer::from_gguf_vocab(vocab, "small");
  EXPECT_TRUE(tokenizer.encode("\x01\x01").empty());
  EXPECT_EQ(spelled(tokenizer,
                    "a\x01"
                    "b"),
            (std::vector<std::string>{"a", "b"}));
  // Within one piece the neighbours of the byte that was left out merge.
  EXPECT_EQ(spelled(tokenizer,
                    "\x01"
                    "a"),
            (std::vector<std::string>{"a"}));
}

TEST(Tokenizer, BrokenUtf8) {
  const Tokenizer tokenizer = Tokenizer::from_gguf_vocab(small_gguf("smollm"), "small");
  EXPECT_EQ(tokenizer.encode("a\xFF\xFE"), tokenizer.encode("a\xEF\xBF\xBD\xEF\xBF\xBD"));
  const auto byte = [](int b) { return 2 + b; };
  // One U+FFFD for each longest broken part: F0 9F is one, a lone 80 another.
  EXPECT_EQ(tokenizer.decode(Ids{byte(0xF0), byte(0x9F), byte('a'), byte(0x80), byte(0x80)}),
            "\xEF\xBF\xBD"
            "a\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(heed::unicode::to_valid("\xE2\x82(\xED\xA0\x80\xC0\xAF"),
            "\xEF\xBF\xBD(\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_THROW(tokenizer.decode(Ids{100000}), heed::UsageError);
  EXPECT_THROW(tokenizer.decode(Ids{-1}), heed::UsageError);
}

TEST(Tokenizer, GgufErrorsNameWhatIsWrong) {
  const auto message = [](const heed::GgufVocab& vocab) -> std::string {
    try {
      Tokenizer::from_gguf_vocab(vocab, "x.gguf");
      return "";
    } catch (const heed::Error& error) {
      return error.what();
    }
  };
  EXPECT_NE(message(small_gguf("martian")).find("martian"), std::string::npos);
  heed::GgufVocab vocab = small_gguf("smollm");
  vocab.model = "bert";
  EXPECT_NE(message(vocab).find("\"bert\""), std::string::npos);
  vocab = small_gguf("smollm");
  vocab.types.pop_back();
  EXPECT_NE(message(vocab).find("token_type"), std::string::npos);
  vocab = small_gguf("smollm");
  vocab.merges.push_back("q zz");
  EXPECT_NE(message(vocab).find("merges[4]"), std::string::npos);
  vocab = small_gguf("smollm");
  vocab.merges.push_back("oneword");
  EXPECT_NE(message(vocab).find("oneword"), std::string::npos);
  vocab.tokens.clear();
  EXPECT_NE(message(vocab).find("tokens"), std::string::npos);
}

TEST(Tokenizer, GgufLlamaMergesByScore) {
  heed::GgufVocab vocab;
  vocab.model = "llama";
  vocab.tokens = {"<unk>", "<s>", "</s>"};
  vocab.types = {2, 3, 3};
  vocab.scores = {0, 0, 0};
  for (int b = 0; b < 256; ++b) {
    vocab.tokens.push_back(fmt::format("<0x{:02X}>", b));
    vocab.types.push_back(6);
    vocab.scores.push_back(0);
  }
  const std::vector<std::pair<const char*, float>> pieces = {
      {"▁", -10}, {"a", -11}, {"b", -12}, {"ab", -1}, {"▁a", -2}, {"▁ab", -3}, {"aa", -1}};
  for (const auto& [text, score] : pieces) {
    vocab.tokens.push_back(text);
    vocab.types.push_back(1);
    vocab.scores.push_back(score);
  }
  vocab.special = {.bos = 1, .eos = 2, .unk = 0, .add_bos = true};
  const Tokenizer tokenizer = Tokenizer::from_gguf_vocab(vocab, "x.gguf");
  using List = std::vector<std::string>;
  EXPECT_EQ(spelled(tokenizer, "ab"), (List{"▁ab"}));
  EXPECT_EQ(spelled(tokenizer, "aaa"), (List{"▁", "aa", "a"}));  // equal scores: the leftmost
  EXPECT_EQ(spelled(tokenizer, "é"), (List{"▁", "<0xC3>", "<0xA9>"}));
  EXPECT_EQ(spelled(tokenizer, "a b</s>a"), (List{"▁a", "▁", "b", "</s>", "▁a"}));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("ab é aab")), "ab é aab");
  EXPECT_EQ(tokenizer.special().bos, 1);
}

TEST(Tokenizer, LongRunsTakeNoQuadraticTime) {
  for (const char* file : {"byte_digits.json", "bpe_llama2.json", "unigram.json"}) {
    const Tokenizer tokenizer = heed::open_tokenizer(kFolder + file);
    for (const char* unit : {"a", " ", "\n", "é", "1", "="}) {
      std::string text;
      while (text.size() < 300'000) text += unit;
      EXPECT_FALSE(tokenizer.encode(text).empty()) << file;
    }
  }
}

TEST(Tokenizer, ManyThreads) {
  const Tokenizer tokenizer = heed::open_tokenizer(kFolder + "byte_digits.json");
  const Tokenizer other = heed::open_tokenizer(kFolder + "bpe_llama2.json");
  std::vector<std::thread> threads;
  threads.reserve(4);
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (size_t i = 0; i < expected()["strings"].size(); ++i) {
        const std::string text = expected()["strings"][i].get<std::string>();
        const auto wanted = [&](const char* file) {
          return expected()["tokenizers"][file]["ids"][i].get<Ids>();
        };
        wrong += tokenizer.encode(text) != wanted("byte_digits.json");
        wrong += other.encode(text) != wanted("bpe_llama2.json");
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Tokenizer, SpecialIdsOfAFile) {
  const auto& special = heed::open_tokenizer(kFolder + "byte_digits.json").special();
  EXPECT_EQ(special.bos, 1);
  EXPECT_EQ(special.eos, 0);
  EXPECT_TRUE(special.add_bos);
  const auto& bert = heed::open_tokenizer(kFolder + "wordpiece_bert.json").special();
  EXPECT_EQ(bert.bos, 2);
  EXPECT_EQ(bert.eos, 3);
  EXPECT_FALSE(heed::open_tokenizer(kFolder + "byte_qwen2_nfc.json").special().add_bos);
}

TEST(Tokenizer, UnknownTypesAndBrokenFilesNameTheKey) {
  const auto message = [](const std::string& text) -> std::string {
    try {
      Tokenizer::from_tokenizer_json(text, "t.json");
      return "";
    } catch (const heed::Error& error) {
      return error.what();
    }
  };
  const auto with = [](const char* key, const json& value) {
    json root = {
        {"model", {{"type", "BPE"}, {"vocab", {{"a", 0}, {"b", 1}}}, {"merges", json::array()}}}};
    root[key] = value;
    return root.dump();
  };
  EXPECT_EQ(message(with("version", "1.0")), "");
  const auto names = [&](const std::string& text, const char* what) {
    const std::string got = message(text);
    EXPECT_NE(got.find("t.json"), std::string::npos) << got;
    EXPECT_NE(got.find(what), std::string::npos) << got;
  };
  names(with("normalizer", {{"type", "Martian"}}), "Martian");
  names(with("pre_tokenizer", {{"type", "UnicodeScripts"}}), "UnicodeScripts");
  names(with("decoder", {{"type", "CTC"}}), "CTC");
  names(with("model", {{"type", "Neural"}}), "Neural");
  names(with("model", {{"type", "BPE"}, {"vocab", {{"a", 0}}}, {"merges", {"a q"}}}), "merges[0]");
  names(with("model", {{"type", "BPE"}, {"vocab", {{"a", -1}}}, {"merges", json::array()}}), "-1");
  names(with("model", {{"type", "BPE"}, {"vocab", {{"a", 1 << 30}}}, {"merges", json::array()}}),
        "1073741824");
  names(with("pre_tokenizer",
             {{"type", "Split"}, {"pattern", {{"Regex", "(("}}}, {"behavior", "Isolated"}}),
        "((");
  names(with("added_tokens", {{{"id", 1}}}), "content");
  names("{", "t.json");
  names("[]", "t.json");
  std::string nested = R"({"type":"ByteLevel"})";
  for (int i = 0; i < 25; ++i) nested = R"({"type":"Sequence","pretokenizers":[)" + nested + "]}";
  names(with("pre_tokenizer", json::parse(nested)), "deeply");
}

// Rules that double a text again and again end before the memory does.
TEST(Tokenizer, RulesThatGrowWithoutBoundEndWithAnError) {
  const json grow = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aaaaaaaa"}};
  const json spread = {{"type", "Metaspace"}, {"replacement", std::string(1 << 20, '_')}};
  const json nested = {{"type", "Sequence"}, {"normalizers", json(8, grow)}};
  const json symbols(100, {{"type", "ByteLevel"}, {"use_regex", false}});
  const json model = {{"type", "BPE"}, {"vocab", {{"a", 0}}}, {"merges", json::array()}};
  const auto refusal = [&](const json& rules) {
    json file = rules;
    file["model"] = model;
    try {
      const Tokenizer tokenizer = Tokenizer::from_tokenizer_json(file.dump(), "tokenizer.json");
      tokenizer.decode(tokenizer.encode("a a a a a a a a a a a a a a a a a a a a a a"));
    } catch (const heed::Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const auto sequence = [](const char* list, const json& stages) {
    return json{{"type", "Sequence"}, {list, stages}};
  };
  for (const json& rules :
       {json{{"normalizer", sequence("normalizers", json(20, grow))}},
        json{{"normalizer", sequence("normalizers", json(3, nested))}},
        json{{"decoder", sequence("decoders", json(20, grow))}}, json{{"pre_tokenizer", spread}},
        json{{"pre_tokenizer", sequence("pretokenizers", symbols)}}}) {
    EXPECT_NE(refusal(rules).find("the tokenizer's rules"), std::string::npos)
        << rules.dump().substr(0, 100) << refusal(rules);
  }
  json file = {{"model", model}};
  file["added_tokens"] = {{{"content", std::string(5 << 20, 'x')}, {"id", 1}}};
  EXPECT_THROW(Tokenizer::from_tokenizer_json(file.dump(), "tokenizer.json"), heed::Error);
}

// Every name of tokenizer.ggml.pre that an error lists has a rule that compiles.
TEST(Tokenizer, AllNamedGgufRulesCanBeMade) {
  std::string known;
  try {
    heed::tok::gguf_rule("martian", "x.gguf");
  } catch (const heed::Error& error) {
    known = error.what();
  }
  const size_t list = known.find("known are: ");
  ASSERT_NE(list, std::string::npos) << known;
  std::istringstream names(known.substr(list + 11));
  int count = 0;
  for (std::string name; names >> name; ++count) {
    const Tokenizer tokenizer = Tokenizer::from_gguf_vocab(small_gguf(name), "small");
    const std::string text = "Hello  wörld's 1234567 \r\n\n\t中文かな x² !?…。  end ";
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text) << name;
  }
  EXPECT_GT(count, 80);
}

// Pieces of a text under a rule, joined by "|".
std::string pieces(const std::string& pre, const std::string& text) {
  heed::tok::Pieces list;
  list.list.push_back({text, true});
  heed::tok::gguf_rule(pre, "x.gguf").pre_tokenizer->apply(list);
  std::string out;
  for (const auto& piece : list.list) out += (out.empty() ? "" : "|") + std::string(piece.text);
  return out;
}

TEST(Tokenizer, GgufRulesCutAsTheModelsDo) {
  EXPECT_EQ(pieces("llama-bpe", "I'M 12345 a  b\n\n c"), "I|'M| |123|45| a| | b|\n\n| c");
  EXPECT_EQ(pieces("qwen2", "x 12 y"), "x| |1|2| y");
  EXPECT_EQ(pieces("gpt-2", "I'M 12345  b"), "I|'|M| 12345| | b");
  EXPECT_EQ(pieces("smollm", "a 12"), "a| |1|2");
  EXPECT_EQ(pieces("default", "a, 1234=b"), "a|,| |123|4|=|b");
  EXPECT_EQ(pieces("", "a, 1"), "a|,| |1");
  EXPECT_EQ(pieces("falcon", "a`b 12345"), "a|`|b| |123|45");
  EXPECT_EQ(pieces("deepseek-llm", "Hello, 你好 123\n é"), "Hello|,| |你好| |123|\n| é");
  EXPECT_EQ(pieces("deepseek-coder", "a 12, b"), "a| |1|2|,| b");
  EXPECT_EQ(pieces("deepseek-v3", "x.abc 1234 你好!"), "x|.abc| |123|4| |你好|!");
  EXPECT_EQ(pieces("kimi-k2", "Hello你好World 1234"), "Hello|你好|World| |123|4");
  EXPECT_EQ(pieces("superbpe", "by the way 1234567"), "by the way |1|234|567");
  EXPECT_EQ(pieces("afmoe", "1234567 12"), "1|234|567| |12");
  EXPECT_EQ(pieces("bloom", "Hi there, you."), "Hi| there|,| you|.");
  EXPECT_EQ(pieces("viking", "a 12"), "a| |1|2");
  EXPECT_EQ(pieces("tekken", "HelloWorld 12"), "Hello|World| |1|2");
  EXPECT_EQ(pieces("gpt-4o", "HelloWorld's 1234"), "Hello|World's| |123|4");
  EXPECT_EQ(pieces("seed-coder", "a 12?\n"), "a| |1|2|?|\n");
  EXPECT_EQ(pieces("bailingmoe", "a\n\nb"), "a|\n\n|b");
  EXPECT_EQ(pieces("chameleon", "a  b<sentinel:3>"), "a|  |b|<|sentinel|:|3|>");
  EXPECT_EQ(pieces("jais-2", "a" + std::string(6, ' ') + "b"), "a|    | | b");
}

TEST(Tokenizer, GgufRulesThatBeginWithABeginToken) {
  for (const char* name : {"llama-bpe", "llama3", "falcon3", "pixtral", "tekken", "chameleon"}) {
    EXPECT_TRUE(heed::tok::gguf_rule_adds_bos(name)) << name;
  }
  for (const char* name :
       {"", "default", "gpt-2", "qwen2", "smaug-bpe", "deepseek-llm", "martian"}) {
    EXPECT_FALSE(heed::tok::gguf_rule_adds_bos(name)) << name;
  }
}

TEST(Tokenizer, TokensThatEndATurnAreFoundByTheirTexts) {
  const auto ends = [](const std::vector<std::string>& marks, const heed::SpecialTokens& special) {
    heed::GgufVocab vocab = small_gguf("llama-bpe");
    vocab.tokens.erase(vocab.tokens.begin(), vocab.tokens.begin() + 2);
    vocab.tokens.insert(vocab.tokens.end(), marks.begin(), marks.end());
    vocab.types.assign(vocab.tokens.size(), 1);
    vocab.special = special;
    heed::tok::find_end_tokens(vocab);
    std::string out;
    for (const int32_t id : vocab.special.stop) out += vocab.tokens[static_cast<size_t>(id)] + " ";
    // All of them are control tokens: never text.
    const Tokenizer tokenizer = Tokenizer::from_gguf_vocab(vocab, "x.gguf");
    for (const int32_t id : vocab.special.stop) EXPECT_TRUE(tokenizer.is_special(id)) << out;
    return out;
  };
  EXPECT_EQ(ends({"<|eot_id|>", "<|end_of_text|>", "<|start_header_id|>"}, {}),
            "<|eot_id|> <|end_of_text|> ");
  EXPECT_EQ(ends({"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eom_id|>"}, {}),
            "<|im_end|> <|endoftext|> <|eom_id|> ");
  EXPECT_EQ(ends({"<start_of_turn>", "<end_of_turn>", "<eos>"}, {}), "<end_of_turn> <eos> ");
  EXPECT_EQ(ends({"<｜end▁of▁sentence｜>", "[EOT]", "[e~["}, {}),
            "[EOT] <｜end▁of▁sentence｜> [e~[ ");
  EXPECT_EQ(ends({"<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>"}, {}),
            "<|fim_pad|> <|repo_name|> <|file_sep|> ");
  // gpt-oss: <|end|> only ends a part of the answer; so does </s> beside Gemma 4's marks.
  EXPECT_EQ(ends({"<|end|>", "<|return|>", "<|call|>"}, {}), "<|return|> <|call|> ");
  EXPECT_EQ(ends({"<|end|>", "<|user|>"}, {}), "<|end|> ");
  EXPECT_EQ(ends({"</s>", "<|tool_response>", "<turn|>"}, {}), "<turn|> <|tool_response> ");
}

TEST(Tokenizer, AddedTokensAreNumberedAsInTokenizers) {
  const json model = {
      {"type", "BPE"}, {"vocab", {{"a", 0}, {"<x>", 1}, {"zz", 2}}}, {"merges", json::array()}};
  const auto tokenizer = [&](const json& added) {
    return Tokenizer::from_tokenizer_json(json{{"model", model}, {"added_tokens", added}}.dump(),
                                          "t.json");
  };
  // The vocabulary's id goes before the entry's, and 2 stays "zz".
  const Tokenizer clash = tokenizer({{{"content", "<x>"}, {"id", 2}, {"special", true}}});
  EXPECT_EQ(clash.encode("a<x>"), (Ids{0, 1}));
  EXPECT_EQ(clash.decode(Ids{2}), "zz");
  EXPECT_TRUE(clash.is_special(1));
  EXPECT_FALSE(clash.is_special(2));
  // What the vocabulary does not have comes behind it, without holes, in the order of the file.
  const Tokenizer hole = tokenizer({{{"content", "<y>"}, {"id", 9}},
                                    {{"content", "<z>"}, {"id", 7}},
                                    {{"content", "<y>"}, {"id", 11}}});
  EXPECT_EQ(hole.encode("<y><z>a"), (Ids{3, 4, 0}));
  EXPECT_EQ(hole.vocab_size(), 5);
}

TEST(Tokenizer, AddedTokensOfAFolderWithASentencePieceModel) {
  const heed::test::TempFolder folder;
  const auto put = [&](const char* name, const std::string& text) {
    std::ofstream(folder / name, std::ios::binary) << text;
  };
  put("tokenizer.model", read_text(kFolder + "sentencepiece_bpe.model"));
  const int32_t size = heed::open_tokenizer(kFolder + "sentencepiece_bpe.model").vocab_size();
  const json decoder = {
      {"0", {{"content", "<unk>"}, {"special", true}}},
      {std::to_string(size), {{"content", "<|im_end|>"}, {"special", true}, {"rstrip", true}}},
      {std::to_string(size + 3), {{"content", "<tool>"}, {"special", false}}}};
  put("tokenizer_config.json",
      json{{"added_tokens_decoder", decoder}, {"eos_token", "<|im_end|>"}}.dump());
  const Tokenizer tokenizer = heed::open_tokenizer(folder.path());
  const Ids word = tokenizer.encode("word");
  Ids wanted = word;
  wanted.push_back(size);
  wanted.push_back(size + 3);
  EXPECT_EQ(tokenizer.encode("word<|im_end|>  <tool>"), wanted);
  EXPECT_EQ(tokenizer.decode(wanted), "word<|im_end|><tool>");
  EXPECT_EQ(tokenizer.decode(wanted, true), "word<tool>");
  EXPECT_EQ(tokenizer.special().eos, size);
  EXPECT_EQ(tokenizer.special().stop, (Ids{2, size}));

  // The older way: added_tokens.json, and special_tokens_map.json for what is special.
  put("tokenizer_config.json", "{}");
  put("added_tokens.json", json{{"<tool>", size + 1}, {"<|im_end|>", size}}.dump());
  put("special_tokens_map.json",
      json{{"eos_token", {{"content", "<|im_end|>"}}}, {"additional_special_tokens", {"<tool>"}}}
          .dump());
  const Tokenizer older = heed::open_tokenizer(folder.path());
  EXPECT_EQ(older.encode("<|im_end|><tool>"), (Ids{size, size + 1}));
  EXPECT_TRUE(older.is_special(size + 1));
  EXPECT_EQ(older.special().eos, size);

  put("added_tokens.json", json{{"<tool>", 5}}.dump());
  EXPECT_THROW(heed::open_tokenizer(folder.path()), heed::Error);
}

TEST(Tokenizer, BlanksOfAContinuationStay) {
  for (const char* file :
       {"sentencepiece_bpe.model", "bpe_llama2.json", "bpe_metaspace_first.json", "unigram.json"}) {
    const Tokenizer tokenizer = heed::open_tokenizer(kFolder + file);
    const Ids ids = tokenizer.encode("the best of a");
    const std::string whole = tokenizer.decode(ids);
    for (size_t cut = 0; cut <= ids.size(); ++cut) {
      const std::vector<int64_t> before(ids.begin(), ids.begin() + static_cast<int64_t>(cut));
      heed::StreamDecoder stream(tokenizer, true, before);
      std::string text;
      for (size_t i = cut; i < ids.size(); ++i) text += stream.push(ids[i]);
      text += stream.finish();
      EXPECT_EQ(tokenizer.decode(std::span(ids).first(cut)) + text, whole) << file << " " << cut;
    }
  }
}

TEST(BpeTrainer, LearnsWhatIsFrequentAndReadsBack) {
  heed::BpeTrainerOptions options;
  options.vocab_size = 256 + 1 + 4;
  options.special_tokens = {"<|endoftext|>"};
  int calls = 0;
  const std::string text = heed::train_byte_bpe(
      [&](std::string& out) {
        out = "low low low lower<|endoftext|>low 1212";
        return calls++ < 3;
      },
      options);
  const Tokenizer tokenizer = Tokenizer::from_tokenizer_json(text, "trained");
  EXPECT_EQ(tokenizer.vocab_size(), 261);
  using List = std::vector<std::string>;
  EXPECT_EQ(spelled(tokenizer, "low lower<|endoftext|>12"),
            (List{"low", "Ġlow", "er", "<|endoftext|>", "1", "2"}));
  for (int b = 0; b < 256; ++b) {
    EXPECT_TRUE(
        tokenizer.token_to_id(heed::unicode::byte_to_symbol(static_cast<unsigned char>(b))));
  }
  options.vocab_size = 100;
  EXPECT_THROW(heed::train_byte_bpe([](std::string&) { return false; }, options), heed::UsageError);
}

}  // namespace
