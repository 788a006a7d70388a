// The parameters of a layer: its own members, known by their names on disk. Loaders, savers,
// trainers and quantisers go over them here; the layer itself uses its members, so that nothing is
// looked up while it runs.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "nn/weight.h"

namespace heed {

struct Parameter {
  std::string name;   // "q_proj.weight"
  at::Tensor& value;  // the layer's member: may be put in another's place (dtype, device), of the
                      // same shape, with all others of the layer
};

class Params {
 public:
  // The order in which parameters are seen: in files, and where a model draws them.
  enum class Order { kByName, kAsMade };
  explicit Params(Order order = Order::kByName) : order_(order) {}
  // It points into the layer that owns it.
  Params(const Params&) = delete;
  Params& operator=(const Params&) = delete;

  // A matrix [out, in] that the layer multiplies by with linear() (weight.h): it may be quantised
  // or lie in a mapped file. The first form draws it Xavier-uniform (init.h).
  void matrix(Weight& member, const std::string& name, int64_t out, int64_t in);
  void matrix(Weight& member, const std::string& name, at::Tensor value);
  // Anything else: biases, norms, gates, decays, taps of convolutions.
  void tensor(at::Tensor& member, const std::string& name, at::Tensor value);

  std::vector<Parameter>::const_iterator begin() const { return all_.begin(); }
  std::vector<Parameter>::const_iterator end() const { return all_.end(); }
  std::vector<Parameter>::iterator begin() { return all_.begin(); }
  std::vector<Parameter>::iterator end() { return all_.end(); }
  size_t size() const { return all_.size(); }
  // Throws Error for a name that there is none of.
  at::Tensor& at(const std::string& name) const;
  const std::vector<Weight*>& matrices() const { return matrices_; }

  // Where the layer is: options of its first parameter (float32 on the CPU where it has none).
  at::TensorOptions options() const;
  // Multiply-adds times two of all matrices over `tokens` tokens (of everything with two dimensions
  // or more: a tap of a convolution meets every token once too).
  int64_t flops(int64_t tokens) const;

 private:
  void add(const std::string& name, at::Tensor& member);

  Order order_;
  std::vector<Parameter> all_;
  std::vector<Weight*> matrices_;
};

}  // namespace heed
