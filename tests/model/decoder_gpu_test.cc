// The built-in model on a GPU against the same model on the CPU: one pass, plans, chunks and steps.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "model/decoder.h"
#include "op/cuda_plugin.h"

namespace heed {
namespace decoder_gpu_test {

class DecoderOnGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string obstacle = op::cuda_obstacle(); !obstacle.empty()) {
      GTEST_SKIP() << obstacle;
    }
    op::open_cuda();
    const std::string folder = HEED_SOURCE_DIR "/models/builtin";
    cpu_.emplace(Decoder::load(folder));
    LoadOptions options;
    options.device = at::kCUDA;
    options.dtype = at::kFloat;
    gpu_.emplace(Decoder::load(folder, options));
    at::manual_seed(3);
    ids_ = at::randint(cpu_->config().vocab, {1, 300}, at::kLong);
  }

  std::optional<Decoder> cpu_, gpu_;
  at::Tensor ids_;
};

double relative_error(const at::Tensor& a, const at::Tensor& b) {
  const auto x = a.cpu().to(at::kDouble), y = b.cpu().to(at::kDouble);
  return ((x - y).norm() / y.norm()).item<double>();
}

TEST_F(DecoderOnGpu, OnePassEqualsTheCpu) {
  const at::NoGradGuard no_grad;
  Pass a, b;
  EXPECT_LT(relative_error(gpu_->logits(gpu_->hidden(ids_.cuda(), b)),
                           cpu_->logits(cpu_->hidden(ids_, a))),
            1e-5);
}

TEST_F(DecoderOnGpu, PlansInChunksAndStepsEqualTheCpu) {
  const at::NoGradGuard no_grad;
  const auto& config = cpu_->config();
  Programs programs;
  for (int64_t l = 0; l < config.layers; ++l) {
    std::vector<HeadProgram> layer;
    for (int64_t h = 0; h < config.kv_heads; ++h) {
      layer.push_back((l + h) % 3 == 0 ? HeadProgram{} : HeadProgram{20 + 30 * h, 4});
    }
    programs.heads.push_back(layer);
  }
  Pass whole;
  whole.programs = &programs;
  const at::Tensor expected = cpu_->hidden(ids_, whole);
  StateOptions options;
  options.programs = &programs;
  options.kv_dtype = at::kFloat;
  for (const int64_t chunk : {1, 7, 128, 300}) {
    const auto state = gpu_->make_state(options);
    const int64_t total = chunk == 1 ? 80 : 300;
    for (int64_t begin = 0; begin < total; begin += chunk) {
      const int64_t count = std::min(chunk, total - begin);
      Pass part;
      part.states = {state.get()};
      const auto out = gpu_->hidden(ids_.narrow(1, begin, count).cuda(), part);
      ASSERT_LT(relative_error(out, expected.narrow(1, begin, count)), 5e-5)
          << chunk << " at " << begin;
    }
  }
}

}  // namespace decoder_gpu_test
}  // namespace heed
