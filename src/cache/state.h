// What decoding keeps for one sequence and one layer: a key/value cache, a matrix state, the last
// inputs of a short convolution, or several of these. Layers make them (mixer/layer.h); this room
// holds those of attention, the files of mixer/ those of recurrences.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "io/error.h"

namespace heed {

using NamedTensors = std::map<std::string, at::Tensor>;

class State {
 public:
  virtual ~State() = default;

  // A deep copy: what is appended to one is not seen by the other. It is also the snapshot to go
  // back to where truncate() cannot.
  virtual std::unique_ptr<State> fork() const = 0;

  // Bytes allocated now, scratch not counted.
  virtual int64_t bytes() const = 0;

  // Tokens that went in.
  virtual int64_t length() const = 0;

  // Goes back to the first `length` tokens. Throws Error where the mathematics forbids it (a
  // recurrence has forgotten them): keep a fork() instead.
  virtual void truncate(int64_t length) = 0;

  // Writes every tensor as `prefix + NAME`; load() takes the same names, checks shapes and throws
  // Error naming the first tensor that is missing or does not fit.
  virtual void save(NamedTensors& out, const std::string& prefix) const = 0;
  virtual void load(const NamedTensors& in, const std::string& prefix) = 0;
};

}  // namespace heed
