// Models as files have them: GGUF whole and in parts with every key of rotary scaling, heads that a
// tied model stores, rotation of a part of each head, and one hash by whatever path. The right
// logits are those of transformers (fixtures/*/expected.safetensors) or follow from them.
#include "model/source.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <map>

#include "cache/tensor_io.h"
#include "io/atomic_file.h"
#include "model/decoder.h"
#include "model/hub.h"
#include "temp_folder.h"

namespace heed {
namespace source_test {

namespace fs = std::filesystem;

const std::string kFixtures = HEED_SOURCE_DIR "/tests/model/fixtures/";

double relative_error(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b.to(at::kDouble)).norm() / b.to(at::kDouble).norm()).item<double>();
}

at::Tensor logits(const std::string& model, const at::Tensor& ids) {
  const at::NoGradGuard no_grad;
  LoadOptions options;
  options.context = std::max<int64_t>(ids.size(1), 16);
  const Decoder decoder = Decoder::load(model, options);
  Pass pass;
  return decoder.forward(ids, pass);
}

// A GGUF file put together from keys and float32 tensors.
class GgufWriter {
 public:
  void text(const std::string& key, const std::string& value) {
    begin(key, 8);
    put<uint64_t>(values_, value.size());
    values_ += value;
  }
  void integer(const std::string& key, int64_t value) { put(begin(key, 11), value); }
  void real(const std::string& key, float value) { put(begin(key, 6), value); }
  void tensor(const std::string& name, const at::Tensor& value) {
    const at::Tensor t = value.to(at::kFloat).contiguous();
    put<uint64_t>(infos_, name.size());
    infos_ += name;
    put(infos_, static_cast<uint32_t>(t.dim()));
    for (int64_t d = t.dim() - 1; d >= 0; --d) put<uint64_t>(infos_, t.size(d));
    put<uint32_t>(infos_, 0);
    pad(data_);
    put<uint64_t>(infos_, data_.size());
    data_.append(static_cast<const char*>(t.const_data_ptr()), t.nbytes());
    ++tensors_;
  }
  void write(const std::string& path) const {
    std::string out = "GGUF";
    put<uint32_t>(out, 3);
    put<uint64_t>(out, tensors_);
    put<uint64_t>(out, count_);
    out += values_ + infos_;
    pad(out);
    write_text_atomic(path, out + data_);
  }

 private:
  template <typename T>
  static void put(std::string& to, T value) {
    to.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  static void pad(std::string& text) { text.resize((text.size() + 31) / 32 * 32); }
  std::string& begin(const std::string& key, uint32_t type) {
    put<uint64_t>(values_, key.size());
    values_ += key;
    put(values_, type);
    ++count_;
    return values_;
  }
  std::string values_, infos_, data_;
  uint64_t count_ = 0, tensors_ = 0;
};

// The row order that GGUF gives Llama's q and k.
at::Tensor interleaved(const at::Tensor& rows, int64_t heads) {
  return rows.reshape({heads, 2, rows.size(0) / heads / 2, -1}).transpose(1, 2).reshape_as(rows);
}

// The fixture llama-linear (rotary scaling linear, factor 4 or so) as GGUF.
class Linear : public ::testing::Test {
 protected:
  Linear()
      : config_(ModelSource::open(kFixtures + "llama-linear").config()),
        expected_(read_tensors(kFixtures + "llama-linear/expected.safetensors")),
        stored_(read_tensors(kFixtures + "llama-linear/model.safetensors")) {}

