// Weights in blocks and models written as GGUF: the same scores by whatever path, a perplexity that
// stays, files that are read back.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "data/corpus.h"
#include "io/dequant.h"
#include "io/quantise.h"
#include "io/text_file.h"
#include "io/tokenizer/open.h"
#include "model/decoder.h"
#include "model/quantize.h"
#include "model/source.h"
#include "nn/block_weight.h"
#include "temp_folder.h"

namespace heed {
namespace blocks_test {

using test::TempFolder;

const std::string kModelFixtures = HEED_SOURCE_DIR "/tests/model/fixtures/";
const std::string kBuiltin = HEED_SOURCE_DIR "/models/builtin";

double error_between(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b.to(at::kDouble)).norm() / b.to(at::kDouble).norm()).item<double>();
}

Decoder load(const std::string& model, WeightForm weights) {
  LoadOptions options;
  options.weights = weights;
  return Decoder::load(model, options);
}

at::Tensor scores_of(const Decoder& model, const at::Tensor& ids) {
  const at::NoGradGuard no_grad;
  Pass pass;
  return model.forward(ids, pass);
}

at::Tensor some_ids(const ModelConfig& config, int64_t count) {
  return at::arange(count).mul(7919).remainder(config.vocab).unsqueeze(0);
}

TEST(QuantizeModel, AllFamiliesGiveTheScoresOfTheirFolders) {
  TempFolder folder;
  for (const char* name : {"llama", "llama-biases", "llama-linear", "llama-yarn",
                           "llama-sharded-bf16", "qwen2", "qwen3"}) {
    SCOPED_TRACE(name);
    const Decoder before = load(kModelFixtures + name, WeightForm::kExact);
    const at::Tensor ids = some_ids(before.config(), 15);
    const std::string out = folder / (std::string(name) + ".gguf");
    try {
      quantize_model(kModelFixtures + name, "f32", out);
    } catch (const Error& e) {  // a layer that slides, a factor on cos and sin
      EXPECT_NE(std::string(e.what()).find("cannot be written as GGUF"), std::string::npos)
          << e.what();
      EXPECT_FALSE(std::filesystem::exists(out));
      continue;
    }
    const Decoder after = load(out, WeightForm::kExact);
    EXPECT_LE(error_between(scores_of(after, ids), scores_of(before, ids)), 1e-6);
  }
}

TEST(QuantizeModel, SaysWhatGgufCannotHold) {
  TempFolder folder;
  for (const char* name : {"mistral", "gpt2", "llama-longrope", "llama-dynamic"}) {
    EXPECT_THROW(quantize_model(kModelFixtures + name, "q8_0", folder / "x.gguf"), Error) << name;
  }
  EXPECT_THROW(quantize_model(kBuiltin, "q3_k", folder / "x.gguf"), UsageError);
  EXPECT_EQ(folder.files(), 0u);
}

TEST(QuantizeModel, MatricesAreWhatTheBlocksSay) {
  TempFolder folder;
  const std::string first = folder / "a.gguf", second = folder / "b.gguf";
  const QuantizeResult result = quantize_model(kBuiltin, "q4_1", first);
  EXPECT_GT(result.bytes, 0);
  const GgufFile file = open_gguf(first);
  EXPECT_EQ(file.string("general.architecture"), "llama");
  EXPECT_EQ(file.get("blk.0.ffn_up.weight").dtype, DType::Q4_1);
  EXPECT_EQ(file.get("token_embd.weight").dtype, DType::Q8_0);
  EXPECT_EQ(file.get("output_norm.weight").dtype, DType::F32);
  // Of v, whose rows keep their places: the numbers rounded here are those in the file.
  const ModelSource from = ModelSource::open(kBuiltin), to = ModelSource::open(first);
  const std::string name = "model.layers.1.self_attn.v_proj.weight";
  const std::vector<int64_t> shape = from.matrix(name)->tensor->shape;
  const at::Tensor a = at::empty(shape), b = at::empty(shape);
  from.read(name, a);
  to.read(name, b);
  std::vector<std::byte> blocks(static_cast<size_t>(a.numel() / 32 * 20));
  quantise(DType::Q4_1, a.const_data_ptr<float>(), a.numel(), blocks.data());
  dequantize(DType::Q4_1, blocks.data(), a.numel(), a.mutable_data_ptr<float>());
  EXPECT_TRUE(at::equal(a, b));
  // From GGUF to the same types: byte for byte.
  quantize_model(first, "q4_1", second);
  const GgufFile again = open_gguf(second);
  ASSERT_EQ(again.tensors.size(), file.tensors.size());
  for (size_t i = 0; i < file.tensors.size(); ++i) {
    EXPECT_EQ(std::memcmp(file.tensors[i].data, again.tensors[i].data, file.tensors[i].bytes), 0);
  }
  // The tokenizer comes along.
  const std::string text = "It was 1867, a cold day; he didn't speak.\n";
  EXPECT_EQ(open_tokenizer(first).encode(text), open_tokenizer(kBuiltin).encode(text));
}

