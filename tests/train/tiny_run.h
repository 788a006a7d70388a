// A tiny training run on the text of the tests, shared by the trainer's tests.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "io/error.h"
#include "io/progress.h"
#include "train/config.h"

namespace heed::train {

namespace fs = std::filesystem;

inline const std::string kSource = HEED_SOURCE_DIR;

inline std::string file_bytes(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

// The columns of curve.csv that do not depend on the clock.
inline std::vector<std::string> curve_of(const fs::path& out) {
  std::istringstream in(file_bytes(out / "curve.csv"));
  std::vector<std::string> rows;
  for (std::string line; std::getline(in, line);) {
    std::istringstream cells(line);
    std::string row;
    int column = 0;
    for (std::string cell; std::getline(cells, cell, ','); ++column) {
      if (column != 2 && column != 6) row += cell + ",";
    }
    rows.push_back(row);
  }
  return rows;
}

class TrainRun : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("heed-train-" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override {
    g_interrupted = false;
    fs::remove_all(folder_);
  }

  // The recipe of the built-in model with a tiny shape and the text of the tests.
  TrainConfig tiny(const std::string& name, std::vector<std::string> more = {}) {
    const std::string books = kSource + "/tests/data/books.txt";
    const std::string held = kSource + "/tests/data/heldout.txt";
    std::vector<std::string> settings = {
        "name=" + name,
        "out=" + (folder_ / name).string(),
        "records=" + (folder_ / "records.sqlite").string(),
        "data.cache=" + (folder_ / "tokens").string(),
        "data.train=[\"" + books + "\"]",
        "data.valid=[\"" + held + "\"]",
        "data.test=[]",
        "data.length=256",
        "tokenizer.path=" + tokenizer_,
        "tokenizer.vocab_size=512",
        "model.hidden=64",
        "model.intermediate=128",
        "model.layers=2",
        "model.heads=4",
        "model.kv_heads=2",
        "model.head_dim=16",
        "train.steps=12",
        "train.rows=4",
        "train.rows_per_pass=0",
        "train.lr=3e-3",
        "train.warmup=4",
        "train.minutes=0",
        "validation.every=6",
        "validation.rows=4",
        "validation.recall_samples=8",
        "checkpoint.every=6",
        "checkpoint.keep=9",
        "device=cpu",
    };
    settings.insert(settings.end(), more.begin(), more.end());
    return read_config(kSource + "/examples/builtin.toml", settings);
  }

  fs::path folder_;
  std::string tokenizer_;
};

// Stops a run by Ctrl-C when it has done some steps.
class Stopper : public Progress {
 public:
  explicit Stopper(int64_t at) : at_(at) {}
  void begin(std::string_view stage, int64_t) override { training_ = stage == "training"; }
  void update(int64_t done, std::string_view) override {
    if (training_ && done == at_) g_interrupted = true;
  }

 private:
  int64_t at_;
  bool training_ = false;
};

}  // namespace heed::train