  void sizes(GgufWriter& w) const {
    w.text("general.architecture", "llama");
    w.integer("llama.block_count", config_.layers);
    w.integer("llama.context_length", config_.max_position);
    w.integer("llama.embedding_length", config_.hidden);
    w.integer("llama.feed_forward_length", config_.intermediate);
    w.integer("llama.attention.head_count", config_.heads);
    w.integer("llama.attention.head_count_kv", config_.kv_heads);
    w.integer("llama.attention.key_length", config_.head_dim);
    w.integer("llama.attention.value_length", config_.head_dim);
    w.real("llama.attention.layer_norm_rms_epsilon", static_cast<float>(config_.norm_eps));
    w.real("llama.rope.freq_base", static_cast<float>(config_.rope.base));
  }
  // All tensors by their GGUF names.
  std::vector<std::pair<std::string, at::Tensor>> tensors() const {
    static const std::map<std::string, std::string> names = {
        {"model.embed_tokens", "token_embd"},
        {"model.norm", "output_norm"},
        {"lm_head", "output"},
        {"input_layernorm", "attn_norm"},
        {"self_attn.q_proj", "attn_q"},
        {"self_attn.k_proj", "attn_k"},
        {"self_attn.v_proj", "attn_v"},
        {"self_attn.o_proj", "attn_output"},
        {"mlp.gate_proj", "ffn_gate"},
        {"mlp.up_proj", "ffn_up"},
        {"mlp.down_proj", "ffn_down"},
        {"post_attention_layernorm", "ffn_norm"}};
    std::vector<std::pair<std::string, at::Tensor>> out;
    for (const auto& [name, value] : stored_) {
      std::string module = name.substr(0, name.rfind('.')), block;
      if (name.rfind("model.layers.", 0) == 0) {
        const size_t dot = module.find('.', 13);
        block = "blk." + module.substr(13, dot - 13) + ".";
        module = module.substr(dot + 1);
      }
      at::Tensor rows = value;
      if (module == "self_attn.q_proj") rows = interleaved(value, config_.heads);
      if (module == "self_attn.k_proj") rows = interleaved(value, config_.kv_heads);
      out.emplace_back(block + names.at(module) + name.substr(name.rfind('.')), rows);
    }
    return out;
  }
  double error(const std::string& path) const {
    return relative_error(logits(path, expected_.at("input_ids")), expected_.at("logits"));
  }
  // The error of a file with these keys of rotary scaling.
  double error_with(const std::function<void(GgufWriter&)>& scaling) const {
    GgufWriter w;
    sizes(w);
    scaling(w);
    for (const auto& [name, value] : tensors()) w.tensor(name, value);
    w.write(folder_ / "m.gguf");
    return error(folder_ / "m.gguf");
  }

