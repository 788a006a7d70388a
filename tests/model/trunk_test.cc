// The pieces that models are composed of: a decoder is one composition of them, an encoder and a
// model over vectors are others.
#include "model/trunk.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "model/decoder.h"

namespace heed {
namespace trunk_test {

ModelConfig config(bool rotary) {
  ModelConfig c;
  c.vocab = 50;
  c.hidden = 32;
  c.intermediate = 48;
  c.layers = 3;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 8;
  c.max_position = 64;
  c.windows.assign(3, 0);
  c.tied = true;
  c.learned_positions = !rotary;
  return c;
}

void draw(const std::string& name, at::Tensor& t) {
  t.copy_(t.dim() == 2 ? at::randn(t.sizes()).mul(0.3) : at::ones(t.sizes()));
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

TEST(Trunk, ADecoderIsItsPieces) {
  const at::NoGradGuard no_grad;
  for (const bool rotary : {true, false}) {
    ModelConfig c = config(rotary);
    if (!rotary) c.family = "heed-test";  // GPT-2 without its other rules
    const Decoder model = Decoder::random(c, 3);
    Embedding embedding(c, at::kFloat);
    Trunk trunk(c, at::kFloat, c.max_position, 0);
    Head head(c, at::kFloat);
    std::vector<std::string> names;
    const auto parameters = model.parameters();
    const auto take = [&](const std::string& name, at::Tensor& t) {
      ASSERT_LT(names.size(), parameters.size());
      EXPECT_EQ(name, parameters[names.size()].first);
      t.copy_(parameters[names.size()].second);
      names.push_back(name);
    };
    embedding.visit(take);
    trunk.visit(take);
    head.visit(take);
    EXPECT_EQ(names.size(), parameters.size());
    const at::Tensor ids = at::randint(c.vocab, {2, 9}, at::kLong);
    Pass pass;
    mixer::Layout layout = mixer::Layout::of(ids, {}, {});
    const at::Tensor x = trunk.forward(embedding.forward(ids, layout), layout, pass);
    EXPECT_TRUE(at::equal(head.forward(x, embedding), model.forward(ids, pass)));
  }
}

TEST(Trunk, AnEncoderSeesBothWays) {
  const at::NoGradGuard no_grad;
  at::manual_seed(4);
  const ModelConfig c = config(true);
  Embedding embedding(c, at::kFloat);
  Trunk trunk(c, at::kFloat, c.max_position, 0);
  embedding.visit(draw);
  trunk.visit(draw);
  const auto encode = [&](const at::Tensor& ids, mixer::Pattern pattern) {
    Pass pass;
    pass.pattern = pattern;
    mixer::Layout layout = mixer::Layout::of(ids, {}, {});
    return trunk.forward(embedding.forward(ids, layout), layout, pass);
  };
  const at::Tensor ids = at::randint(c.vocab, {1, 12}, at::kLong);
  at::Tensor other = ids.clone();
  other[0][11] = (other[0][11] + 1) % c.vocab;
  using mixer::Pattern;
  const auto first = [](const at::Tensor& x) { return x.narrow(1, 0, 1); };
  EXPECT_TRUE(at::equal(first(encode(ids, Pattern::kCausalSelf)),
                        first(encode(other, Pattern::kCausalSelf))));
  EXPECT_GT(distance(first(encode(ids, Pattern::kNoncausalSelf)),
                     first(encode(other, Pattern::kNoncausalSelf))),
            1e-4);
  // The last token sees the same either way in the first layer alone.
  EXPECT_GT(distance(encode(ids, Pattern::kNoncausalSelf), encode(ids, Pattern::kCausalSelf)),
            1e-3);
}

// Patches of an image have no ids: vectors go straight in; without positions their order is free.
TEST(Trunk, VectorsGoInWithoutAnEmbedding) {
  const at::NoGradGuard no_grad;
  at::manual_seed(5);
  const ModelConfig c = config(false);
  Trunk trunk(c, at::kFloat, c.max_position, 0);
  trunk.visit(draw);
  const auto run = [&](const at::Tensor& x) {
    Pass pass;
    pass.pattern = mixer::Pattern::kNoncausalSelf;
    mixer::Layout layout = mixer::Layout::of(x, {}, {});
    return trunk.forward(x, layout, pass);
  };
  const at::Tensor x = at::randn({2, 10, c.hidden}), order = at::randperm(10);
  const at::Tensor y = run(x);
  EXPECT_EQ(y.sizes(), x.sizes());
  EXPECT_LT(distance(run(x.index_select(1, order)), y.index_select(1, order)), 1e-5);
}

}  // namespace trunk_test
}  // namespace heed
