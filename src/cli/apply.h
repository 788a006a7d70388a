// The arguments of `heed apply`, shared by its two halves: mixers (apply_command.cc) and whole
// models (apply_model.cc).
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace heed::cli {

struct ApplyArguments {
  std::string id;  // of a mixer, or "model"
  std::string in, out;
  std::string form;   // mixers only
  std::string model;  // `apply model` only
  std::string plan;   // `apply model` only
  std::string device = "cpu";
  std::string dtype = "float32";
  std::vector<std::pair<std::string, std::string>> settings;
  bool grad = false;  // mixers only
};

// `heed apply model`: runs a whole model on given ids (docs/apply.md, "Whole models").
void run_apply_model(const ApplyArguments& arguments);

}  // namespace heed::cli
