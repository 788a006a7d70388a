// The trainer: configuration, loss, optimiser, and whole runs on the CPU.
#include "train/trainer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "data/records.h"
#include "io/error.h"
#include "model/decoder.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/loss.h"
#include "train/memory.h"
#include "train/optimizer.h"
#include "train/schedule.h"
#include "train/tiny_run.h"

namespace heed::train {
namespace train_test {

TEST(TrainConfigFile, RefusesWhatItDoesNotKnow) {
  const std::string text = "[data]\ntrain = [\"a.txt\"]\n";
  EXPECT_EQ(parse_config_text(text, "c.toml").data.train.size(), 1u);
  auto refuses = [&](const std::string& more, const std::string& named,
                     const std::vector<std::string>& overrides = {}) {
    try {
      parse_config_text(more, "c.toml", overrides);
      ADD_FAILURE() << "accepted: " << more;
    } catch (const UsageError& e) {
      EXPECT_NE(std::string(e.what()).find(named), std::string::npos) << e.what();
    }
  };
  refuses(text + "[train]\nstepz = 3\n", "c.toml:4: unknown key \"train.stepz\"");
  refuses(text + "[train]\nsteps = \"many\"\n", "c.toml:4: train.steps must be an integer");
  refuses(text + "[train]\nsteps = 0\n", "train.steps");
  refuses(text + "[train\n", "c.toml:3");
  refuses("", "data.train");
  refuses(text, "KEY=VALUE", {"train.steps"});
  refuses(text, "unknown key", {"train.stepz=4"});
  refuses(text, "not a section", {"data.train.x=4"});
  refuses("[data]\ntrain = [\"${HEED_NO_SUCH_FOLDER}/a\"]\n", "HEED_NO_SUCH_FOLDER");
  refuses("[data]\ntrain = [\"a\"]\nvalid = [\"a\"]\n", "data.train does not name");
}

TEST(TrainConfigFile, PrintsEveryKeyAndReadsItBack) {
  auto config = parse_config_text(
      "name = \"x \\\"y\\\"\"\n[data]\ntrain = [\"a.txt\", \"b.txt\"]\n[train]\nlr = 2\n"
      "[model.mixers]\n\"1\" = { mixer = \"gla\", options = { chunk = 32 } }\n",
      "c.toml",
      {"train.steps=7", "train.schedule=wsd", "records=nan", "data.recall_kinds=[1, 0.5, 0, 2]"});
  EXPECT_EQ(config.train.steps, 7);
  EXPECT_EQ(config.train.lr, 2.0);
  EXPECT_EQ(config.train.schedule, "wsd");
  EXPECT_EQ(config.records, "nan");
  EXPECT_EQ(config.model.mixers["1"]["options"]["chunk"], 32);
  const auto again = parse_config_text(config_to_toml(config), "again.toml");
  EXPECT_EQ(config_to_json(config), config_to_json(again));
  EXPECT_EQ(config_to_toml(config), config_to_toml(again));
}

TEST(TrainConfigFile, DocumentationListsTheKeys) {
  const std::string page = file_bytes(kSource + "/docs/train.md");
  EXPECT_NE(page.find(config_table()), std::string::npos)
      << "docs/train.md must hold what `heed train --keys` prints";
}

// What a configuration of the tests needs, and what is said where that is not there.
struct Sizes {
  explicit Sizes(const std::vector<std::string>& settings)
      : config(parse_config_text("[data]\ntrain = [\"a\"]\n", "c.toml", settings)) {
    model.vocab = 257;
    model.hidden = config.model.hidden;
    model.intermediate = config.model.intermediate;
    model.layers = config.model.layers;
    model.heads = config.model.heads;
    model.kv_heads = config.model.kv_heads;
    model.head_dim = config.model.head_dim;
    model.max_position = config.data.length;
    model.windows.assign(static_cast<size_t>(model.layers), 0);
    model.tied = true;
    for (const auto& [layer, what] : config.model.mixers.items()) {
      model.mixers[std::stoll(layer)] = {what["mixer"], what.value("options", Json::object())};
    }
  }
  MemoryNeed need(at::ScalarType dtype = at::kFloat) const {
    return memory_need(model, config, dtype);
  }
  std::string refused(double machine, double device = 0) const {
    try {
      check_memory(need(), config, machine, device);
    } catch (const UsageError& e) {
      return e.what();
    }
    return "";
  }
  TrainConfig config;
  ModelConfig model;
};

TEST(TrainMemory, CountsWhatTrainingHolds) {
  const Sizes small({});
  const auto parameters = static_cast<double>(small.model.parameters());
  EXPECT_EQ(small.need().parameters, parameters);
  EXPECT_EQ(small.need().weights + small.need().gradients, 20 * parameters);
  EXPECT_EQ(small.need(at::kBFloat16).weights, 18 * parameters);
  EXPECT_EQ(Sizes({"train.rows_per_pass=4"}).need().rows, small.need().rows);
  EXPECT_GT(small.need().pass, 7 * Sizes({"train.rows_per_pass=4"}).need().pass);
  // A layer with another mixer counts by its own tensors, which take no memory for that.
  const Sizes gla({"model.mixers={\"1\" = { mixer = \"gla\", options = {expand_k = 1000} }}"});
  EXPECT_GT(gla.need().parameters, parameters + 2.0 * 384 * 384 * 999);
}

TEST(TrainMemory, SaysWhatToChange) {
  const auto expect = [](const std::string& said, const std::string& text) {
    EXPECT_NE(said.find(text), std::string::npos) << said;
    EXPECT_EQ(said.find('\n'), std::string::npos);
  };
  const double memory = 16e9;
  const Sizes fits({"train.rows=2"});
  EXPECT_EQ(fits.refused(memory), "");
  EXPECT_EQ(fits.refused(0), "");
  expect(Sizes({"model.hidden=1000000"}).refused(memory), "lower model.hidden");
  expect(Sizes({"train.rows=512"}).refused(memory), "512 rows of 2048 tokens");
  expect(Sizes({"train.rows=512"}).refused(memory),
         "this machine has 16.0 GB; lower train.rows_per");
  expect(Sizes({"train.rows=1", "data.length=4000000000"}).refused(memory), "lower data.length");
  expect(Sizes({"train.rows=1000000000000", "train.rows_per_pass=1"}).refused(memory),
         "lower train.rows or");
  Sizes cuda({"device=cuda", "train.rows=2"});
  EXPECT_EQ(cuda.refused(memory, memory), "");
  expect(cuda.refused(memory, 1e8), "the GPU has free 100.0 MB");
  expect(cuda.refused(1e6, memory), "this machine has 1.0 MB");
  // Sizes that overflow 64 bits when they are multiplied.
  const Sizes hostile({"model.hidden=1048576", "model.intermediate=4194304", "model.layers=10000",
                       "train.rows=9223372036854775807", "data.length=4294967296"});
  EXPECT_GT(hostile.need().weights, 1e18);
  expect(hostile.refused(memory), " EB ");
  expect(Sizes({"model.hidden=1048576",
                "model.mixers={\"1\" = { mixer = \"mamba2\", options = {expand = 16777216, state = "
                "16777216, head_dim = 1, groups = 16777216} }}"})
             .refused(memory),
         "2^63");
}

TEST(TrainSchedule, WarmsUpAndDecays) {
  const Schedule cosine{1.0, 0.1, 10, 110, false, 0};
  EXPECT_NEAR(cosine.at(0), 0.1, 1e-12);
  EXPECT_NEAR(cosine.at(9), 1.0, 1e-12);
  EXPECT_NEAR(cosine.at(60), 0.55, 1e-12);
  EXPECT_NEAR(cosine.at(110), 0.1, 1e-12);
  const Schedule wsd{1.0, 0.0, 10, 100, true, 0.2};
  EXPECT_EQ(wsd.at(10), 1.0);
  EXPECT_EQ(wsd.at(79), 1.0);
  EXPECT_NEAR(wsd.at(90), 0.5, 1e-12);
}

TEST(TrainLoss, EqualsCrossEntropyWithItsGradients) {
  at::manual_seed(1);
  auto hidden = at::randn({37, 16}).requires_grad_(true);
  auto head = at::randn({50, 16}).requires_grad_(true);
  auto targets = at::randint(50, {37}, at::kLong);
  targets[3] = -1;
  targets[20] = -1;
  const auto loss = chunked_cross_entropy(hidden, head, targets, 8);
  (3 * loss).backward();
  const auto grad_hidden = hidden.grad().clone(), grad_head = head.grad().clone();
  hidden.mutable_grad().reset();
  head.mutable_grad().reset();
  const auto plain =
      at::cross_entropy_loss(at::matmul(hidden, head.t()), targets, {}, at::Reduction::Mean, -1);
  (3 * plain).backward();
  EXPECT_NEAR(loss.item<double>(), plain.item<double>(), 1e-5);
  EXPECT_LT((grad_hidden - hidden.grad()).norm().item<double>(), 1e-5);
  EXPECT_LT((grad_head - head.grad()).norm().item<double>(), 1e-5);
  EXPECT_EQ(chunked_cross_entropy(hidden, head, at::full({37}, -1, at::kLong)).item<double>(), 0);
}

TEST(TrainOptimizer, FollowsAdamW) {
  auto matrix = at::full({2, 2}, 1.0).requires_grad_(true);
  auto vector = at::full({2}, 1.0).requires_grad_(true);
  AdamW optimizer({{"matrix", matrix}, {"vector", vector}}, {0.9, 0.99, 1e-8, 0.5, 0});
  double m = 0, v = 0, w_matrix = 1, w_vector = 1;
  for (int step = 1; step <= 3; ++step) {
    ((matrix.sum() + vector.sum()) * static_cast<double>(step)).backward();
    optimizer.accumulate();
    optimizer.step(0.1);
    m = 0.9 * m + 0.1 * step;
    v = 0.99 * v + 0.01 * step * step;
    const double update =
        0.1 * (m / (1 - std::pow(0.9, step))) / (std::sqrt(v / (1 - std::pow(0.99, step))) + 1e-8);
    w_matrix = w_matrix * (1 - 0.1 * 0.5) - update;
    w_vector -= update;
    EXPECT_NEAR(matrix[0][0].item<double>(), w_matrix, 1e-6);
    EXPECT_NEAR(vector[0].item<double>(), w_vector, 1e-6);
  }
  // A gradient that is no number changes nothing.
  (matrix.sum() * std::nan("")).backward();
  optimizer.accumulate();
  EXPECT_TRUE(std::isnan(optimizer.step(0.1)));
  EXPECT_NEAR(matrix[0][0].item<double>(), w_matrix, 1e-6);
}

TEST(TrainOptimizer, KeepsFloat32WeightsForBfloat16) {
  auto weight = at::full({4, 4}, 1.0, at::kBFloat16).requires_grad_(true);
  AdamW optimizer({{"w", weight}}, {0.9, 0.95, 1e-8, 0, 1.0});
  for (int step = 0; step < 10; ++step) {  // each too small for bfloat16
    weight.sum().backward();
    optimizer.accumulate();
    EXPECT_NEAR(optimizer.step(1e-4), 4, 1e-6);
  }
  EXPECT_NEAR(optimizer.weights().at("w")[0][0].item<double>(), 1 - 1e-3, 1e-5);
}

TEST_F(TrainRun, LossFallsAndTheModelLoads) {
  const auto config = tiny("fall", {"train.steps=60", "train.lr=6e-3", "validation.every=30"});
  const auto result = train(config, false);
  ASSERT_EQ(result.step, 60);
  data::Records records((folder_ / "records.sqlite").string());
  const auto run = records.runs("train").at(0);
  EXPECT_EQ(run.status, "done");
  const auto losses = records.metrics(run.id, "train_loss");
  ASSERT_GT(losses.size(), 10u);
  EXPECT_NEAR(losses.front().value, std::log(512.0), 0.3);
  EXPECT_LT(losses.back().value, losses.front().value - 0.8);
  const auto valid = records.metrics(run.id, "valid_loss");
  ASSERT_EQ(valid.size(), 2u);
  EXPECT_LT(valid.back().value, valid.front().value);
  EXPECT_LT(result.report["valid"]["loss"].get<double>(), 5.5);
  EXPECT_EQ(result.report["passkey"].size(), 11u);
  // The folder holds a whole model, and printing the configuration gave the same run.
  const auto model = Decoder::load(result.model);
  EXPECT_EQ(model.config().vocab, 512);
  EXPECT_EQ(model.config().max_position, 256);
  EXPECT_TRUE(fs::exists(fs::path(result.model) / "tokenizer.json"));
  const auto printed = read_config((folder_ / "fall" / "config.toml").string());
  EXPECT_EQ(config_to_json(printed), config_to_json(config));
}

TEST_F(TrainRun, ResumesBitForBit) {
  const auto whole = train(tiny("whole"), false);
  tokenizer_ = (folder_ / "whole" / "tokenizer").string();
  const auto newest = newest_checkpoint(whole.out);
  ASSERT_TRUE(newest);

  // Ctrl-C between two checkpoints saves a third.
  const auto config = tiny("broken");
  Stopper stopper(8);
  EXPECT_THROW(train(config, false, stopper), Interrupted);
  g_interrupted = false;
  ASSERT_TRUE(fs::exists(folder_ / "broken" / "checkpoints" / "step-00000008"));
  EXPECT_THROW(train(config, false), UsageError);  // in use
  const auto resumed = train(config, true);
  EXPECT_EQ(resumed.step, 12);
  const fs::path one(*newest), two(*newest_checkpoint(resumed.out));
  for (const char* name : {"model.safetensors", "optimizer.safetensors"}) {
    EXPECT_EQ(file_bytes(one / name), file_bytes(two / name)) << name;
  }
  EXPECT_EQ(file_bytes(fs::path(whole.model) / "model.safetensors"),
            file_bytes(fs::path(resumed.model) / "model.safetensors"));
  EXPECT_EQ(curve_of(whole.out), curve_of(resumed.out));
  EXPECT_THROW(train(tiny("broken", {"seed=5"}), true), UsageError);
  EXPECT_THROW(train(tiny("nothing"), true), UsageError);
}

TEST_F(TrainRun, StopsWhenTheTimeIsUp) {
  const auto result = train(tiny("timed", {"train.minutes=1e-9"}), false);
  EXPECT_TRUE(result.model.empty());
  EXPECT_LT(result.step, 12);
}

TEST_F(TrainRun, KeepsTheLastCheckpoints) {
  train(tiny("keep", {"checkpoint.every=2", "checkpoint.keep=2"}), false);
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder_ / "keep" / "checkpoints")) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{"step-00000010", "step-00000012"}));
}

