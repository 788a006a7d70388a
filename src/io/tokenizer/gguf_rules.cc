#include "io/tokenizer/gguf_rules.h"

#include <algorithm>
#include <array>
#include <map>
#include <span>

#include "io/describe.h"
#include "io/error.h"

namespace heed::tok {

namespace {

// clang-format off
constexpr const char* kDigit = R"(\p{N})";
constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen35 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kMiniCpm5 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kUfakzeka =
    R"([^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kSeedCoder =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kExaoneMoe =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+)";
constexpr const char* kBailingMoe =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)";
constexpr const char* kJais2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1})";
constexpr const char* kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kGpt4o =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kYoutu =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kYoutuBlocks =
    R"([\x{ac00}-\x{d7a3}\x{3131}-\x{318e}]+|[\x{ff01}\x{2026}\x{201c}\x{201d}\x{2018}\x{2019}\x{2014}\x{ff1a}\x{ff1b}\x{ff0c}\x{3001}-\x{303f}\x{fe30}-\x{fe4f}]+|[\x{3105}-\x{312f}]+|[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+)";
constexpr const char* kKimiK2 =
    R"(\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kThreeDigits = R"(\p{N}{1,3})";
constexpr const char* kKanaAndHan = R"([\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+)";
constexpr const char* kDeepSeek3 =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kSpark =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+)";
constexpr const char* kDeepSeekLetters =
    R"(\s?[A-Za-z)"
    R"(\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293})"
    R"(\x{295}-\x{2af}\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386})"
    R"(\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481})"
    R"(\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5})"
    R"(\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b})"
    R"(\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d})"
    R"(\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d})"
    R"(\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4})"
    R"(\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec})"
    R"(\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115})"
    R"(\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134})"
    R"(\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184})"
    R"(\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3})"
    R"(\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787})"
    R"(\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17})"
    R"(\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3})"
    R"(\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df})"
    R"(\x{1e900}-\x{1e943})"
    R"(]+)";
constexpr const char* kDeepSeekMarks =
    R"(\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+)";
constexpr const char* kDeepSeekIdeographs = R"([\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+)";
// Digits in threes from the right.
constexpr const char* kAfmoeDigits = R"(\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N})))";
constexpr const char* kAfmoeScripts =
    R"([\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{f900}-\x{faff}\x{3040}-\x{309f}\x{30a0}-\x{30ff}\x{ff65}-\x{ff9f}\x{2f00}-\x{2fdf}\x{e40}-\x{e7f}\x{e80}-\x{eff}\x{1780}-\x{17ff}\x{1000}-\x{109f}\x{aa60}-\x{aa7f}\x{a9e0}-\x{a9ff}\x{ac00}-\x{d7af}\x{1100}-\x{11ff}]+)";
constexpr const char* kBloom = R"( ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+)";
constexpr const char* kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLines = R"([^\n]+|[\n]+)";

struct Row {
  std::string_view names;  // with blanks between
  std::array<const char*, 6> patterns;
  bool ignore_merges = false, add_bos = false;
};

