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
  ModelConfig read() {
    Bytes bytes;
    bytes.raw("GGUF").number<uint32_t>(3).number<uint64_t>(1).number<uint64_t>(count_);
    bytes.raw(values_.str()).text("token_embd.weight").number<uint32_t>(2);
    bytes.number<uint64_t>(4).number<uint64_t>(2).number<uint32_t>(0).number<uint64_t>(0);
    bytes.pad(32).raw(std::string(32, '\0'));
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

  Bytes values_;
  uint64_t count_ = 0;
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

}  // namespace
}  // namespace heed
