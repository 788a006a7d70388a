// Model configurations that are broken or hostile, and what is written reading back to the same.
// The families' values against transformers are tested in tests/model.
#include "io/model_config.h"

#include <gtest/gtest.h>

#include <limits>

#include "io_test_helper.h"

namespace heed {
namespace {

using testing::Bytes;

Json llama() {
  return Json::parse(R"({"model_type": "llama", "vocab_size": 64, "hidden_size": 32,
      "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
      "num_key_value_heads": 2, "max_position_embeddings": 64})");
}

Json gpt2() {
  return Json::parse(R"({"model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_layer": 2,
      "n_head": 4, "n_positions": 64})");
}

// The message with which `change` of a sound configuration is refused; "" if it is read.
std::string refusal(Json json, const Json& change) {
  json.update(change);
  try {
    parse_config(json, "config.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void expect_refused(Json json, const char* change, const std::string& part) {
  const std::string message = refusal(std::move(json), Json::parse(change));
  EXPECT_NE(message.find(part), std::string::npos) << change << ": " << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(ModelConfig, SizesBeyondReasonTakeNoMemory) {
  for (const char* count : {"-1", "0", "10001", "9223372036854775807"}) {
    expect_refused(gpt2(), fmt::format(R"({{"n_layer": {}}})", count).c_str(), "number of layers");
    expect_refused(llama(), fmt::format(R"({{"num_hidden_layers": {}}})", count).c_str(),
                   "number of layers");
  }
  expect_refused(gpt2(), R"({"n_embd": 9223372036854775807})", "hidden size");
  expect_refused(llama(), R"({"num_key_value_heads": 0})", "key/value heads");
  expect_refused(llama(), R"({"num_attention_heads": -4, "head_dim": 8})", "number of heads");
  expect_refused(llama(), R"({"num_hidden_layers": 2.5})", "integer");
  expect_refused(llama(), R"({"vocab_size": 18446744073709551615})", "integer");
}

TEST(ModelConfig, WindowsOfLayersThatAreNone) {
  const Json sliding = {{"model_type", "qwen2"}, {"use_sliding_window", true}};
  Json qwen = llama();
  qwen.update(sliding);
  expect_refused(qwen, R"({"max_window_layers": -1})", "max_window_layers");
  expect_refused(qwen, R"({"max_window_layers": -9223372036854775808})", "max_window_layers");
  expect_refused(qwen, R"({"max_window_layers": 0, "sliding_window": -4})", "sliding_window");
  EXPECT_EQ(refusal(qwen, {{"max_window_layers", 100}}), "");
}

TEST(ModelConfig, NamesFromTheFileStayOnOneLine) {
  expect_refused(llama(), R"({"model_type": "a\nb"})", "model_type");
  expect_refused(llama(), R"({"hidden_act": "a\nb"})", "activation");
  expect_refused(llama(), R"({"rope_scaling": {"rope_type": "a\nb"}})", "rotary scaling");
  expect_refused(llama(), R"({"layer_types": ["a\nb", "full_attention"]})", "layer_types");
  expect_refused(llama(), R"({"heed": {"layers": {"a\nb": {}}}})", "heed.layers");
}

TEST(ModelConfig, RotaryScalingThatGivesNoFiniteAngles) {
  const auto rope = [](const char* text) { return fmt::format(R"({{"rope_scaling": {}}})", text); };
  const auto refused = [&](const char* text, const char* part) {
    expect_refused(llama(), rope(text).c_str(), part);
  };
  refused(R"({"rope_type": "linear", "factor": -1})", "scaling factor");
  refused(R"({"rope_type": "dynamic", "factor": 0})", "scaling factor");
  refused(R"({"rope_type": "yarn", "factor": 2, "beta_fast": 0})", "beta_fast");
  refused(R"({"rope_type": "yarn", "factor": 2, "beta_slow": -1})", "beta_slow");
  refused(R"({"rope_type": "yarn", "factor": 2, "rope_theta": 1})", "rope_theta");
  refused(R"({"rope_type": "yarn", "factor": 2, "mscale": -1})", "mscale");
  refused(R"({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4})", "high_freq_factor");
  refused(R"({"rope_type": "llama3", "factor": 8, "low_freq_factor": 0})", "low_freq_factor");
  refused(R"({"rope_type": "linear", "factor": 8, "original_max_position_embeddings": -1})",
          "original_max_position_embeddings");
  refused(R"({"rope_type": "longrope", "factor": 8, "short_factor": [1, 1, 1, 0],
              "long_factor": [1, 1, 1, 1]})",
          "divisor");
  refused(R"({"rope_type": "longrope", "factor": 8, "short_factor": [1, 1, 1, 1],
              "long_factor": [1, 1, 1]})",
          "longrope needs");
  expect_refused(llama(), R"({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2}})",
                 "dynamic");
}

