// Every causal layer of the registry in a small decoder: it trains, is saved and loaded, and chunks
// and steps over states give what one pass gives.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/registry.h"
#include "model/decoder.h"
#include "temp_folder.h"

namespace heed {
namespace mixers_test {

double relative_error(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b.to(at::kDouble)).norm() / b.to(at::kDouble).norm()).item<double>();
}

std::vector<std::string> causal_layers() {
  std::vector<std::string> ids;
  for (const mixer::Mechanism& m : mixer::registry().all()) {
    if (m.layer && m.card.has_pattern("causal self")) ids.push_back(m.card.id);
  }
  return ids;
}

class MixerInDecoder : public ::testing::TestWithParam<std::string> {
 protected:
  static ModelConfig config() {
    ModelConfig c;
    c.family = "llama";
    c.vocab = 40, c.hidden = 32, c.intermediate = 48;
    c.layers = 2, c.heads = 4, c.kv_heads = 2, c.head_dim = 8;
    c.windows.assign(2, 0);
    c.max_position = 128;
    c.tied = true;
    const std::string& options = mixer::find_card(GetParam()).tests.layer.options;
    c.mixers[1] = {GetParam(), options.empty() ? Json::object() : Json::parse(options)};
    return c;
  }
};

TEST_P(MixerInDecoder, TrainsSavesAndDecodes) {
  Decoder model = Decoder::random(config(), 5);
  const at::Tensor ids = at::randint(0, 40, {2, 41}, at::kLong);
  const auto loss_of = [&](mixer::Aux* aux) {
    Pass pass;
    pass.aux = aux;
    const at::Tensor p = model.forward(ids.slice(1, 0, 40), pass).log_softmax(-1);
    return p.gather(2, ids.slice(1, 1).unsqueeze(2)).mean().neg();
  };
  model.requires_grad(true);
  std::vector<double> losses;
  for (int step = 0; step < 2; ++step) {
    mixer::Aux aux;
    at::Tensor loss = loss_of(&aux);
    losses.push_back(loss.item<double>());
    for (const auto& [name, own] : aux.losses()) loss = loss + own;
    loss.backward();
    const at::NoGradGuard no_grad;
    for (auto& [name, tensor] : model.parameters()) {
      if (step == 1) {
        ASSERT_TRUE(tensor.grad().defined()) << name;
        EXPECT_TRUE(tensor.grad().isfinite().all().item<bool>()) << name;
      }
      tensor.sub_(tensor.grad(), 0.05);
      tensor.mutable_grad() = at::Tensor();
    }
  }
  model.requires_grad(false);
  const at::NoGradGuard no_grad;
  losses.push_back(loss_of(nullptr).item<double>());
  EXPECT_LT(losses[1], losses[0]);
  EXPECT_LT(losses[2], losses[1]);

  const test::TempFolder folder;
  model.save(folder.path());
  const Decoder again = Decoder::load(folder.path());
  EXPECT_EQ(again.config().mixers.at(1).id, GetParam());
  Pass one;
  const at::Tensor whole = again.forward(ids, one);
  Pass pass;
  EXPECT_TRUE(whole.equal(model.forward(ids, pass)));

  // Prompts of two lengths in chunks, then both sequences together token by token.
  std::vector<std::unique_ptr<DecoderState>> states;
  std::vector<DecoderState*> both;
  const std::vector<int64_t> prompt = {25, 33};
  const at::Tensor flat = ids.contiguous();
  for (int64_t b = 0; b < 2; ++b) {
    states.push_back(again.make_state());
    both.push_back(states.back().get());
    const at::Tensor last = again.logits(again.prefill(
        {flat.const_data_ptr<int64_t>() + b * 41, static_cast<size_t>(prompt[b])}, *both[b], 10));
    EXPECT_LT(relative_error(last[0][0], whole[b][prompt[b] - 1]), 2e-5);
  }
  for (int64_t n = 0; n < 8; ++n) {
    const std::vector<int64_t> next = {ids[0][prompt[0] + n].item<int64_t>(),
                                       ids[1][prompt[1] + n].item<int64_t>()};
    const at::Tensor scores = again.logits(again.step(next, both));
    for (int64_t b = 0; b < 2; ++b) {
      EXPECT_LT(relative_error(scores[0][b], whole[b][prompt[b] + n]), 2e-5) << n;
    }
  }
  EXPECT_EQ(both[0]->length(), 33);
  EXPECT_EQ(both[0]->bytes(), again.state_bytes(33));
}

INSTANTIATE_TEST_SUITE_P(All, MixerInDecoder, ::testing::ValuesIn(causal_layers()),
                         [](const ::testing::TestParamInfo<std::string>& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace mixers_test
}  // namespace heed
