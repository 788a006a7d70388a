// The configuration of a training run: one TOML file, every key of which has a default.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/json.h"

namespace heed::train {

struct TrainConfig {
  std::string name = "run";
  std::string out;
  int64_t seed = 0;
  std::string device = "cpu";
  std::string dtype = "auto";
  bool nondeterministic = false;
  std::string records;

  struct {
    std::string from;
    std::string family = "llama";
    int64_t hidden = 384, intermediate = 1024, layers = 8, heads = 6, kv_heads = 2, head_dim = 64;
    bool tied = true;
    double rope_base = 10000;
    double norm_eps = 1e-5;
    Json mixers = Json::object();  // {"3": {"mixer": "gla", "options": {...}}}
  } model;

  struct {
    std::string path;
    int64_t vocab_size = 8192;
  } tokenizer;

  struct {
    std::vector<std::string> train, valid, test;
    std::string separator;
    int64_t valid_documents = 0;
    std::string cache;
    int64_t length = 2048;
    double recall = 0;
    std::vector<double> recall_kinds = {1, 1, 1, 1};
  } data;

  struct {
    int64_t steps = 1000;
    int64_t rows = 32;
    int64_t rows_per_pass = 0;
    double lr = 1e-3;
    double min_lr = 0.1;
    int64_t warmup = 100;
    std::string schedule = "cosine";
    double decay = 0.2;
    double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
    double weight_decay = 0.1;
    double clip = 1.0;
    double minutes = 0;
  } train;

  struct {
    int64_t every = 250;
    int64_t rows = 64;
    int64_t recall_samples = 0;
  } validation;

  struct {
    int64_t every = 500;
    int64_t keep = 2;
  } checkpoint;
};

// Reads a file and applies `overrides` ("train.lr=1e-3", values as TOML or bare text). ${NAME} in
// names of files stands for an environment variable; other relative names count from the current
// folder. Throws UsageError for an unknown key, a wrong type or a value outside its range, naming
// file, line and key.
TrainConfig read_config(const std::string& path, const std::vector<std::string>& overrides = {});
// The same from text; `file` stands for its name in messages.
TrainConfig parse_config_text(const std::string& text, const std::string& file,
                              const std::vector<std::string>& overrides = {});

// Every key with its value and what it means, as TOML that read_config reads back.
std::string config_to_toml(const TrainConfig& config);
Json config_to_json(const TrainConfig& config);

// All keys with their defaults and meanings, as a Markdown table (docs/train.md holds it).
std::string config_table();

}  // namespace heed::train