  const ModelConfig config_;
  const NamedTensors expected_, stored_;
  test::TempFolder folder_;
};

TEST_F(Linear, EveryWayToSayItGivesTheLogitsOfTransformers) {
  const auto factor = static_cast<float>(config_.rope.factor);
  ASSERT_GT(factor, 1);
  const std::string rope = "llama.rope.";
  EXPECT_GT(error_with([](GgufWriter&) {}), 1e-3);  // the scaling is seen
  EXPECT_LT(error_with([&](GgufWriter& w) { w.real(rope + "scale_linear", factor); }), 1e-5);
  EXPECT_LT(error_with([&](GgufWriter& w) { w.real(rope + "scaling.factor", factor); }), 1e-5);
  EXPECT_LT(error_with([&](GgufWriter& w) {
              w.text(rope + "scaling.type", "linear");
              w.real(rope + "scaling.factor", factor);
              w.real(rope + "scale_linear", 7);
            }),
            1e-5);
  const at::Tensor divisors = at::full({config_.head_dim / 2}, factor);
  EXPECT_LT(error_with([&](GgufWriter& w) { w.tensor("rope_freqs.weight", divisors); }), 1e-5);
  EXPECT_LT(error_with([&](GgufWriter& w) {
              w.text(rope + "scaling.type", "longrope");
              w.integer(rope + "scaling.original_context_length", 4);
              w.tensor("rope_factors_short.weight", at::ones({config_.head_dim / 2}));
              w.tensor("rope_factors_long.weight", divisors);
            }),
            1e-5);
  EXPECT_LT(error_with([&](GgufWriter& w) {
              w.text(rope + "scaling.type", "yarn");
              w.real(rope + "scaling.yarn_ext_factor", 0);
              w.real(rope + "scaling.factor", factor);
            }),
            1e-5);
}

TEST_F(Linear, PartsGiveTheSameModelByAnyOfThem) {
  const auto factor = static_cast<float>(config_.rope.factor);
  ASSERT_LT(error_with([&](GgufWriter& w) { w.real("llama.rope.scale_linear", factor); }), 1e-5);
  const std::string whole = ModelSource::open(folder_ / "m.gguf").hash();
  const auto all = tensors();
  constexpr int kParts = 3;
  GgufWriter parts[kParts];
  sizes(parts[0]);
  parts[0].real("llama.rope.scale_linear", factor);
  for (int i = 0; i < kParts; ++i) {
    parts[i].integer("split.no", i);
    parts[i].integer("split.count", kParts);
    parts[i].integer("split.tensors.count", static_cast<int64_t>(all.size()));
  }
  for (size_t i = 0; i < all.size(); ++i) parts[i % kParts].tensor(all[i].first, all[i].second);
  for (int i = 0; i < kParts; ++i) {
    parts[i].write(folder_ / fmt::format("{:05}-of-00003.gguf", i + 1).insert(0, "p-"));
  }
  for (int i = 1; i <= kParts; ++i) {
    const std::string path = folder_ / fmt::format("p-{:05}-of-00003.gguf", i);
    EXPECT_EQ(ModelSource::open(path).hash(), whole);
    EXPECT_LT(error(path), 1e-5) << path;
  }
}

TEST(Source, OneHashByEveryPath) {
  const test::TempFolder folder;
  const std::string fixture = kFixtures + "llama";
  const std::string hash = ModelSource::open(fixture).hash();
  fs::create_directory_symlink(fixture, folder / "folder");
  fs::create_symlink(fixture + "/model.safetensors", folder / "file.bin");
  for (const std::string& path :
       {fixture + "/", fixture + "/model.safetensors", fixture + "/config.json", folder / "folder",
        folder / "folder/model.safetensors", folder / "file.bin"}) {
    EXPECT_EQ(ModelSource::open(path).hash(), hash) << path;
    EXPECT_EQ(ModelSource::open(resolve_model(path)).hash(), hash) << path;
  }
}

// A copy of the fixture with other tensors and another config.json.
std::string with_tensors(const test::TempFolder& folder, const std::string& fixture,
                         const NamedTensors& tensors, const Json& change) {
  const std::string out = folder / "model";
  fs::create_directories(out);
  Json config = read_json(kFixtures + fixture + "/config.json");
  config.update(change);
  write_text_atomic(out + "/config.json", pretty_json(config));
  write_tensors(out + "/model.safetensors", tensors);
  return out;
}

TEST(TiedHead, AStoredOneThatDiffersIsKept) {
  const test::TempFolder folder;
  const at::Tensor ids = read_tensors(kFixtures + "llama/expected.safetensors").at("input_ids");
  NamedTensors tensors = read_tensors(kFixtures + "llama/model.safetensors");
  const at::Tensor embedding = tensors.at("model.embed_tokens.weight");
  const at::Tensor dense = logits(kFixtures + "llama", ids);

  tensors["lm_head.weight"] = embedding.clone();
  std::string model = with_tensors(folder, "llama", tensors, {{"tie_word_embeddings", true}});
  EXPECT_TRUE(ModelSource::open(model).config().tied);
  EXPECT_TRUE(at::equal(logits(model, ids), dense));

  // The last element alone differs.
  tensors["lm_head.weight"] = embedding.clone();
  tensors["lm_head.weight"][-1][-1] += 1;
  model = with_tensors(folder, "llama", tensors, {{"tie_word_embeddings", true}});
  EXPECT_FALSE(ModelSource::open(model).config().tied);
  const at::Tensor own = logits(model, ids);
  EXPECT_GT(relative_error(own, dense), 1e-3);
  model = with_tensors(folder, "llama", tensors, {{"tie_word_embeddings", false}});
  EXPECT_TRUE(at::equal(logits(model, ids), own));
  // And is written as it was read.
  model = with_tensors(folder, "llama", tensors, {{"tie_word_embeddings", true}});
  Decoder::load(model).save(folder / "again");
  EXPECT_EQ(read_json(folder / "again/config.json")["tie_word_embeddings"], false);
  EXPECT_TRUE(at::equal(logits(folder / "again", ids), own));

  // Of another type: equal if the numbers are.
  tensors["lm_head.weight"] = embedding.to(at::kBFloat16);
  tensors["model.embed_tokens.weight"] = embedding.to(at::kBFloat16).to(at::kFloat);
  model = with_tensors(folder, "llama", tensors, {{"tie_word_embeddings", true}});
  EXPECT_TRUE(ModelSource::open(model).config().tied);
  tensors["model.embed_tokens.weight"] = embedding;
  model = with_tensors(folder, "llama", tensors, {{"tie_word_embeddings", true}});
  EXPECT_FALSE(ModelSource::open(model).config().tied);
}

TEST(TiedHead, AHeadAloneIsBoth) {
  const test::TempFolder folder;
  const at::Tensor ids = read_tensors(kFixtures + "llama/expected.safetensors").at("input_ids");
  NamedTensors tensors = read_tensors(kFixtures + "llama/model.safetensors");
  tensors["lm_head.weight"] = tensors.at("model.embed_tokens.weight");
  tensors.erase("model.embed_tokens.weight");
  const std::string model = with_tensors(folder, "llama", tensors, {{"tie_word_embeddings", true}});
  EXPECT_TRUE(at::equal(logits(model, ids), logits(kFixtures + "llama", ids)));
}

// Rotation of the first 4 of 8 dimensions equals rotation of all 8 of a model with its q and k rows
// in another order, pairs (i, i + 4), of which two do not turn.
TEST(PartialRotation, EqualsAWholeRotationOfWhichSomePairsStand) {
  const test::TempFolder folder;
  const std::string fixture = "llama-linear";
  const at::Tensor ids =
      read_tensors(kFixtures + fixture + "/expected.safetensors").at("input_ids");
  NamedTensors tensors = read_tensors(kFixtures + fixture + "/model.safetensors");
  const double base = 500;
  const auto rope = [&](Json more) {
    more["rope_theta"] = base;
    return Json{{"rope_parameters", std::move(more)}, {"rope_scaling", nullptr}};
  };
  std::string model = with_tensors(
      folder, fixture, tensors, rope({{"rope_type", "default"}, {"partial_rotary_factor", 0.5}}));
  ASSERT_EQ(ModelSource::open(model).config().rotary_dims(), 4);
  const at::Tensor fused = logits(model, ids);
  {
    Pass pass;  // ordinary operators, as in training
    EXPECT_LT(relative_error(Decoder::load(model).forward(ids, pass), fused), 1e-5);
  }
  const at::Tensor order = at::tensor({0, 1, 4, 6, 2, 3, 5, 7}, at::kLong);
  for (auto& [name, value] : tensors) {
    if (name.find("q_proj") == name.npos && name.find("k_proj") == name.npos) continue;
    value = value.reshape({value.size(0) / 8, 8, -1}).index_select(1, order).reshape_as(value);
  }
  const std::vector<double> divisors = {1, std::pow(base, 0.25), 1e30, 1e30};
  model = with_tensors(folder, fixture, tensors,
                       rope({{"rope_type", "longrope"},
                             {"factor", 1},
                             {"attention_factor", 1},
                             {"original_max_position_embeddings", 4},
                             {"short_factor", divisors},
                             {"long_factor", divisors}}));
  EXPECT_LT(relative_error(fused, logits(model, ids)), 1e-5);
  model = with_tensors(folder, fixture, tensors, rope({{"rope_type", "default"}}));
  EXPECT_GT(relative_error(fused, logits(model, ids)), 1e-3);
}

}  // namespace source_test
}  // namespace heed
