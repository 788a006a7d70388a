// Many requests side by side: each gets what it gets alone, whoever else is there.
#include "generate/batch.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "io/error.h"
#include "io/tokenizer/open.h"

namespace heed {
namespace batch_test {

struct Models {
  Decoder model = Decoder::load(std::string(HEED_SOURCE_DIR) + "/models/builtin");
  Tokenizer tokenizer = open_tokenizer(std::string(HEED_SOURCE_DIR) + "/models/builtin");
  // Windows of 12 on half of the heads, so that rings turn over within the test.
  Programs windows;

  Models() {
    at::set_num_threads(1);  // the products are small
    const ModelConfig& config = model.config();
    windows.heads.assign(static_cast<size_t>(config.layers),
                         std::vector<HeadProgram>(static_cast<size_t>(config.kv_heads)));
    for (auto& layer : windows.heads) layer[0] = HeadProgram{12, 2};
  }
};
const Models& shared() {
  static const Models models;
  return models;
}

// Eight prompts of unequal length with rules of their own: stop strings, limits, a plan, sampling.
std::vector<Request> requests() {
  const char* texts[] = {"It was a dark and stormy night",
                         "The",
                         "He said that the captain of the ship had never seen such a storm, and",
                         "In the beginning there was nothing but the sea. Then",
                         "\"Come here,\" said the old man,",
                         "Once upon a time",
                         "The river ran through the valley, past the mill and the church, and",
                         "What"};
  std::vector<Request> out;
  for (const char* text : texts) {
    Request request;
    request.prompt = prompt_ids(shared().tokenizer, text);
    request.options.kv_dtype = at::kFloat;
    request.options.max_tokens = 10 + 3 * static_cast<int64_t>(out.size() % 4);
    request.options.chunk = 5;
    out.push_back(std::move(request));
  }
  out[2].options.programs = &shared().windows;
  out[3].options.stop = {" the"};
  out[4].options.sampling.temperature = 0.8;
  out[4].options.sampling.seed = 3;
  out[5].options.max_tokens = 0;
  out[6].options.kv_dtype = at::kHalf;
  out[7].options.sampling.repetition_penalty = 1.3;
  return out;
}

const std::vector<Generation>& alone() {
  static const std::vector<Generation> all = [] {
    std::vector<Generation> out;
    for (const Request& r : requests()) {
      out.push_back(generate(shared().model, shared().tokenizer, r.prompt, r.options));
    }
    return out;
  }();
  return all;
}

void expect_same(const Generation& got, const Generation& expected) {
  EXPECT_EQ(got.text, expected.text);
  EXPECT_EQ(got.tokens, expected.tokens);
  EXPECT_EQ(got.finish, expected.finish);
  EXPECT_EQ(got.prompt_tokens, expected.prompt_tokens);
  EXPECT_EQ(got.kv_bytes, expected.kv_bytes);
}

void finish(Batch& batch) {
  while (batch.step()) {
  }
  EXPECT_EQ(batch.running(), 0);
  EXPECT_EQ(batch.waiting(), 0);
  EXPECT_EQ(batch.bytes(), 0);
}

TEST(Batch, GivesEachTheTextThatItGivesAlone) {
  Batch batch(shared().model, shared().tokenizer);
  std::vector<int64_t> ids;
  std::vector<std::string> streamed(8);
  for (Request& r : requests()) {
    std::string& text = streamed[ids.size()];
    r.on_text = [&text](const std::string& piece) { text += piece; };
    ids.push_back(batch.add(std::move(r)));
  }
  EXPECT_EQ(batch.waiting(), 8);
  finish(batch);
  for (size_t n = 0; n < ids.size(); ++n) {
    SCOPED_TRACE(n);
    const Generation got = batch.take(ids[n]);
    expect_same(got, alone()[n]);
    EXPECT_EQ(streamed[n], got.text);
  }
  EXPECT_GT(alone()[0].text.size(), 10u);
  EXPECT_EQ(alone()[5].text, "");
}

TEST(Batch, ThoseWhoComeLateOrLeaveDisturbNobody) {
  Batch batch(shared().model, shared().tokenizer);
  auto all = requests();
  std::vector<int64_t> ids;
  for (size_t n = 0; n < 3; ++n) ids.push_back(batch.add(all[n]));
  for (int n = 0; n < 6; ++n) batch.step();
  for (size_t n = 3; n < 8; ++n) ids.push_back(batch.add(all[n]));
  // One leaves while it runs, one before it was let in, one by its own callback.
  batch.step();
  batch.cancel(ids[1]);
  Request waiting = all[0], leaving = all[0];
  const int64_t never = batch.add(waiting);
  batch.cancel(never);
  int64_t self = -1;
  leaving.on_text = [&](const std::string&) { batch.cancel(self); };
  self = batch.add(leaving);
  finish(batch);
  EXPECT_EQ(batch.take(ids[1]).finish, "cancelled");
  EXPECT_EQ(batch.take(never).finish, "cancelled");
  EXPECT_EQ(batch.take(self).finish, "cancelled");
  for (size_t n = 0; n < ids.size(); ++n) {
    if (n == 1) continue;
    SCOPED_TRACE(n);
    expect_same(batch.take(ids[n]), alone()[n]);
  }
}

TEST(Batch, BytesAndPlacesAreKept) {
  auto all = requests();
  int64_t most = 0;
  for (const Request& r : all) {
    Batch one(shared().model, shared().tokenizer);
    one.add(r);
    one.step();
    most = std::max(most, one.bytes());
  }
  ASSERT_GT(most, 0);
  Batch batch(shared().model, shared().tokenizer, {3, 2 * most});
  std::vector<int64_t> ids;
  for (const Request& r : all) ids.push_back(batch.add(r));
  int64_t together = 0;
  do {
    EXPECT_LE(batch.bytes(), 2 * most);
    EXPECT_LE(batch.running(), 3);
    together = std::max(together, batch.running());
  } while (batch.step());
  EXPECT_GE(together, 2);
  for (size_t n = 0; n < ids.size(); ++n) expect_same(batch.take(ids[n]), alone()[n]);
  Batch small(shared().model, shared().tokenizer, {3, 1000});
  EXPECT_THROW(small.add(all[0]), UsageError);
  EXPECT_THROW(Batch(shared().model, shared().tokenizer, {0, 0}), UsageError);
}

// Softmax under a plan, recurrences with and without a short convolution, side by side in one
// model.
TEST(Batch, RecurrencesAndHybridsStandBesideAttention) {
  ModelConfig c;
  c.vocab = 268;
  c.hidden = 32;
  c.intermediate = 32;
  c.layers = 4;
  c.heads = c.kv_heads = 2;
  c.head_dim = 16;
  c.max_position = 200;
  c.windows.assign(4, 0);
  c.mixers[0] = {"gla", {{"conv", 4}}};
  c.mixers[2] = {"rwkv6", Json::object()};
  c.mixers[3] = {"mamba2", Json::object()};
  const Decoder model = Decoder::random(c, 5);
  std::vector<std::string> pieces = {"<unk>", "<s>", "</s>"};
  for (int byte = 0; byte < 256; ++byte) pieces.push_back(fmt::format("<0x{:02X}>", byte));
  for (char letter = 'a'; letter < 'j'; ++letter) pieces.emplace_back(1, letter);
  const Tokenizer tokenizer =
      Tokenizer::from_llama2c(pieces, std::vector<float>(pieces.size(), 0), "letters");
  Programs plan;
  plan.heads = {{}, {HeadProgram{9, 2}, HeadProgram{}}, {}, {}};
  std::vector<Generation> expected;
  std::vector<int64_t> ids;
  Batch batch(model, tokenizer, {3, 0});
  for (int64_t n = 0; n < 6; ++n) {
    Request request;
    for (int64_t t = 0; t < 1 + 7 * n; ++t) request.prompt.push_back(3 + (t * 37 + n) % 256);
    request.options.max_tokens = 25 - 3 * n;
    request.options.ignore_eos = true;
    request.options.kv_dtype = at::kFloat;
    request.options.chunk = 10;
    if (n % 2 == 1) request.options.programs = &plan;
    expected.push_back(generate(model, tokenizer, request.prompt, request.options));
    ids.push_back(batch.add(std::move(request)));
  }
  finish(batch);
  for (size_t n = 0; n < ids.size(); ++n) {
    SCOPED_TRACE(n);
    expect_same(batch.take(ids[n]), expected[n]);
  }
}

TEST(Batch, WhatGoesWrongEndsOneRequestAlone) {
  Batch batch(shared().model, shared().tokenizer);
  auto all = requests();
  Request broken = all[0];
  broken.on_text = [](const std::string&) { throw std::runtime_error("nobody listens"); };
  const int64_t good = batch.add(all[2]), bad = batch.add(broken);
  EXPECT_THROW(batch.take(good), UsageError);
  finish(batch);
  EXPECT_THROW(batch.take(bad), std::runtime_error);
  expect_same(batch.take(good), alone()[2]);
  EXPECT_THROW(batch.take(good), UsageError);  // it is forgotten
  Request empty = all[0];
  empty.prompt.clear();
  EXPECT_THROW(batch.add(empty), UsageError);
  Request hot = all[0];
  hot.options.sampling.temperature = -1;
  EXPECT_THROW(batch.add(hot), UsageError);
}

}  // namespace batch_test
}  // namespace heed