TEST_F(TrainRun, AccumulationChangesLittle) {
  train(tiny("one"), false);
  train(tiny("many", {"train.rows_per_pass=1"}), false);
  data::Records records((folder_ / "records.sqlite").string());
  const auto runs = records.runs("train");
  const auto one = records.metrics(runs[0].id, "train_loss");
  const auto many = records.metrics(runs[1].id, "train_loss");
  EXPECT_NEAR(one.back().value, many.back().value, 1e-2);
}

TEST_F(TrainRun, SaysWhenTheLossIsNoNumber) {
  try {
    train(tiny("nan", {"train.lr=1e30", "train.clip=0", "train.warmup=0"}), false);
    ADD_FAILURE() << "went on";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("step "), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("train.lr"), std::string::npos) << e.what();
  }
  data::Records records((folder_ / "records.sqlite").string());
  EXPECT_EQ(records.runs("train").at(0).status, "failed");
}

TEST_F(TrainRun, TrainsOtherMixersLikeAttention) {
  const auto result =
      train(tiny("gla", {"model.mixers={\"1\" = { mixer = \"gla\" }}", "train.steps=16"}), false);
  data::Records records((folder_ / "records.sqlite").string());
  const auto losses = records.metrics(records.runs("train").at(0).id, "train_loss");
  EXPECT_LT(losses.back().value, losses.front().value - 0.3);
  const auto model = Decoder::load(result.model);
  ASSERT_EQ(model.config().mixers.at(1).id, "gla");
  // One pass, and a prefill followed by steps, say the same.
  std::vector<int64_t> ids;
  for (int64_t n = 0; n < 40; ++n) ids.push_back((7 * n + 3) % 512);
  at::NoGradGuard no_grad;
  Pass pass;
  const auto all = model.hidden(at::tensor(ids, at::kLong).unsqueeze(0), pass);
  auto state = model.make_state();
  at::Tensor last = model.prefill(std::span(ids).first(30), *state);
  DecoderState* const states[] = {state.get()};
  for (size_t n = 30; n < ids.size(); ++n) last = model.step(std::span(ids).subspan(n, 1), states);
  const auto difference = (last.flatten() - all[0][39]).norm() / all[0][39].norm();
  EXPECT_LT(difference.item<double>(), 1e-5);
}

}  // namespace train_test
}  // namespace heed::train
