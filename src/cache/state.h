// What decoding keeps for one sequence in one layer, after its description (state_spec.h): made,
// forked, saved, loaded, cut back and counted here, once for all layers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "cache/rows.h"
#include "cache/state_pool.h"
#include "cache/state_spec.h"
#include "io/error.h"

namespace heed {

class State final {
 public:
  // `pool`: where its memory comes from; null: from PyTorch, without a limit.
  explicit State(StateSpec spec, std::shared_ptr<StatePool> pool = nullptr);

  const StateSpec& spec() const { return spec_; }

  // What is appended to one is not seen by the other. It is also the snapshot to go back to where
  // truncate() cannot.
  std::unique_ptr<State> fork() const;
  // Bytes allocated now, scratch not counted; pages shared between forks count in each.
  int64_t bytes() const;
  // Tokens that went in.
  int64_t length() const { return length_; }
  // Counts tokens: the last thing that a layer's pass does.
  void advance(int64_t tokens) { length_ += tokens; }

  // Goes back to the first `length` tokens. Throws Error where the mathematics forbids it (a
  // recurrence has forgotten them, a window has dropped them), before anything has changed: keep a
  // fork() instead. 0 is always possible for recurrences.
  void truncate(int64_t length);
  void check_truncate(int64_t length) const;

  // Writes every tensor as PREFIX + NAME, the count of tokens as PREFIX + "length"; rows as Rows
  // does, behind the part's name where it has one. load() takes the same names, checks shapes and
  // throws Error naming the first tensor that is missing or does not fit.
  void save(NamedTensors& out, const std::string& prefix) const;
  void load(const NamedTensors& in, const std::string& prefix);

  size_t parts() const { return parts_.size(); }
  // Null where the part is something else.
  Rows* find_rows(size_t part) { return std::get_if<Rows>(&parts_[part]); }
  const Rows* find_rows(size_t part) const { return std::get_if<Rows>(&parts_[part]); }
  Rows& rows(size_t part = 0) { return std::get<Rows>(parts_[part]); }
  // Of a fixed part, or of a history of the last `most` inputs: written in place by the layer;
  // shapes never change.
  at::Tensor& tensor(size_t part) { return std::get<at::Tensor>(parts_[part]); }
  // A history of all inputs: with x [T, width] behind it, [all, width] as a view.
  at::Tensor extend(size_t part, const at::Tensor& x);

 private:
  struct Growing {
    at::Tensor room;  // [capacity, width]
    int64_t rows = 0;
  };
  using Part = std::variant<Rows, at::Tensor, Growing>;

  StateSpec spec_;
  std::shared_ptr<StatePool> pool_;
  std::vector<Part> parts_;
  int64_t length_ = 0;

  friend at::Tensor side_by_side(std::span<State* const> states, size_t part);
};

// One part of several sequences as one tensor [N, shape...]: what is written to it is written to
// the states. States that have been together before lie side by side and are seen through a view;
// others are moved there once.
at::Tensor side_by_side(std::span<State* const> states, size_t part);

}  // namespace heed
