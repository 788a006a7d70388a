// Training on a GPU: a run that was stopped goes on as if it had not been, bit for bit.
#include "op/cuda_plugin.h"
#include "train/checkpoint.h"
#include "train/tiny_run.h"
#include "train/trainer.h"

namespace heed::train {
namespace train_gpu_test {

class TrainRunOnGpu : public TrainRun {
 protected:
  void SetUp() override {
    if (const std::string obstacle = op::cuda_obstacle(); !obstacle.empty()) {
      GTEST_SKIP() << obstacle;
    }
    op::open_cuda();
    TrainRun::SetUp();
  }
};

TEST_F(TrainRunOnGpu, ResumesBitForBit) {
  for (const std::string dtype : {"float32", "bfloat16"}) {
    SCOPED_TRACE(dtype);
    tokenizer_.clear();
    const std::vector<std::string> settings = {"device=cuda", "dtype=" + dtype};
    const auto whole = train(tiny("whole-" + dtype, settings), false);
    tokenizer_ = (folder_ / ("whole-" + dtype) / "tokenizer").string();
    const auto config = tiny("broken-" + dtype, settings);
    Stopper stopper(8);
    EXPECT_THROW(train(config, false, stopper), Interrupted);
    g_interrupted = false;
    const auto resumed = train(config, true);
    EXPECT_EQ(resumed.step, 12);
    const fs::path one(*newest_checkpoint(whole.out)), two(*newest_checkpoint(resumed.out));
    for (const char* name : {"model.safetensors", "optimizer.safetensors"}) {
      EXPECT_EQ(file_bytes(one / name), file_bytes(two / name)) << name;
    }
    EXPECT_EQ(curve_of(whole.out), curve_of(resumed.out));
  }
}

}  // namespace train_gpu_test
}  // namespace heed::train
