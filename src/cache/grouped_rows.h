// The keys and values of one layer for devices on which starting a call costs more than its work:
// KV heads of one program lie in one tensor, so that appending and attending take a few calls a
// layer, however many heads there are.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <utility>
#include <vector>

#include "cache/program.h"

namespace heed {

struct KvOptions;

class GroupedRows {
 public:
  struct Rows {
    at::Tensor k, v;  // [n heads, rows, D]
  };
  struct Mean {       // of what a window group dropped
    at::Tensor k, v;  // float32 [n heads, 1, D]
    double bias = 0;  // of its logit
    int64_t count = 0;
  };
  // Row of position p: p, and behind the sinks of a window head sinks + (p - sinks) mod window.
  struct Group {
    HeadProgram program;
    std::vector<int64_t> heads;        // in order
    at::Tensor index;                  // the same on the device; undefined: all heads of the layer
    std::shared_ptr<Rows> rows;        // shared by forks until one of them writes
    std::shared_ptr<const Mean> mean;  // never changed, only replaced
  };
  struct Run {
    at::Tensor k, v;  // [n heads, rows, D], views of the cache
    int64_t position = 0;
  };

  GroupedRows(const std::vector<HeadProgram>& programs, const KvOptions& options);

  const std::vector<Group>& groups() const { return groups_; }
  // k and v [T, Hk, D] of any floating type, after `length` tokens.
  void append(const at::Tensor& k, const at::Tensor& v, int64_t length);
  // The same for one group, from [n heads, T, D].
  void append(Group& group, const at::Tensor& k, const at::Tensor& v, int64_t length) const;
  Group& group_of(int64_t head);
  const Group& group_of(int64_t head) const;
  // What a group holds after `length` tokens: by position, or as it lies.
  static std::vector<Run> runs(const Group& group, int64_t length);
  static Rows held(const Group& group, int64_t length);
  static void set_mean(Group& group, const at::Tensor& k, const at::Tensor& v, int64_t count);
  void truncate(int64_t length);
  int64_t bytes() const;

 private:
  std::shared_ptr<Rows> make_rows(const Group& group, int64_t rows) const;
  void grow(Group& group, int64_t rows) const;
  void drop(Group& group, const at::Tensor& k, const at::Tensor& v, int64_t length) const;

  std::vector<Group> groups_;
  int64_t head_dim_;
  at::TensorOptions options_;
};

// Heads of one program together, `index` on `device`. No rows.
std::vector<GroupedRows::Group> group_heads(const std::vector<HeadProgram>& programs,
                                            const at::Device& device);

// The columns [T, n heads, ...] of x [T, Hk, ...] that belong to a group.
at::Tensor heads_of(const GroupedRows::Group& group, const at::Tensor& x);

}  // namespace heed
