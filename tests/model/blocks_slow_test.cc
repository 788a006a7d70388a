// SmolLM2 (fetched where it is not there) in the blocks of its file: perplexity beside exact
// weights, the memory that it takes.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "io/text_file.h"
#include "io/tokenizer/open.h"
#include "model/decoder.h"
#include "model/hub.h"

namespace heed {
namespace blocks_slow_test {

Decoder load_as(const std::string& path, WeightForm weights) {
  LoadOptions options;
  options.weights = weights;
  return Decoder::load(path, options);
}

// Mean loss over texts of 1000 tokens.
double loss_on_books(const Decoder& model, const std::string& path) {
  const at::NoGradGuard no_grad;
  const auto tokens =
      open_tokenizer(path).encode(read_text_file(HEED_SOURCE_DIR "/tests/data/books.txt"));
  constexpr int64_t kLength = 1000;
  double sum = 0;
  int64_t texts = 0;
  for (int64_t begin = 0; begin + kLength <= std::ssize(tokens) && texts < 6; begin += kLength) {
    const std::vector<int64_t> part(tokens.begin() + begin, tokens.begin() + begin + kLength);
    const at::Tensor ids = at::tensor(part, at::kLong);
    Pass pass;
    const at::Tensor scores = model.forward(ids.unsqueeze(0), pass)[0];
    sum += at::cross_entropy_loss(scores.narrow(0, 0, kLength - 1), ids.narrow(0, 1, kLength - 1))
               .item<double>();
    ++texts;
  }
  return sum / static_cast<double>(texts);
}

// Bytes of this process in memory, and the most that there were.
int64_t resident(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(key + ":")) return std::atoll(line.c_str() + key.size() + 1) * 1024;
  }
  return 0;
}

TEST(SmolLm2InBlocks, MemoryIsTheFilesAndLittleMore) {
  const std::string path = resolve_model("smollm2");
  const at::NoGradGuard no_grad;
  const int64_t before = resident("VmRSS");
  const Decoder model = load_as(path, WeightForm::kBlocks);
  StateOptions options;
  options.kv_dtype = at::kHalf;
  auto state = model.make_state(options);
  const std::vector<int64_t> ids(1000, 42);
  at::Tensor scores = model.logits(model.prefill(ids, *state));
  const auto file = static_cast<int64_t>(std::filesystem::file_size(path));
  EXPECT_LE(resident("VmHWM") - before, file + state->bytes() + (int64_t{250} << 20));
  EXPECT_LE(resident("VmRSS") - before, file + state->bytes() + (int64_t{150} << 20));
  RecordProperty("resident_mb", static_cast<int>(resident("VmRSS") >> 20));
}

TEST(SmolLm2InBlocks, PerplexityIsThatOfExactWeights) {
  const std::string path = resolve_model("smollm2");
  const double exact = loss_on_books(load_as(path, WeightForm::kExact), path);
  const double blocks = loss_on_books(load_as(path, WeightForm::kBlocks), path);
  fmt::print("perplexity exact {:.4f}, blocks {:.4f}\n", std::exp(exact), std::exp(blocks));
  EXPECT_NEAR(std::exp(blocks - exact), 1, 3e-3);
}

}  // namespace blocks_slow_test
}  // namespace heed
