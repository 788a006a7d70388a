// The decoder against logits of transformers (tests/interop/make_model_fixtures.py), in all its
// ways to run: fused loops and ordinary operators, one pass, chunks and steps over caches, packs
// and forks; and what it writes and refuses.
#include "model/decoder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "cache/tensor_io.h"
#include "mixer/registry.h"
#include "model/apply_model.h"
#include "model/info.h"
#include "model/source.h"
#include "temp_folder.h"

namespace heed {
namespace decoder_test {

namespace fs = std::filesystem;

const std::string kFixtures = HEED_SOURCE_DIR "/tests/model/fixtures/";

double relative_error(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b.to(at::kDouble)).norm() / b.to(at::kDouble).norm()).item<double>();
}

class Family : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    expected_ = read_tensors(kFixtures + GetParam() + "/expected.safetensors");
    ids_ = expected_.at("input_ids");
    LoadOptions options;
    // As transformers does for a pass of this length; GPT-2's positions are a table.
    if (std::string(GetParam()) != "gpt2") options.context = std::max<int64_t>(ids_.size(1), 16);
    model_.emplace(Decoder::load(kFixtures + GetParam(), options));
  }
  at::Tensor logits() const { return expected_.at("logits"); }

  NamedTensors expected_;
  at::Tensor ids_;
  std::optional<Decoder> model_;
};

TEST_P(Family, OnePassGivesTheLogitsOfTransformers) {
  {
    const at::NoGradGuard no_grad;
    Pass pass;
    EXPECT_LT(relative_error(model_->forward(ids_, pass), logits()), 1e-5);
  }
  Pass pass;  // ordinary operators, as in training
  const at::Tensor module = model_->forward(ids_, pass);
  EXPECT_LT(relative_error(module, logits()), 1e-5);
}

TEST_P(Family, CachedPassesGiveTheSameLogits) {
  for (const int64_t prefill : {1, 13, 30}) {
    ApplyModelOptions options;
    options.cache = true;
    options.prefill = prefill;
    EXPECT_LT(relative_error(apply_model(*model_, ids_, options).at("logits"), logits()), 1e-5)
        << prefill;
  }
}

TEST_P(Family, WrittenFoldersReadBackBitForBit) {
  const test::TempFolder folder;
  for (const int64_t shard : {16000, 0}) {
    Decoder::SaveOptions options;
    options.shard_bytes = shard;
    model_->save(folder.path(), options);
    EXPECT_EQ(fs::exists(folder.path() + "/model.safetensors.index.json"), shard > 0);
    const Decoder again = Decoder::load(folder.path(), model_->options());
    const auto a = model_->parameters(), b = again.parameters();
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].first, b[i].first);
      EXPECT_TRUE(at::equal(a[i].second, b[i].second)) << a[i].first;
    }
    const at::NoGradGuard no_grad;
    Pass one, two;
    EXPECT_TRUE(at::equal(model_->forward(ids_, one), again.forward(ids_, two)));
    // tests/interop/model_families_test.py loads the folder with transformers.
    if (const char* keep = std::getenv("HEED_KEEP")) {
      fs::copy(folder.path(), fs::path(keep) / GetParam(),
               fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    }
    for (const auto& entry : fs::directory_iterator(folder.path())) fs::remove(entry.path());
  }
}