TEST(ModelConfig, AHeedObjectThatIsNone) {
  // Only model_type "heed" takes the model from heed.base.
  Json json = llama();
  json["heed"] = {{"base", 3}};
  const ModelConfig config = parse_config(json, "config.json");
  EXPECT_EQ(config_to_json(config, "float32")["hidden_size"], 32);
  expect_refused(llama(), R"({"heed": 3})", "heed");
  expect_refused(llama(), R"({"model_type": "heed", "heed": {"base": 3}})", "heed.base");
  expect_refused(llama(), R"({"heed": {"layers": {"2": {"mixer": "gla"}}}})", "layers are 0 to 1");
  expect_refused(llama(), R"({"heed": {"layers": {"0": {"mixer": "gla", "options": []}}}})",
                 "options");
}

TEST(ModelConfig, WindowsReadBack) {
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
    for (const char* types : {R"(["full_attention", "sliding_attention"])",
                              R"(["sliding_attention", "sliding_attention"])",
                              R"(["full_attention", "full_attention"])"}) {
      Json json = llama();
      json["model_type"] = family;
      json["head_dim"] = 8;
      json["sliding_window"] = 16;
      json["layer_types"] = Json::parse(types);
      const ModelConfig config = parse_config(json, "config.json");
      const Json written = config_to_json(config, "float32");
      EXPECT_EQ(parse_config(written, "again").windows, config.windows) << family << types;
    }
  }
}

TEST(ModelConfig, SizesThatAreGivenForEachLayer) {
  Json json = llama();
  json.update({{"num_key_value_heads", {2, 2}},
               {"intermediate_size", {48, 48}},
               {"num_attention_heads", {4, 4}},
               {"layer_types", {"full_attention", "full_attention"}}});
  const ModelConfig config = parse_config(json, "config.json");
  EXPECT_EQ(canonical_shapes(config), canonical_shapes(parse_config(llama(), "config.json")));
  expect_refused(llama(), R"({"num_key_value_heads": [2, 4]})", "of layer 1 is 4, of layer 0 2");
  expect_refused(llama(), R"({"intermediate_size": [48, 64]})", "\"intermediate_size\" of layer 1");
  expect_refused(llama(), R"({"num_attention_heads": [4]})", "list of 2 entries");
  expect_refused(llama(), R"({"intermediate_size": ["48", "48"]})", "integer");
  json = llama();
  json["sliding_window"] = {nullptr, 16};
  EXPECT_EQ(parse_config(json, "config.json").windows, (std::vector<int64_t>{0, 16}));
  json["sliding_window"] = {8, 16};
  const ModelConfig windows = parse_config(json, "config.json");
  EXPECT_EQ(parse_config(config_to_json(windows, "float32"), "again").windows,
            (std::vector<int64_t>{8, 16}));
  expect_refused(llama(), R"({"sliding_window": [-1, 8]})", "sliding window is -1");
}

TEST(ModelConfig, RotationOfAPartOfEachHead) {
  for (const char* change : {R"({"partial_rotary_factor": 0.5})",
                             R"({"rope_parameters": {"partial_rotary_factor": 0.5}})"}) {
    Json json = llama();
    json.update(Json::parse(change));
    const ModelConfig config = parse_config(json, "config.json");
    EXPECT_EQ(config.rope.dims, 4);
    EXPECT_EQ(config.rotary_dims(), 4);
    EXPECT_EQ(parse_config(config_to_json(config, "float32"), "again").rope.dims, 4);
  }
  Json whole = llama();
  whole["partial_rotary_factor"] = 1.0;
  EXPECT_EQ(parse_config(whole, "config.json").rope.dims, 0);
  // 0.29 * 200 is 57.99...: what is written must come back.
  for (int64_t dims = 2; dims < 200; dims += 2) {
    Json json = llama();
    json["head_dim"] = 200;
    ModelConfig config = parse_config(json, "config.json");
    config.rope.dims = dims;
    EXPECT_EQ(parse_config(config_to_json(config, "float32"), "again").rope.dims, dims);
  }
  for (const char* bad : {"0", "-1", "1.5", "0.4", "1e300"}) {
    expect_refused(llama(), fmt::format(R"({{"partial_rotary_factor": {}}})", bad).c_str(),
                   "partial_rotary_factor");
  }
  expect_refused(llama(), R"({"partial_rotary_factor": "half"})", "partial_rotary_factor");
}