TEST(WeightsInBlocks, GiveTheScoresOfTheirValues) {
  TempFolder folder;
  for (const char* type : {"f32", "f16", "bf16", "q8_0", "q4_1", "q4_0"}) {
    SCOPED_TRACE(type);
    const std::string path = folder / (std::string(type) + ".gguf");
    quantize_model(kBuiltin, type, path);
    const Decoder exact = load(path, WeightForm::kExact), blocks = load(path, WeightForm::kBlocks);
    for (const int64_t count : {1, 5, 40}) {  // matrix by vector, few rows, many
      const at::Tensor ids = some_ids(exact.config(), count);
      // Activations have 16 bits beside blocks; the layers' errors add up.
      EXPECT_LE(error_between(scores_of(blocks, ids), scores_of(exact, ids)), 2e-4) << count;
    }
    EXPECT_LE(blocks.weight_bytes(), exact.weight_bytes());
    EXPECT_EQ(blocks.hash(), exact.hash());
  }
}

TEST(WeightsInBlocks, StepsEqualOnePass) {
  // Rounding of activations turns with the last places of attention's sums.
  constexpr double kBound = 5e-5;
  const at::NoGradGuard no_grad;
  const Decoder model = load(kBuiltin, WeightForm::kQ8_0);
  const at::Tensor ids = some_ids(model.config(), 20);
  const at::Tensor all = scores_of(model, ids)[0];
  StateOptions options;
  options.kv_dtype = at::kFloat;
  auto state = model.make_state(options);
  const std::span<const int64_t> tokens(ids.const_data_ptr<int64_t>(), 20);
  at::Tensor last = model.logits(model.prefill(tokens.first(17), *state)).flatten();
  for (int64_t t = 17; t < 20; ++t) {
    EXPECT_LE(error_between(last, all[t - 1]), kBound) << t;
    DecoderState* states[] = {state.get()};
    last = model.scores(tokens.subspan(static_cast<size_t>(t), 1), states).flatten();
  }
  EXPECT_LE(error_between(last, all[19]), kBound);
}

// Mean loss over a text.
double loss_of(const Decoder& model, const at::Tensor& ids) {
  const at::Tensor scores = scores_of(model, ids)[0];
  const int64_t n = ids.size(1);
  return at::cross_entropy_loss(scores.narrow(0, 0, n - 1), ids[0].narrow(0, 1, n - 1))
      .item<double>();
}

TEST(WeightsInBlocks, PerplexityStays) {
  const auto tokens =
      open_tokenizer(kBuiltin).encode(read_text_file(HEED_SOURCE_DIR "/tests/data/books.txt"));
  std::vector<int64_t> first(tokens.begin(),
                             tokens.begin() + std::min<int64_t>(400, std::ssize(tokens)));
  const at::Tensor ids = at::tensor(first, at::kLong).unsqueeze(0);
  TempFolder folder;
  quantize_model(kBuiltin, "q4_1", folder / "q4_1.gguf");
  const double exact = loss_of(load(folder / "q4_1.gguf", WeightForm::kExact), ids);
  const double blocks = loss_of(load(folder / "q4_1.gguf", WeightForm::kBlocks), ids);
  EXPECT_NEAR(std::exp(blocks - exact), 1, 1e-3);  // 3e-3 is asked for
  const double whole = loss_of(load(kBuiltin, WeightForm::kExact), ids);
  EXPECT_NEAR(std::exp(loss_of(load(kBuiltin, WeightForm::kQ8_0), ids) - whole), 1, 5e-3);
  EXPECT_LT(std::exp(loss_of(load(kBuiltin, WeightForm::kQ4_0), ids) - whole), 1.5);
}

TEST(WeightsInBlocks, EveryStoredTypeGivesItsProducts) {
  const at::NoGradGuard no_grad;
  const auto file =
      std::make_shared<GgufFile>(open_gguf(HEED_SOURCE_DIR "/tests/io/fixtures/quantised.gguf"));
  int64_t seen = 0;
  for (const TensorInfo& t : file->tensors) {
    if (t.shape.size() < 2 || !can_dequantize(t.dtype) || t.dtype == DType::F32) continue;
    ++seen;
    for (const bool turned : {false, true}) {
      StoredMatrix stored{&t, 0, t.rows(), {}, file};
      for (int64_t r = 0; turned && r < stored.out; ++r) stored.order.push_back(stored.out - 1 - r);
      const auto weight = keep_blocks(stored);
      at::Tensor values = at::empty({stored.out, stored.in()});
      stored.read(0, stored.out, values.mutable_data_ptr<float>());
      for (const int64_t rows : {1, 3, 40}) {
        const at::Tensor x = at::randn({rows, stored.in()});
        const at::Tensor y = linear_blocks(x, {weight.get()}, {{}}, false, {});
        EXPECT_LE(error_between(y, x.to(at::kDouble).mm(values.to(at::kDouble).t())), 2e-4)
            << t.name << " " << dtype_name(t.dtype) << ", " << rows << " rows";
      }
      const at::Tensor ids = at::tensor({stored.out - 1, int64_t{0}}, at::kLong);
      EXPECT_TRUE(at::equal(block_rows(*weight, ids), values.index_select(0, ids)));
    }
  }
  EXPECT_GE(seen, 9);
}

TEST(WeightsInBlocks, AreForFloat32OnTheCpuAndHaveNoGradients) {
  LoadOptions options;
  options.weights = WeightForm::kQ8_0;
  options.dtype = at::kBFloat16;
  EXPECT_THROW(Decoder::load(kBuiltin, options), UsageError);
  const Decoder model = load(kBuiltin, WeightForm::kQ8_0);
  EXPECT_THROW(model.save("/nowhere"), UsageError);
}

}  // namespace blocks_test
}  // namespace heed
