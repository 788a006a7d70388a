// What must hold for every mixer, as functions over one mechanism: the suite runs them over the
// registry, and over wrong mechanisms to see that it finds them.
#pragma once

#include <string>
#include <vector>

#include "mixer/sampling_helper.h"

namespace heed::mixer::testing {

// What was found; empty: the property holds.
class Findings {
 public:
  explicit Findings(std::string where = "") : where_(std::move(where)) {}
  void enter(std::string where) { where_ = std::move(where); }
  void add(const std::string& text) { list_.push_back(where_ + ": " + text); }
  void expect(bool holds, const std::string& text) {
    if (!holds) add(text);
  }
  // Every tensor of `reference` is in `y` within the bound.
  void close(const NamedTensors& y, const NamedTensors& reference, double bound,
             const std::string& what);
  void close(const at::Tensor& y, const at::Tensor& reference, double bound,
             const std::string& what);

  bool empty() const { return list_.empty(); }
  std::string text() const;  // the first ten

 private:
  std::string where_;
  std::vector<std::string> list_;
};

struct Property {
  const char* name;
  void (*check)(const Mechanism&, Findings&);
};

// All of them, in the order of the file.
const std::vector<Property>& properties();

}  // namespace heed::mixer::testing