TEST(ModelConfig, NumbersOutOfRange) {
  struct Bad {
    const char* change;
    const char* part;
  };
  for (const Bad& bad :
       {Bad{R"({"hidden_size": -32})", "hidden"}, Bad{R"({"hidden_size": 0})", "hidden"},
        Bad{R"({"hidden_size": "32"})", "hidden_size"}, Bad{R"({"vocab_size": 1e9})", "vocab_size"},
        Bad{R"({"vocab_size": 999999999})", "vocabulary"},
        Bad{R"({"intermediate_size": -1})", "intermediate"},
        Bad{R"({"head_dim": 0})", "head dimension"}, Bad{R"({"head_dim": 7})", "odd"},
        Bad{R"({"rms_norm_eps": -1e-6})", "epsilon"},
        Bad{R"({"rms_norm_eps": "small"})", "rms_norm_eps"},
        Bad{R"({"rms_norm_eps": 1})", "epsilon"},
        Bad{R"({"max_position_embeddings": 0})", "context"},
        Bad{R"({"max_position_embeddings": 9000000000000})", "context"},
        Bad{R"({"rope_theta": 0})", "rope_theta"}, Bad{R"({"rope_theta": -10000})", "rope_theta"},
        Bad{R"({"rope_theta": true})", "rope_theta"},
        Bad{R"({"tie_word_embeddings": 1})", "tie_word_embeddings"},
        Bad{R"({"eos_token_id": "2"})", "eos_token_id"}}) {
    expect_refused(llama(), bad.change, bad.part);
  }
}