constexpr Row kRows[] = {
    {"default", {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
    {"gpt-2 gpt2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert exaone4 jina-v1-en jina-v2-code roberta-bpe mpt olmo jais trillion granite-docling", {kGpt2}},
    {"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", {kLlama3}, true, true},
    {"dbrx smaug-bpe glm4 chatglm-bpe", {kLlama3}},
    {"starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", {kDigit, kGpt2}},
    {"qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open megrez grok-2", {kQwen2}},
    {"qwen35", {kQwen35}},
    {"tekken", {kTekken}, true, true},
    {"gpt-4o llama4 kanana2 talkie minimax-m2", {kGpt4o}},
    {"granite-embed-multi-97m", {kGpt4o}, true},
    {"tiny_aya cohere2moe", {R"(\d{1,3}(?=(?:\d{3})*\b))", kGpt4o}},
    {"deepseek-llm", {"[\r\n]", kDeepSeekLetters, kDeepSeekMarks, R"(\s+$)", kDeepSeekIdeographs, R"(\p{N}+)"}},
    {"deepseek-coder", {"[\r\n]", R"(\s?\p{L}+)", R"(\s?\p{P}+)", kDeepSeekIdeographs, kDigit}},
    {"deepseek-v3 hunyuan-dense joyai-llm hy_v4", {kThreeDigits, kKanaAndHan, kDeepSeek3}},
    {"spark2_5", {kThreeDigits, kKanaAndHan, kSpark, kDigit}},
    {"youtu", {kYoutuBlocks, kYoutu}, true},
    {"falcon", {R"([\p{P}\$\+<=>\^~\|`]+)", kGpt2, "[0-9][0-9][0-9]"}},
    {"poro-chat bloom gpt3-finnish", {kBloom}},
    {"viking", {kBloom, kDigit}},
    {"chameleon", {"<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", R"(([\t\n]|    |  ))", kDigit, R"([\p{P}!-/:-@\[-`{-~])", kGpt2}, false, true},
    {"kimi-k2", {kKimiK2}},
    {"superbpe", {R"(\p{N}+)", R"((?=(\d{3})+(?!\d)))"}},
    {"bailingmoe bailingmoe2 llada-moe", {kBailingMoe}},
    {"seed-coder", {kSeedCoder}},
    {"exaone-moe", {kExaoneMoe}},
    {"jais-2", {kJais2}},
    {"minicpm5", {kThreeDigits, kMiniCpm5}, true},
    {"ufakzeka", {kUfakzeka}},
    {"afmoe", {kAfmoeDigits, kAfmoeScripts, kDeepSeek3}},
    {"laguna", {kLines, kQwen2}},
};
// clang-format on

const Row* find_row(std::string_view pre) {
  if (pre.empty()) pre = "default";
  for (const Row& row : kRows) {
    for (std::string_view rest = row.names; !rest.empty();) {
      const size_t blank = std::min(rest.find(' '), rest.size());
      if (rest.substr(0, blank) == pre) return &row;
      rest.remove_prefix(std::min(blank + 1, rest.size()));
    }
  }
  return nullptr;
}

// Texts of tokens that end a text or a turn, and of others that the models print as control tokens.
constexpr std::string_view kEnds[] = {"<|eot_id|>",
                                      "<|im_end|>",
                                      "<|end|>",
                                      "<|return|>",
                                      "<|call|>",
                                      "<|flush|>",
                                      "<|calls|>",
                                      "<end_of_turn>",
                                      "<|endoftext|>",
                                      "</s>",
                                      "<|eom_id|>",
                                      "<EOT>",
                                      "_<EOT>",
                                      "[EOT]",
                                      "[EOS]",
                                      "<|end_of_text|>",
                                      "<end_of_utterance>",
                                      "<eos>",
                                      "<turn|>",
                                      "<|tool_response>",
                                      "<\xEF\xBD\x9C"
                                      "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
                                      "[e~["};
constexpr std::string_view kFillPad[] = {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"};
constexpr std::string_view kFillRepository[] = {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
                                                "<REPO>", "<reponame>"};
constexpr std::string_view kFillFile[] = {"<|file_sep|>"};
// Tokens of gpt-oss that are always printed.
constexpr std::string_view kPrinted[] = {"<|channel|>", "<|message|>", "<|start|>",
                                         "<|constrain|>"};

constexpr int kControl = 3, kUserDefined = 4;

// Ids of the tokens that look like marks.
std::map<std::string_view, int32_t> find_marks(const std::vector<std::string>& tokens) {
  std::map<std::string_view, int32_t> marks;
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string& token = tokens[id];
    if (token.size() < 3 || token.size() > 40) continue;
    if (std::string_view("<[_").find(token[0]) == std::string_view::npos) continue;
    marks.emplace(token, static_cast<int32_t>(id));
  }
  return marks;
}

}  // namespace

GgufRule gguf_rule(const std::string& pre, const std::string& file) {
  const Row* row = find_row(pre);
  if (!row) {
    std::string known;
    for (const Row& r : kRows) known += (known.empty() ? "" : " ") + std::string(r.names);
    throw Error(
        "{}: tokenizer.ggml.pre is \"{}\", a splitting rule that Heed does not know. Use a folder "
        "with a tokenizer.json; known are: {}",
        file, printable(pre), known);
  }
  std::vector<std::shared_ptr<const PreTokenizer>> stages;
  for (const char* pattern : row->patterns) {
    if (pattern == nullptr) break;
    stages.push_back(pattern == kDigit ? single_digits() : split_isolated(pattern));
  }
  GgufRule rule;
  rule.ignore_merges = row->ignore_merges;
  rule.add_bos = row->add_bos;
  rule.pre_tokenizer = stages.size() == 1 ? stages[0] : sequence_of(std::move(stages));
  return rule;
}

std::optional<std::string> gguf_rule_name(const std::vector<std::string>& patterns,
                                          bool ignore_merges) {
  for (const Row& row : kRows) {
    std::vector<std::string> own;
    for (const char* pattern : row.patterns) {
      if (pattern == nullptr) break;
      own.emplace_back(pattern == kDigit ? "digits" : pattern == kGpt2 ? "gpt2" : pattern);
    }
    if (own != patterns || row.ignore_merges != ignore_merges) continue;
    return std::string(row.names.substr(0, row.names.find(' ')));
  }
  return std::nullopt;
}

bool gguf_rule_adds_bos(const std::string& pre) {
  const Row* row = find_row(pre);
  return row && row->add_bos;
}

void find_end_tokens(GgufVocab& vocab) {
  std::vector<int32_t>& stop = vocab.special.stop;
  if (vocab.types.empty()) vocab.types.resize(vocab.tokens.size(), 1);
  if (vocab.types.size() != vocab.tokens.size()) return;  // refused by from_gguf_vocab()
  const std::map<std::string_view, int32_t> marks = find_marks(vocab.tokens);
  const auto find = [&](std::string_view text) {
    const auto found = marks.find(text);
    return found == marks.end() ? -1 : found->second;
  };
  const auto add = [&](int32_t id) {
    if (id >= 0 && std::count(stop.begin(), stop.end(), id) == 0) stop.push_back(id);
  };
  const auto add_text = [&](std::string_view text) {
    const int32_t id = find(text);
    if (id < 0) return false;
    vocab.types[static_cast<size_t>(id)] = kControl;
    add(id);
    return true;
  };
  for (const std::string_view text : kEnds) add_text(text);
  // What fills the middle of code: a key of the file goes before the texts.
  const auto fill = [&](int32_t id, std::span<const std::string_view> texts) {
    if (id >= 0) return add(id);
    for (const std::string_view text : texts) {
      if (add_text(text)) return;
    }
  };
  fill(vocab.fill_pad, kFillPad);
  fill(vocab.fill_repository, kFillRepository);
  fill(vocab.fill_file, kFillFile);
  for (const std::string_view text : kPrinted) {
    const int32_t id = find(text);
    if (id >= 0) vocab.types[static_cast<size_t>(id)] = kUserDefined;
  }
  const auto ends = [&](std::string_view text) {
    const int32_t id = find(text);
    return id >= 0 && std::count(stop.begin(), stop.end(), id) > 0;
  };
  const auto release = [&](std::string_view text, int type) {
    const int32_t id = find(text);
    if (id < 0) return;
    std::erase(stop, id);
    vocab.types[static_cast<size_t>(id)] = type;
  };
  // Where a model has ends of its own, these only close a part of its turn.
  const bool calls = ends("<|call|>") || ends("<|calls|>");
  if (calls && (ends("<|return|>") || ends("<|flush|>"))) release("<|end|>", kUserDefined);
  if (ends("<|tool_response>")) release("</s>", 1);
}

}  // namespace heed::tok
