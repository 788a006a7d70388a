// llama2.c checkpoints and tokenizers, made here by hand.
#include "io/llama2c.h"

#include <gtest/gtest.h>

#include <cmath>

#include "io_test_helper.h"

namespace heed {
namespace {

using testing::Bytes;
using testing::exact;
using testing::expect_error;
using testing::TempFolder;
using testing::write_all;

// dim 8, hidden 12, 2 layers, 4 heads, 2 KV heads, vocabulary 10, context 6; values count up.
std::string checkpoint(bool tied, std::vector<int32_t> header = {8, 12, 2, 4, 2, 10, 6}) {
  if (!tied) header[5] = -header[5];
  const int layer = 8 + 64 + 32 + 32 + 64 + 8 + 96 + 96 + 96;
  const int values = 80 + 2 * layer + 8 + 2 * 6 * 1 + (tied ? 0 : 80);
  Bytes out;
  for (const int32_t size : header) out.number(size);
  for (int i = 0; i < values; ++i) out.number(static_cast<float>(i));
  return out.str();
}

float first(const Llama2cModel& model, const std::string& name) {
  float value;
  std::memcpy(&value, model.file.get(name).data, sizeof value);
  return value;
}

TEST(Llama2c, ReadsACheckpoint) {
  for (const bool tied : {true, false}) {
    TempFolder folder;
    write_all(folder / "m.bin", checkpoint(tied));
    const Llama2cModel model = open_llama2c(folder / "m.bin");
    EXPECT_EQ(model.dim, 8);
    EXPECT_EQ(model.hidden_dim, 12);
    EXPECT_EQ(model.layers, 2);
    EXPECT_EQ(model.heads, 4);
    EXPECT_EQ(model.kv_heads, 2);
    EXPECT_EQ(model.vocab, 10);
    EXPECT_EQ(model.context, 6);
    EXPECT_EQ(model.tied, tied);
    EXPECT_EQ(model.file.tensors.size(), 2 + 2 * 9 + (tied ? 0u : 1u));
    EXPECT_EQ(first(model, "model.embed_tokens.weight"), 0);
    EXPECT_EQ(first(model, "model.layers.1.input_layernorm.weight"), 88);
    EXPECT_EQ(first(model, "model.layers.0.self_attn.q_proj.weight"), 96);
    EXPECT_EQ(first(model, "model.layers.1.self_attn.k_proj.weight"), 96 + 128 + 32);
    EXPECT_EQ(model.file.get("model.layers.1.self_attn.k_proj.weight").shape,
              (std::vector<int64_t>{4, 8}));
    EXPECT_EQ(model.file.get("model.layers.1.mlp.down_proj.weight").shape,
              (std::vector<int64_t>{8, 12}));
    EXPECT_EQ(first(model, "model.norm.weight"), 80 + 2 * 496);
    if (!tied) {
      EXPECT_EQ(first(model, "lm_head.weight"), 80 + 2 * 496 + 8 + 12);
    }
  }
}

TEST(Llama2c, RefusesWhatDoesNotFit) {
  const auto parse = [](const std::string& bytes) { parse_llama2c(exact(bytes), "m.bin"); };
  expect_error([&] { parse("x"); }, {"m.bin: 1 bytes are too few"});
  std::string good = checkpoint(true);
  expect_error([&] { parse(good + "1234"); }, {"m.bin: 4 bytes follow"});
  expect_error([&] { parse(good.substr(0, good.size() - 1)); }, {"cut short"});
  for (const std::vector<int32_t>& header :
       std::vector<std::vector<int32_t>>{{0, 12, 2, 4, 2, 10, 6},
                                         {8, -1, 2, 4, 2, 10, 6},
                                         {8, 12, 2, 4, 2, 0, 6},
                                         {8, 12, 2, 4, 2, -2147483647 - 1, 6},
                                         {8, 12, 2, 3, 2, 10, 6},
                                         {8, 12, 2, 4, 3, 10, 6},
                                         {8, 12, 2, 8, 2, 10, 6},
                                         {8, 12, 100000, 4, 2, 10, 6},
                                         {1 << 28, 1 << 28, 4096, 1, 1, 1 << 28, 1 << 28}}) {
    expect_error([&] { parse(checkpoint(true, header)); }, {"m.bin: ", "llama2.c"});
  }
  testing::survive_damage(good.substr(0, 28), 2000,
                          [](std::span<const std::byte> bytes) { parse_llama2c(bytes, "d"); });
}

TEST(Llama2c, Tokenizer) {
  Bytes bytes;
  bytes.number<int32_t>(5);
  const auto piece = [](Bytes& out, float score, const std::string& text) {
    out.number(score).number(static_cast<int32_t>(text.size())).raw(text);
  };
  piece(bytes, 0, "<unk>");
  piece(bytes, -1.5f, "☃");
  piece(bytes, 2, "");
  const Llama2cVocab vocab = parse_llama2c_vocab(exact(bytes.str()), "t.bin");
  EXPECT_EQ(vocab.pieces, (std::vector<std::string>{"<unk>", "☃", ""}));
  EXPECT_EQ(vocab.scores, (std::vector<float>{0, -1.5f, 2}));
  const auto parse = [](const std::string& text) { parse_llama2c_vocab(exact(text), "t.bin"); };
  expect_error([&] { parse("abc"); }, {"t.bin: not a llama2.c tokenizer: it is too short"});
  expect_error([&] { parse(Bytes().number<int32_t>(-1).str()); }, {"no length"});
  expect_error([&] { parse(Bytes().number<int32_t>(4).str()); }, {"no pieces"});
  expect_error([&] { parse(bytes.str().substr(0, 16)); }, {"ends inside a piece"});
  expect_error([&] { parse(bytes.str() + "x"); }, {"ends inside a piece"});
  Bytes longer;
  piece(longer.number<int32_t>(2), 0, "abc");
  expect_error([&] { parse(longer.str()); }, {"longer than the longest"});
  Bytes nan;
  piece(nan.number<int32_t>(2), NAN, "a");
  expect_error([&] { parse(nan.str()); }, {"score"});
  testing::survive_damage(bytes.str(), 5000, [](std::span<const std::byte> damaged) {
    parse_llama2c_vocab(damaged, "d");
  });
}

}  // namespace
}  // namespace heed