class GgufModel : public ::testing::Test {
 protected:
  void integer(const std::string& key, uint32_t value) {
    values_.text(key).number<uint32_t>(4).number(value);
    ++count_;
  }
  void real(const std::string& key, float value) {
    values_.text(key).number<uint32_t>(6).number(value);
    ++count_;
  }
  void text(const std::string& key, const std::string& value) {
    values_.text(key).number<uint32_t>(8).text(value);
    ++count_;
  }
  void sizes() {
    text("general.architecture", "llama");
    integer("llama.block_count", 2);
    integer("llama.embedding_length", 4);
    integer("llama.feed_forward_length", 4);
    integer("llama.attention.head_count", 2);
    integer("llama.context_length", 32);
    real("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  }
  // Numbers as an array of int32, or of booleans.
  void list(const std::string& key, const std::vector<int32_t>& numbers, bool booleans = false) {
    values_.text(key).number<uint32_t>(9).number<uint32_t>(booleans ? 7 : 5);
    values_.number<uint64_t>(numbers.size());
    for (const int32_t n : numbers) {
      booleans ? values_.number<uint8_t>(static_cast<uint8_t>(n)) : values_.number(n);
    }
    ++count_;
  }
  void divisors(const std::string& name, const std::vector<float>& numbers) {
    tensors_.text(name).number<uint32_t>(1).number<uint64_t>(numbers.size());
    tensors_.number<uint32_t>(0).number<uint64_t>(32 * ++tensor_count_);
    data_.pad(32);
    for (const float n : numbers) data_.number(n);
  }
  ModelConfig read() {
    Bytes bytes;
    bytes.raw("GGUF").number<uint32_t>(3).number<uint64_t>(1 + tensor_count_);
    bytes.number<uint64_t>(count_).raw(values_.str()).text("token_embd.weight");
    bytes.number<uint32_t>(2).number<uint64_t>(4).number<uint64_t>(2).number<uint32_t>(0);
    bytes.number<uint64_t>(0).raw(tensors_.str());
    bytes.pad(32).raw(std::string(32, '\0')).raw(data_.str());
    bytes_ = bytes.str();
    return config_from_gguf(parse_gguf(std::as_bytes(std::span(bytes_)), "model.gguf"));
  }
  std::string refusal() {
    try {
      read();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  void expect_refused(const char* part) {
    const std::string message = refusal();
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }

  Bytes values_, tensors_, data_;
  uint64_t count_ = 0, tensor_count_ = 0;
  std::string bytes_;
};

TEST_F(GgufModel, AWindowIsKeptInConfigJson) {
  sizes();
  integer("llama.attention.sliding_window", 8);
  const ModelConfig config = read();
  EXPECT_EQ(config.windows, (std::vector<int64_t>{8, 8}));
  EXPECT_EQ(parse_config(config_to_json(config, "float32"), "again").windows, config.windows);
}

TEST_F(GgufModel, NumbersThatAreNone) {
  sizes();
  real("llama.rope.freq_base", std::numeric_limits<float>::quiet_NaN());
  EXPECT_NE(refusal().find("rope_theta"), std::string::npos) << refusal();
}

TEST_F(GgufModel, InfiniteScaling) {
  sizes();
  text("llama.rope.scaling.type", "yarn");
  real("llama.rope.scaling.factor", std::numeric_limits<float>::infinity());
  EXPECT_NE(refusal().find("scaling factor"), std::string::npos) << refusal();
}

TEST_F(GgufModel, UnknownArchitecture) {
  text("general.architecture", "mam\nba");
  EXPECT_NE(refusal().find("mam\\x0aba"), std::string::npos) << refusal();
}

TEST_F(GgufModel, TheOlderKeyOfLinearScaling) {
  sizes();
  real("llama.rope.scale_linear", 4);
  const ModelConfig config = read();
  EXPECT_EQ(config.rope.type, "linear");
  EXPECT_EQ(config.rope.factor, 4);
  text("llama.rope.scaling.type", "none");
  EXPECT_EQ(read().rope.type, "default");
}

TEST_F(GgufModel, TheNewerKeyCountsBeforeTheOlder) {
  sizes();
  real("llama.rope.scale_linear", 4);
  real("llama.rope.scaling.factor", 2);  // of no type: linear
  EXPECT_EQ(read().rope.type, "linear");
  EXPECT_EQ(read().rope.factor, 2);
}

TEST_F(GgufModel, NoFactorAndFactorZeroScaleNothing) {
  sizes();
  EXPECT_EQ(read().rope.type, "default");
  real("llama.rope.scaling.factor", 0);
  EXPECT_EQ(read().rope.type, "default");
}

TEST_F(GgufModel, YarnWithAllItsKeys) {
  sizes();
  text("llama.rope.scaling.type", "yarn");
  real("llama.rope.scaling.factor", 8);
  integer("llama.rope.scaling.original_context_length", 16);
  EXPECT_EQ(read().rope.attention_factor, 0);  // by the formula
  EXPECT_EQ(read().rope.original_max_position, 16);
  real("llama.rope.scaling.yarn_beta_fast", 16);
  real("llama.rope.scaling.yarn_beta_slow", 2);
  real("llama.rope.scaling.yarn_log_multiplier", 0.5);
  const RopeConfig rope = read().rope;
  EXPECT_EQ(rope.type, "yarn");
  EXPECT_EQ(rope.beta_fast, 16);
  EXPECT_EQ(rope.beta_slow, 2);
  EXPECT_EQ(rope.mscale, 1);
  EXPECT_EQ(rope.mscale_all_dim, 0.5);
  real("llama.rope.scaling.attn_factor", 3);
  // (0.1 ln 8 + 1) / (0.05 ln 8 + 1) * 3
  EXPECT_NEAR(read().rope.attention_factor, 3 * 1.2079441541679836 / 1.1039720770839918, 1e-12);
}

TEST_F(GgufModel, YarnWithoutExtrapolationIsLinear) {
  sizes();
  text("llama.rope.scaling.type", "yarn");
  real("llama.rope.scaling.factor", 8);
  real("llama.rope.scaling.yarn_ext_factor", 0);
  EXPECT_EQ(read().rope.long_factor, std::vector<double>());
  EXPECT_EQ(read().rope.type, "linear");
  real("llama.rope.scaling.yarn_attn_factor", 2);
  EXPECT_EQ(read().rope.type, "longrope");
  EXPECT_EQ(read().rope.long_factor, std::vector<double>{8});
  EXPECT_EQ(read().rope.attention_factor, 2);
}

TEST_F(GgufModel, AFactorOnCosAndSinAlone) {
  sizes();
  real("llama.rope.scaling.attn_factor", 1.5);
  real("llama.rope.scale_linear", 4);
  const RopeConfig rope = read().rope;
  EXPECT_EQ(rope.type, "longrope");
  EXPECT_EQ(rope.attention_factor, 1.5);
  EXPECT_EQ(rope.short_factor, std::vector<double>{4});
  EXPECT_EQ(rope.long_factor, std::vector<double>{4});
}

TEST_F(GgufModel, DivisorsAndScalingTogether) {
  sizes();
  divisors("rope_freqs.weight", {3});
  EXPECT_EQ(read().rope.long_factor, std::vector<double>{3});
  EXPECT_EQ(read().rope.attention_factor, 1);
  real("llama.rope.scaling.factor", 2);
  EXPECT_EQ(read().rope.long_factor, std::vector<double>{6});
  text("llama.rope.scaling.type", "yarn");
  expect_refused("rope_freqs.weight together with yarn");
}

TEST_F(GgufModel, LongropeChoosesBetweenTwoTensors) {
  sizes();
  text("llama.rope.scaling.type", "longrope");
  integer("llama.rope.scaling.original_context_length", 16);
  real("llama.rope.scaling.attn_factor", 1.25);
  expect_refused("rope_factors_short.weight");
  divisors("rope_factors_short.weight", {1.5});
  divisors("rope_factors_long.weight", {5});
  const RopeConfig rope = read().rope;
  EXPECT_EQ(rope.type, "longrope");
  EXPECT_EQ(rope.short_factor, std::vector<double>{1.5});
  EXPECT_EQ(rope.long_factor, std::vector<double>{5});
  EXPECT_EQ(rope.attention_factor, 1.25);
  EXPECT_EQ(rope.original_max_position, 16);
}

TEST_F(GgufModel, DivisorsOfAnotherSizeOrNoNumbers) {
  sizes();
  divisors("rope_freqs.weight", {3, 3});
  expect_refused("rope_freqs.weight has shape [2]");
}

TEST_F(GgufModel, DivisorsOfZero) {
  sizes();
  divisors("rope_freqs.weight", {0});
  expect_refused("divisor");
}

TEST_F(GgufModel, RotationOfAPartOfEachHead) {
  sizes();
  integer("llama.attention.key_length", 8);
  integer("llama.attention.value_length", 8);
  EXPECT_EQ(read().rope.dims, 0);
  integer("llama.rope.dimension_count", 4);
  EXPECT_EQ(read().rope.dims, 4);
}

TEST_F(GgufModel, RotationOfMoreThanAHead) {
  sizes();
  integer("llama.rope.dimension_count", 6);
  expect_refused("dimension_count is 6");
}

TEST_F(GgufModel, OneBaseForAllLayers) {
  sizes();
  real("llama.rope.freq_base_swa", 5000);
  EXPECT_EQ(read().rope.base, 10000);  // no layer slides
  integer("llama.attention.sliding_window", 8);
  expect_refused("freq_base_swa is 5000");
}

TEST_F(GgufModel, FactorsThatAreNone) {
  sizes();
  real("llama.rope.scaling.attn_factor", std::numeric_limits<float>::quiet_NaN());
  expect_refused("attn_factor");
}

TEST_F(GgufModel, ScalingOfNoKnownType) {
  sizes();
  text("llama.rope.scaling.type", "dyn\namic");
  expect_refused("dyn\\x0aamic");
}

TEST_F(GgufModel, SizesForEachLayer) {
  text("general.architecture", "llama");
  integer("llama.block_count", 2);
  integer("llama.embedding_length", 4);
  list("llama.feed_forward_length", {4, 4});
  list("llama.attention.head_count", {2, 2});
  list("llama.attention.head_count_kv", {1, 1});
  integer("llama.context_length", 32);
  real("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  const ModelConfig config = read();
  EXPECT_EQ(config.intermediate, 4);
  EXPECT_EQ(config.heads, 2);
  EXPECT_EQ(config.kv_heads, 1);
  list("llama.attention.sliding_window", {0, 8});
  EXPECT_EQ(read().windows, (std::vector<int64_t>{0, 8}));
}

TEST_F(GgufModel, LayersThatDifferOrAreMissing) {
  sizes();
  list("llama.attention.head_count_kv", {1, 2});
  expect_refused("head_count_kv of layer 1 is 2, of layer 0 1");
}

TEST_F(GgufModel, AListOfAnotherLength) {
  sizes();
  list("llama.attention.head_count_kv", {1, 1, 1});
  expect_refused("has 3 entries for 2 layers");
}

TEST_F(GgufModel, WindowsByAPatternOfLayers) {
  sizes();
  integer("llama.attention.sliding_window", 8);
  list("llama.attention.sliding_window_pattern", {1, 0}, true);
  EXPECT_EQ(read().windows, (std::vector<int64_t>{8, 0}));
}

TEST_F(GgufModel, WindowsOfAllButEveryNthLayer) {
  sizes();
  integer("llama.attention.sliding_window", 8);
  integer("llama.attention.sliding_window_pattern", 2);
  EXPECT_EQ(read().windows, (std::vector<int64_t>{8, 0}));
}

TEST_F(GgufModel, SizesBeyondReasonTakeNoMemory) {
  sizes();
  integer("llama.attention.key_length", 4000000000u);
  integer("llama.attention.value_length", 4000000000u);
  real("llama.rope.scaling.attn_factor", 2);
  expect_refused("head dimension is 4000000000");
}

}  // namespace
}  // namespace heed
