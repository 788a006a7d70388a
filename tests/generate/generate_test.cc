// Sampling rules, stop rules and streaming.
#include "generate/generate.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

namespace heed {
namespace generate_test {

std::vector<int64_t> draw(const SamplingOptions& options, const at::Tensor& scores, int count,
                          const std::vector<int64_t>& seen = {}) {
  Sampler sampler(options);
  std::vector<int64_t> out(scores.numel(), 0);
  for (int i = 0; i < count; ++i) ++out[sampler.next(scores, seen)];
  return out;
}

TEST(Sampler, TemperatureZeroTakesTheLikeliestAndTheLowestOnATie) {
  EXPECT_EQ(draw({}, at::tensor({1.f, 3.f, 3.f, 2.f}), 5)[1], 5);
}

TEST(Sampler, FollowsTheProbabilities) {
  SamplingOptions o;
  o.temperature = 0.5;
  o.seed = 1;
  const auto counts = draw(o, at::tensor({0.f, 0.5f, 1.f}), 20000);
  const double total = 1 + std::exp(1.0) + std::exp(2.0);
  EXPECT_NEAR(counts[0] / 20000.0, 1 / total, 0.01);
  EXPECT_NEAR(counts[2] / 20000.0, std::exp(2.0) / total, 0.01);
}

TEST(Sampler, TheSameSeedDrawsTheSame) {
  SamplingOptions o;
  o.temperature = 1;
  o.seed = 7;
  const at::Tensor scores = at::zeros({50});
  EXPECT_EQ(draw(o, scores, 100), draw(o, scores, 100));
}

TEST(Sampler, CutsTheTail) {
  const at::Tensor scores = at::tensor({0.5f, 0.3f, 0.15f, 0.05f}).log();
  SamplingOptions o;
  o.temperature = 1;
  o.top_k = 2;
  EXPECT_EQ(draw(o, scores, 2000)[2], 0);
  o.top_k = 0;
  o.top_p = 0.79;  // 0.5 + 0.3 reaches it
  EXPECT_EQ(draw(o, scores, 2000)[2], 0);
  o.top_p = 0.81;
  EXPECT_GT(draw(o, scores, 2000)[2], 0);
  o.top_p = 1;
  o.min_p = 0.2;  // of 0.5
  const auto counts = draw(o, scores, 4000);
  EXPECT_GT(counts[2], 0);
  EXPECT_EQ(counts[3], 0);
}

TEST(Sampler, RepetitionIsPunished) {
  SamplingOptions o;
  o.repetition_penalty = 2;
  EXPECT_EQ(draw(o, at::tensor({2.f, 1.5f, -1.f}), 1, {0})[1], 1);
  EXPECT_EQ(draw(o, at::tensor({-1.f, -1.5f}), 1, {0, 0})[1], 1);
}

TEST(Sampler, RefusesWhatMakesNoSense) {
  for (const auto& change : std::vector<std::function<void(SamplingOptions&)>>{
           [](auto& o) { o.temperature = -1; }, [](auto& o) { o.top_p = 0; },
           [](auto& o) { o.min_p = 1; }, [](auto& o) { o.top_k = -2; },
           [](auto& o) { o.repetition_penalty = 0; }}) {
    SamplingOptions o;
    change(o);
    EXPECT_THROW(Sampler{o}, UsageError);
  }
}

// A model over bytes and nine letters, whose text is whatever it is: the rules around it are what
// counts.
struct Letters {
  Letters() {
    ModelConfig c;
    c.vocab = 268;
    c.hidden = 16;
    c.intermediate = 16;
    c.layers = 1;
    c.heads = c.kv_heads = 2;
    c.head_dim = 8;
    c.max_position = 40;
    c.windows = {0};
    model.emplace(Decoder::random(c, 3));
    std::vector<std::string> pieces = {"<unk>", "<s>", "</s>"};
    for (int byte = 0; byte < 256; ++byte) pieces.push_back(fmt::format("<0x{:02X}>", byte));
    for (char letter = 'a'; letter < 'j'; ++letter) pieces.emplace_back(1, letter);
    tokenizer.emplace(
        Tokenizer::from_llama2c(pieces, std::vector<float>(pieces.size(), 0), "letters"));
  }
  std::optional<Decoder> model;
  std::optional<Tokenizer> tokenizer;
};

TEST(Generate, StreamsWhatItReturnsAndStopsWhereItIsTold) {
  const Letters x;
  GenerateOptions o;
  o.max_tokens = 12;
  o.ignore_eos = true;
  o.sampling.temperature = 2;
  o.sampling.seed = 5;
  std::string streamed;
  const auto collect = [&](const std::string& piece) { streamed += piece; };
  const Generation all = generate(*x.model, *x.tokenizer, {4, 5}, o, collect);
  EXPECT_EQ(all.finish, "length");
  EXPECT_EQ(all.tokens.size(), 12u);
  EXPECT_EQ(streamed, all.text);
  EXPECT_EQ(all.kv_bytes, 2 * 2 * 64 * 8 * 2);
  ASSERT_GE(all.text.size(), 5u);

  o.stop = {"no such text", all.text.substr(3, 2)};
  streamed.clear();
  const Generation some = generate(*x.model, *x.tokenizer, {4, 5}, o, collect);
  EXPECT_EQ(some.finish, "stop");
  EXPECT_EQ(some.text, all.text.substr(0, all.text.find(o.stop[1])));
  EXPECT_EQ(streamed, some.text);
}

TEST(Generate, EndsAtTheContextAndRefusesWhatDoesNotFit) {
  const Letters x;
  GenerateOptions o;
  o.ignore_eos = true;
  o.max_tokens = 1000;
  const Generation out = generate(*x.model, *x.tokenizer, {4, 5}, o);
  EXPECT_EQ(out.tokens.size(), 39u);
  EXPECT_THROW(generate(*x.model, *x.tokenizer, {}, o), UsageError);
  EXPECT_THROW(generate(*x.model, *x.tokenizer, std::vector<int64_t>(41, 3), o), UsageError);
}

}  // namespace generate_test
}  // namespace heed
