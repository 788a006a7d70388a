// Latent attention: absorbed and expanded are one result; with identity maps it is plain attention.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "io/error.h"
#include "mixer/registry.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace mla_test {

using testing::relative_error;

at::Tensor out(const NamedTensors& in, const char* form, const char* absorbed) {
  return testing::run(find_mechanism("mla"), in, form, {{"absorbed", absorbed}}).at("out");
}

TEST(Mla, AbsorbedIsTheSame) {
  Try one;
  one.sizes = {{"B", 2}, {"H", 3}, {"Dn", 16}, {"Dr", 8}, {"Dc", 288}, {"V", 12}};  // wide latents
  NamedTensors in = testing::make_inputs(find_mechanism("mla"), one, 37, 1);
  in.at("w_uk") = in.at("w_uk") / std::sqrt(288.0);  // else logits of some hundreds, which round
  const at::Tensor want = out(in, "naive", "false");
  EXPECT_LE(relative_error(out(in, "parallel", "false"), want), 4e-6);
  EXPECT_LE(relative_error(out(in, "naive", "true"), want), 4e-6);
  EXPECT_LE(relative_error(out(in, "parallel", "true"), want), 4e-6);
}

TEST(Mla, WithIdentityMapsIsSoftmaxAttentionOverTheLatents) {
  at::manual_seed(2);
  const at::Tensor q = at::randn({1, 30, 2, 8}), c = at::randn({1, 30, 8});
  const at::Tensor eye = at::eye(8).expand({2, 8, 8}).contiguous();
  const NamedTensors in = {{"q_nope", q}, {"q_rope", at::zeros({1, 30, 2, 4})},
                           {"c", c},      {"k_rope", at::randn({1, 30, 4})},
                           {"w_uk", eye}, {"w_uv", eye}};
  const NamedTensors plain = {{"q", q}, {"k", c.unsqueeze(2)}, {"v", c.unsqueeze(2)}};
  const at::Tensor want =
      testing::run(find_mechanism("softmax"), plain, "parallel",
                   {{"causal", "true"}, {"scale", std::to_string(1 / std::sqrt(12.0))}})
          .at("out");
  for (const char* absorbed : {"false", "true"}) {
    EXPECT_LE(relative_error(out(in, "parallel", absorbed), want), 4e-6) << absorbed;
  }
}

// The cache holds the latents and one rotated key a token; queries and latents may be of low rank.
TEST(Mla, TheLayerKeepsLatentsAlone) {
  LayerConfig config;
  config.hidden = 32, config.heads = 4;
  config.options = {{"kv_rank", 20}, {"rope_dim", 6}, {"nope_dim", 7}, {"v_dim", 5}, {"q_rank", 9}};
  at::manual_seed(3);
  const auto layer = make_layer("mla", config);
  for (auto& [name, t] : layer->parameters()) t.mul_(4.0);
  const at::Tensor x = at::randn({1, 50, 32});
  Call whole, step;
  const at::Tensor want = layer->forward(x, whole);
  const auto state = layer->make_state();
  step.states = {state.get()};
  std::vector<at::Tensor> parts = {layer->forward(x.slice(1, 0, 48), step)};
  for (const int64_t t : {48, 49}) parts.push_back(layer->forward(x.slice(1, t, t + 1), step));
  EXPECT_LE(relative_error(at::cat(parts, 1), want), 5e-6);
  EXPECT_EQ(std::get<RowsPart>(layer->state().parts[0]).formula_bytes(50), 50 * (20 + 6) * 4);
  config.options = {{"window", 8}};
  EXPECT_THROW(make_layer("mla", config), UsageError);
}

}  // namespace mla_test
}  // namespace heed::mixer