TEST_P(Family, GradientsReachEveryParameter) {
  model_->requires_grad(true);
  Pass pass;
  model_->forward(ids_, pass).square().sum().backward();
  for (const auto& [name, tensor] : model_->parameters()) {
    ASSERT_TRUE(tensor.grad().defined()) << name;
    EXPECT_GT(tensor.grad().abs().sum().item<double>(), 0) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Model, Family,
                         testing::Values("llama", "llama-biases", "llama-linear", "llama-dynamic",
                                         "llama-yarn", "llama-longrope", "llama-sharded-bf16",
                                         "mistral", "qwen2", "qwen3", "gpt2"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

ModelConfig tiny() {
  ModelConfig c;
  c.vocab = 50;
  c.hidden = 24;
  c.intermediate = 40;
  c.layers = 3;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 6;
  c.max_position = 4096;
  c.windows = {0, 0, 0};
  return c;
}

// Larger weights than Decoder::random draws, so that attention is far from uniform.
Decoder sharp(uint64_t seed, const ModelConfig& c = tiny()) {
  Decoder model = Decoder::random(c, seed);
  for (auto& [name, tensor] : model.parameters()) {
    if (tensor.dim() == 2) tensor.mul_(15);
  }
  return model;
}

at::Tensor some_ids(int64_t batch, int64_t length, uint64_t seed = 3) {
  at::manual_seed(seed);
  return at::randint(0, 50, {batch, length}, at::kLong);
}

TEST(Decoder, PacksEqualSeparateSequences) {
  const at::NoGradGuard no_grad;
  const Decoder model = sharp(1);
  const at::Tensor ids = some_ids(1, 40);
  const std::vector<int64_t> bounds = {0, 7, 7, 8, 40};
  for (const bool grad : {false, true}) {
    const at::AutoGradMode mode(grad);
    Pass pass;
    pass.cu_seqlens = bounds;
    const at::Tensor pack = model.forward(ids, pass);
    for (size_t s = 0; s + 1 < bounds.size(); ++s) {
      const int64_t count = bounds[s + 1] - bounds[s];
      if (count == 0) continue;
      Pass one;
      const at::Tensor alone = model.forward(ids.narrow(1, bounds[s], count), one);
      EXPECT_LT(relative_error(pack.narrow(1, bounds[s], count), alone), 1e-5);
    }
  }
}

TEST(Decoder, StepsOfSeveralSequencesAtDifferentPositionsGoTogether) {
  const at::NoGradGuard no_grad;
  const Decoder model = sharp(2);
  auto a = model.make_state(), b = model.make_state();
  const std::vector<int64_t> first = {1, 2, 3, 4, 5}, second = {6, 7};
  model.prefill(first, *a);
  model.prefill(second, *b);
  auto c = a->fork();
  const std::vector<int64_t> next = {8, 9, 10};
  DecoderState* states[] = {a.get(), b.get(), c.get()};
  const at::Tensor together = model.step(next, states);
  const std::vector<std::vector<int64_t>> texts = {
      {1, 2, 3, 4, 5, 8}, {6, 7, 9}, {1, 2, 3, 4, 5, 10}};
  for (size_t s = 0; s < texts.size(); ++s) {
    Pass pass;
    const at::Tensor whole = model.hidden(at::tensor(texts[s], at::kLong).unsqueeze(0), pass);
    EXPECT_LT(relative_error(together.select(1, static_cast<int64_t>(s)),
                             whole.select(1, whole.size(1) - 1)),
              1e-5);
  }
  EXPECT_EQ(a->length(), 6);
  EXPECT_EQ(b->length(), 3);
}

Programs mixed() {
  Programs p;
  p.heads = {{{0, 0}, {5, 2}}, {{70, 4}, {1, 0}}, {{9, 0}, {0, 0}}};
  return p;
}

TEST(Decoder, PlansGiveTheSameInChunksAndInOnePass) {
  const at::NoGradGuard no_grad;
  const Decoder model = sharp(3);
  const Programs programs = mixed();
  const at::Tensor ids = some_ids(1, 200);
  const std::vector<int64_t> list(ids.const_data_ptr<int64_t>(),
                                  ids.const_data_ptr<int64_t>() + 200);
  Pass pass;
  pass.programs = &programs;
  const at::Tensor whole = model.hidden(ids, pass);
  {
    const at::AutoGradMode mode(true);
    Pass module;
    module.programs = &programs;
    EXPECT_LT(relative_error(model.hidden(ids, module), whole), 1e-5);
  }
  Pass dense;
  EXPECT_GT(relative_error(model.hidden(ids, dense), whole), 1e-3);
  StateOptions options;
  options.programs = &programs;
  for (const int64_t chunk : {1, 3, 64, 100, 200}) {
    const auto state = model.make_state(options);
    for (int64_t begin = 0; begin < 200; begin += chunk) {
      const int64_t count = std::min<int64_t>(chunk, 200 - begin);
      Pass part;
      part.states = {state.get()};
      const at::Tensor out = model.hidden(ids.narrow(1, begin, count), part);
      EXPECT_LT(relative_error(out, whole.narrow(1, begin, count)), 2e-5)
          << chunk << " at " << begin;
    }
  }
}

// A number that lies between two levels may go to either, by a rounding of the products before: the
// passes agree far better than few bits and 16 do.
TEST(Decoder, PlansInFewBitsGiveTheSameInChunksAndInOnePass) {
  const at::NoGradGuard no_grad;
  const Decoder model = sharp(3);
  Programs programs = mixed();
  for (auto& layer : programs.heads) {
    for (HeadProgram& p : layer) {
      p.k_bits = 4, p.v_bits = 3;
      if (p.full()) p.sinks = 6;
    }
  }
  const at::Tensor ids = some_ids(1, 200);
  Pass pass, dense;
  pass.programs = &programs;
  const at::Tensor whole = model.hidden(ids, pass);
  const double cost = relative_error(model.hidden(ids, dense), whole);
  EXPECT_GT(cost, 0.05);
  StateOptions options;
  options.programs = &programs;
  for (const int64_t chunk : {1, 64, 130, 200}) {
    const auto state = model.make_state(options);
    std::vector<at::Tensor> parts;
    for (int64_t begin = 0; begin < 200; begin += chunk) {
      Pass part;
      part.states = {state.get()};
      parts.push_back(
          model.hidden(ids.narrow(1, begin, std::min<int64_t>(chunk, 200 - begin)), part));
    }
    EXPECT_LT(relative_error(at::cat(parts, 1), whole), 0.1 * cost) << chunk;
  }
  const at::AutoGradMode mode(true);
  EXPECT_THROW(model.hidden(ids, pass), UsageError);
}

TEST(Decoder, AFullPlanChangesNoBitAndAWideWindowIsDense) {
  const at::NoGradGuard no_grad;
  const Decoder model = sharp(4);
  const at::Tensor ids = some_ids(1, 150);
  Programs full, wide;
  full.heads.assign(3, std::vector<HeadProgram>(2));
  wide.heads.assign(3, std::vector<HeadProgram>(2, HeadProgram{150, 0}));
  ApplyModelOptions dense, planned;
  dense.cache = planned.cache = true;
  dense.prefill = planned.prefill = 100;
  dense.greedy = planned.greedy = 5;
  planned.programs = &full;
  const auto a = apply_model(model, ids, dense), b = apply_model(model, ids, planned);
  EXPECT_TRUE(at::equal(a.at("logits"), b.at("logits")));
  EXPECT_TRUE(at::equal(a.at("tokens"), b.at("tokens")));
  dense.cache = planned.cache = false;
  dense.greedy = planned.greedy = 0;
  const at::Tensor one = apply_model(model, ids, dense).at("logits");
  EXPECT_TRUE(at::equal(one, apply_model(model, ids, planned).at("logits")));
  planned.programs = &wide;
  EXPECT_LT(relative_error(apply_model(model, ids, planned).at("logits"), one), 1e-5);
}

TEST(Decoder, ADensePrefillSeesEverythingAndThenKeepsWhatThePlanSays) {
  const at::NoGradGuard no_grad;
  const Decoder model = sharp(5);
  Programs programs = mixed();
  programs.dense_prefill = true;
  const at::Tensor ids = some_ids(1, 90);
  const std::vector<int64_t> list(ids.const_data_ptr<int64_t>(),
                                  ids.const_data_ptr<int64_t>() + 90);
  StateOptions options;
  options.programs = &programs;
  const auto state = model.make_state(options);
  Pass dense;
  const at::Tensor last = model.hidden(ids, dense).narrow(1, 89, 1);
  EXPECT_LT(relative_error(model.prefill(list, *state, 16), last), 1e-5);
  EXPECT_EQ(state->layer(0).rows().runs(1).front().k.size(0), 2);

  // Whatever the first layer is: the state as a whole says how a prompt must come.
  ModelConfig config = tiny();
  config.head_dim = 8;
  config.mixers[0] = {"retnet", Json::object()};
  const Decoder hybrid = sharp(5, config);
  programs.heads[0].clear();
  const auto other = hybrid.make_state(options);
  EXPECT_TRUE(other->dense_prefill());
  Pass all;
  const at::Tensor end = hybrid.hidden(ids, all).narrow(1, 89, 1);
  EXPECT_LT(relative_error(hybrid.prefill(list, *other, 16), end), 1e-5);
  EXPECT_FALSE(other->dense_prefill());
}

TEST(Decoder, HalfPrecisionCachesComeClose) {
  const at::NoGradGuard no_grad;
  const Decoder model = sharp(6);
  const at::Tensor ids = some_ids(1, 60);
  Pass pass;
  const at::Tensor whole = model.hidden(ids, pass);
  for (const auto type : {at::kHalf, at::kBFloat16}) {
    StateOptions options;
    options.kv_dtype = type;
    const auto state = model.make_state(options);
    Pass first, second;
    first.states = second.states = {state.get()};
    model.hidden(ids.narrow(1, 0, 59), first);
    const at::Tensor out = model.hidden(ids.narrow(1, 59, 1), second);
    EXPECT_LT(relative_error(out, whole.narrow(1, 59, 1)), type == at::kHalf ? 1e-2 : 6e-2);
  }
}

TEST(Decoder, StatesAreSavedForkedAndCutBack) {
  const at::NoGradGuard no_grad;
  ModelConfig config = tiny();
  config.head_dim = 8;
  const Decoder plain = sharp(10);
  config.mixers[2] = {"retnet", Json::object()};
  const Decoder hybrid = Decoder::random(config, 10);
  const std::vector<int64_t> text = {5, 6, 7, 8, 9, 10, 11};
  const int64_t next = 12;
  for (const Decoder* model : {&plain, &hybrid}) {
    const auto state = model->make_state();
    model->prefill(text, *state);
    NamedTensors saved;
    state->save(saved);
    const auto fork = state->fork(), again = model->make_state();
    again->load(saved);
    EXPECT_EQ(again->length(), 7);
    EXPECT_EQ(again->bytes(), state->bytes());
    DecoderState* one[] = {state.get()};
    const at::Tensor expected = model->step({&next, 1}, one);
    DecoderState* two[] = {again.get()};
    EXPECT_LT(relative_error(model->step({&next, 1}, two), expected), 1e-6);
    DecoderState* three[] = {fork.get()};
    EXPECT_LT(relative_error(model->step({&next, 1}, three), expected), 1e-6);
  }
  const auto state = plain.make_state();
  plain.prefill(text, *state);
  DecoderState* one[] = {state.get()};
  const at::Tensor expected = plain.step({&next, 1}, one);
  state->truncate(7);
  EXPECT_LT(relative_error(plain.step({&next, 1}, one), expected), 1e-6);
  // A recurrence cannot go back; then no layer has.
  const auto recurrent = hybrid.make_state();
  hybrid.prefill(text, *recurrent);
  EXPECT_THROW(recurrent->truncate(3), Error);
  EXPECT_EQ(recurrent->length(), 7);
}

// Bfloat16 weights and activations on the CPU take the fused loops too.
TEST(Decoder, Bfloat16ComesClose) {
  const at::NoGradGuard no_grad;
  LoadOptions options;
  options.dtype = at::kBFloat16;
  const Decoder small = Decoder::load(kFixtures + "qwen3", options);
  const auto expected = read_tensors(kFixtures + "qwen3/expected.safetensors");
  Pass pass;
  EXPECT_LT(relative_error(small.forward(expected.at("input_ids"), pass), expected.at("logits")),
            5e-2);
}

// Prefills of several lengths, then steps together, in another order and fewer, equal one pass
// each.
void steps_equal_one_pass(const ModelConfig& config) {
  const at::NoGradGuard no_grad;
  const Decoder model = Decoder::random(config, 12);
  std::vector<std::vector<int64_t>> texts = {{1, 2, 3, 4, 5}, {6}, {7, 8}};
  std::vector<std::unique_ptr<DecoderState>> owned;
  std::vector<DecoderState*> states;
  for (const auto& text : texts) {
    owned.push_back(model.make_state());
    model.prefill(text, *owned.back());
    states.push_back(owned.back().get());
  }
  const auto check = [&](const at::Tensor& together, const std::vector<size_t>& which) {
    for (size_t s = 0; s < which.size(); ++s) {
      const auto& text = texts[which[s]];
      Pass pass;
      const at::Tensor whole = model.hidden(at::tensor(text, at::kLong).unsqueeze(0), pass);
      EXPECT_LT(relative_error(together.select(1, static_cast<int64_t>(s)),
                               whole.select(1, whole.size(1) - 1)),
                1e-5)
          << s;
    }
  };
  for (int64_t step = 0; step < 3; ++step) {
    const std::vector<int64_t> next = {10 + step, 20 + step, 30 + step};
    for (size_t s = 0; s < 3; ++s) texts[s].push_back(next[s]);
    check(model.step(next, states), {0, 1, 2});
  }
  // In another order, and fewer of them.
  const std::vector<int64_t> next = {40, 41};
  const std::vector<DecoderState*> some = {states[2], states[0]};
  texts[2].push_back(40);
  texts[0].push_back(41);
  check(model.step(next, some), {2, 0});
  EXPECT_EQ(states[1]->length(), 4);
  EXPECT_EQ(model.state_bytes(4), states[1]->bytes());
}

TEST(Decoder, RecurrentLayersStepSeveralSequencesTogether) {
  ModelConfig config = tiny();
  config.head_dim = 8;
  config.mixers[0] = {"gla", {{"conv", 4}}};
  config.mixers[1] = {"retnet", Json::object()};  // turns by position
  config.mixers[2] = {"rwkv6", Json::object()};
  steps_equal_one_pass(config);
}

TEST(Decoder, SequencesOfUnequalLengthsStepTogetherThroughEveryCausalMixer) {
  for (const mixer::Mechanism& m : mixer::registry().all()) {
    if (!m.layer || !m.card.has_pattern("causal self")) continue;
    SCOPED_TRACE(m.card.id);
    const std::string& options = m.card.tests.layer.options;
    ModelConfig config = tiny();
    config.head_dim = 8;
    for (int64_t l = 0; l < 2; ++l) {
      config.mixers[l] = {m.card.id, options.empty() ? Json::object() : Json::parse(options)};
    }
    steps_equal_one_pass(config);
  }
}

// The block of RWKV-7: later layers read the first one's values, the channel mix has a state.
TEST(Decoder, AMixerMayBringItsChannelLayer) {
  ModelConfig config = tiny();
  config.head_dim = 8;
  for (int64_t l = 0; l < 2; ++l) config.mixers[l] = {"rwkv7", {{"channel_mix", true}}};
  steps_equal_one_pass(config);
  const Decoder model = Decoder::random(config, 5);
  std::set<std::string> names;
  for (const auto& [name, tensor] : model.parameters()) names.insert(name);
  EXPECT_TRUE(names.count("model.layers.1.mixer.channel.key.weight"));
  EXPECT_FALSE(names.count("model.layers.1.mlp.up_proj.weight"));
  EXPECT_TRUE(names.count("model.layers.2.mlp.up_proj.weight"));
  EXPECT_FALSE(names.count("model.layers.0.mixer.value.base"));
  EXPECT_TRUE(names.count("model.layers.1.mixer.value.base"));
  const test::TempFolder folder;
  model.save(folder.path());
  const at::NoGradGuard no_grad;
  Pass one, two;
  EXPECT_TRUE(at::equal(model.forward(some_ids(1, 12), one),
                        Decoder::load(folder.path()).forward(some_ids(1, 12), two)));
}

class Recorder : public mixer::Taps {
 public:
  bool wants(std::string_view name) const override { return name == "1.o" || name == "1.q"; }
  at::Tensor tap(std::string_view name, const at::Tensor& value) override {
    seen[std::string(name)] = value.sizes().vec();
    return name == "1.o" ? value * 0 : value;
  }
  std::map<std::string, std::vector<int64_t>> seen;
};

TEST(Decoder, TapsSeeAndReplaceTensors) {
  const Decoder model = sharp(7);
  const at::Tensor ids = some_ids(2, 9);
  at::Tensor out[2];
  for (const bool grad : {false, true}) {
    const at::AutoGradMode mode(grad);
    Recorder taps;
    Pass pass;
    pass.taps = &taps;
    out[grad] = model.forward(ids, pass);
    EXPECT_EQ(taps.seen["1.q"], (std::vector<int64_t>{2, 9, 4, 6}));
    EXPECT_EQ(taps.seen["1.o"], (std::vector<int64_t>{2, 9, 4, 6}));
  }
  EXPECT_LT(relative_error(out[0], out[1]), 1e-5);
  Pass plain;
  EXPECT_GT(relative_error(out[0], model.forward(ids, plain)), 1e-3);

  // In every layer, whatever its mixer.
  ModelConfig config = tiny();
  config.head_dim = 8;
  config.mixers[1] = {"gla", Json::object()};
  const Decoder hybrid = Decoder::random(config, 7);
  Recorder taps;
  Pass pass, untapped;
  pass.taps = &taps;
  const at::Tensor tapped = hybrid.forward(ids, pass);
  EXPECT_EQ(taps.seen["1.q"], (std::vector<int64_t>{2, 9, 4, 4}));
  EXPECT_EQ(taps.seen["1.o"], (std::vector<int64_t>{2, 9, 4, 8}));
  EXPECT_GT(relative_error(tapped, hybrid.forward(ids, untapped)), 1e-6);
}

TEST(Decoder, AnotherMixerTrainsSavesAndDecodes) {
  ModelConfig config = tiny();
  config.head_dim = 8;
  config.mixers[1] = {"gla", Json::object()};
  Decoder model = Decoder::random(config, 8);
  const at::Tensor ids = some_ids(1, 20);
  const test::TempFolder folder;
  model.save(folder.path());
  Decoder again = Decoder::load(folder.path());
  EXPECT_EQ(again.config().mixers.at(1).id, "gla");
  at::Tensor whole;
  {
    const at::NoGradGuard no_grad;
    Pass one, two;
    whole = model.forward(ids, one);
    EXPECT_TRUE(at::equal(whole, again.forward(ids, two)));
    ApplyModelOptions options;
    options.cache = true;
    options.prefill = 11;
    EXPECT_LT(relative_error(apply_model(model, ids, options).at("logits"), whole), 1e-5);
  }
  again.requires_grad(true);
  Pass pass;
  again.forward(ids, pass).square().sum().backward();
  for (const auto& [name, tensor] : again.parameters())
    EXPECT_TRUE(tensor.grad().defined()) << name;
}

// ------------------------------------------------------------------------------------- what is
// refused

template <typename F>
std::string message(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

#define EXPECT_SAYS(text, statement)                                   \
  EXPECT_NE(message([&] { statement; }).find(text), std::string::npos) \
      << message([&] { statement; })

TEST(Decoder, RefusesIdsAndLengthsThatDoNotFit) {
  const at::NoGradGuard no_grad;
  ModelConfig config = tiny();
  config.max_position = 10;
  const Decoder model = Decoder::random(config, 9);
  Pass pass;
  EXPECT_SAYS("token id 50 is outside the vocabulary (0 to 49)",
              model.hidden(at::full({1, 3}, 50, at::kLong), pass));
  EXPECT_SAYS("token id -1", model.hidden(at::full({1, 3}, -1, at::kLong), pass));
  EXPECT_SAYS("longer than the model's context of 10",
              model.hidden(at::zeros({1, 11}, at::kLong), pass));
  pass.cu_seqlens = {0, 5};
  EXPECT_SAYS("cu_seqlens", model.hidden(at::zeros({1, 6}, at::kLong), pass));
  LoadOptions options;
  options.context = 65;
  EXPECT_SAYS("the model has positions for 64", Decoder::load(kFixtures + "gpt2", options));
}

// A copy of a fixture's folder whose config.json is changed.
std::string changed(const test::TempFolder& scratch, const std::string& fixture,
                    const std::function<void(Json&)>& change) {
  std::string folder = scratch.path() + "/" + fixture;
  fs::remove_all(folder);
  fs::copy(kFixtures + fixture, folder);
  Json config = read_json(folder + "/config.json");
  change(config);
  std::ofstream(folder + "/config.json") << config.dump();
  return folder;
}

TEST(Decoder, RefusesBrokenFolders) {
  const test::TempFolder scratch;
  const auto load = [&](const std::function<void(Json&)>& change) {
    return message([&] { Decoder::load(changed(scratch, "llama", change)); });
  };
  const auto expect = [](const std::string& said, const std::string& text) {
    EXPECT_NE(said.find(text), std::string::npos) << said;
    EXPECT_EQ(said.find('\n'), std::string::npos);
  };
  expect(load([](Json& c) { c["model_type"] = "mamba"; }), "model_type \"mamba\" is unknown");
  expect(load([](Json& c) { c.erase("model_type"); }), "\"model_type\" is missing");
  expect(load([](Json& c) { c.erase("hidden_size"); }), "hidden_size");
  expect(load([](Json& c) { c["hidden_size"] = "big"; }), "hidden_size");
  expect(load([](Json& c) { c["num_attention_heads"] = 3; }), "not a multiple");
  expect(load([](Json& c) { c["num_hidden_layers"] = -1; }), "layers");
  expect(load([](Json& c) { c["vocab_size"] = int64_t{1} << 60; }), "vocabulary");
  expect(load([](Json& c) { c["rope_parameters"]["rope_type"] = "moon"; }), "\"moon\" is unknown");
  expect(load([](Json& c) { c["hidden_act"] = "mish"; }), "\"mish\" is unknown");
  expect(load([](Json& c) { c["num_hidden_layers"] = 3; }),
         "model.layers.2.input_layernorm.weight is missing");
  expect(load([](Json& c) { c["intermediate_size"] = 50; }),
         "has shape [48, 32], the model needs [50, 32]");
  expect(load([](Json& c) { c["tie_word_embeddings"] = false; }), "lm_head.weight is missing");
  expect(load([](Json& c) {
           c["heed"] = {{"layers", {{"9", {{"mixer", "gla"}}}}}};
         }),
         "layers are 0 to 1");
  expect(load([](Json& c) { c["model_type"] = "heed"; }), "heed.base");
  expect(message([&] { Decoder::load(scratch.path()); }), "config.json is missing");
  expect(message([&] { Decoder::load("no-such-model"); }), "neither a file or folder nor a name");
  expect(message([&] { Decoder::load("./no/such.gguf"); }), "no such file");
}

TEST(Info, TellsShapesBytesAndHash) {
  const Json info = model_info(kFixtures + "mistral");
  EXPECT_EQ(info["shapes"]["kv_heads"], 2);
  EXPECT_EQ(info["windows"][0], 7);
  EXPECT_EQ(info["plan_hash"].get<std::string>().size(), 64u);
  const Json& last = info["kv_bytes"].back();
  EXPECT_EQ(last["tokens"], 64);
  EXPECT_EQ(last["float32"], 2 * 2 * 2 * 8 * 4 * 7);
  // The hash follows the stored keys, not the folder.
  EXPECT_EQ(Decoder::load(kFixtures + "mistral").hash(), info["plan_hash"].get<std::string>());
  EXPECT_NE(model_info(kFixtures + "llama")["plan_hash"], info["plan_hash"]);
}

TEST(Info, RefusesTensorsThatAreNotTheConfigurations) {
  const test::TempFolder scratch;
  const auto expect = [&](const std::function<void(Json&)>& change, const std::string& text) {
    const std::string folder = changed(scratch, "llama", change);
    const std::string said = message([&] { model_info(folder); });
    EXPECT_NE(said.find(text), std::string::npos) << said;
    EXPECT_EQ(said, message([&] { Decoder::load(folder); }));
  };
  expect([](Json& c) { c["num_hidden_layers"] = 3; },
         "model.layers.2.input_layernorm.weight is missing");
  expect([](Json& c) { c["intermediate_size"] = 50; }, "the model needs [50, 32]");
  // A layer that no machine could hold is looked at without being made.
  expect(
      [](Json& c) {
        c["heed"] = {
            {"layers", {{"1", {{"mixer", "gla"}, {"options", {{"gate_rank", 1 << 24}}}}}}}};
      },
      "model.layers.1.");
}

TEST(Source, ParameterCountIsThatOfTheTensors) {
  for (const char* name : {"llama", "llama-biases", "qwen2", "qwen3", "gpt2"}) {
    const Decoder model = Decoder::load(kFixtures + name);
    int64_t count = 0;
    for (const auto& [key, tensor] : model.parameters()) count += tensor.numel();
    EXPECT_EQ(count, model.config().parameters()) << name;
  }
}

}  // namespace decoder_test
}  // namespace heed
