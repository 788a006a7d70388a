// The key/value cache of one sequence and one layer, KV head by KV head as its program says.
//
// A full head keeps pages of 64 tokens, K and V apart; pages are shared between forks and copied
// when one of them writes. A window head keeps its sinks and a ring of exactly `window` rows. Keys
// lie there as they were given (after rotary embedding at absolute positions). Devices other than
// the CPU keep the same rows grouped by program (grouped_rows.h). See docs/decisions on caches and
// plans.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "cache/grouped_rows.h"
#include "cache/program.h"
#include "cache/state.h"
#include "kernel/attend/attend.h"

namespace heed {

struct KvOptions {
  int64_t head_dim = 0;
  at::ScalarType dtype = at::kFloat;  // float32, bfloat16 or float16
  at::Device device = at::kCPU;
  bool grouped = false;  // heads of one program in one tensor; needed by devices other than the CPU
  bool dense_prefill = false;
};

class KvState final : public State {
 public:
  static constexpr int64_t kPage = 64;  // tokens

  KvState(std::vector<HeadProgram> heads, const KvOptions& options);

  std::unique_ptr<State> fork() const override;
  // Bytes allocated for the heads; pages shared between forks count in each.
  int64_t bytes() const override;
  int64_t length() const override { return length_; }
  // Possible unless a window head has dropped rows that the shorter state would need.
  void truncate(int64_t length) override;
  // PREFIX + "length" and, for each head H, PREFIX + "hH.k", "hH.v" [rows held, D] in order of
  // position, and "hH.mean_k", "hH.mean_v" [1, D] where a mean of dropped ones is kept.
  void save(NamedTensors& out, const std::string& prefix) const override;
  void load(const NamedTensors& in, const std::string& prefix) override;

  // The plan's formula: the sum over heads of 2 D e min(N, sinks + window), and 2 D e for the mean
  // of what was dropped where a program keeps it (which lies there in float32 besides).
  static int64_t formula_bytes(const std::vector<HeadProgram>& heads, int64_t head_dim,
                               int64_t element_size, int64_t tokens);

  // Appends keys and values [T, Hk, D] of any floating type (converted); last dimension contiguous.
  void append(const at::Tensor& k, const at::Tensor& v);

  // The mean of what a head dropped, k and v [1, D] in float32, and what is added to its logit.
  // Undefined tensors where there is none.
  struct Stand {
    at::Tensor k, v;
    double bias = 0;
  };
  Stand mean(int64_t head) const;
  // The rows that a head holds, as runs of consecutive positions.
  struct Run {
    at::Tensor k, v;  // [rows, D], views of the cache
    int64_t position = 0;
  };
  std::vector<Run> runs(int64_t head) const;
  // The same as the kernel takes them, added to `out` (not where rows are grouped).
  void add_segments(int64_t head, std::vector<kernel::Segment>& out) const;

  // The rows by program, where they are grouped; else null.
  const GroupedRows* grouped() const { return grouped_ ? &*grouped_ : nullptr; }

  const std::vector<HeadProgram>& programs() const { return programs_; }
  const KvOptions& options() const { return options_; }
  // Whether a pass of `queries` tokens now runs with every head full (dense prefill).
  bool sees_all(int64_t queries) const {
    return options_.dense_prefill && length_ == 0 && queries > 1;
  }

 private:
  struct Rows {
    at::Tensor k, v;  // [n, D]
  };
  using RowsPtr = std::shared_ptr<Rows>;
  struct Mean {       // of what a window head dropped
    at::Tensor k, v;  // float32 [1, D]
    Rows rows;        // the same as the cache's type
    float bias = 0;   // of its logit
    int64_t count = 0;
  };
  struct Head {
    std::vector<RowsPtr> pages;             // full heads
    std::vector<kernel::Segment> segments;  // one a page, kept up to date
    RowsPtr sinks, ring;                    // window heads; the ring grows up to its window
    std::shared_ptr<const Mean> mean;       // never changed, only replaced
  };
  RowsPtr make_rows(int64_t rows) const;
  void own(RowsPtr& rows) const;
  void append_full(Head& head, const at::Tensor& k, const at::Tensor& v);
  void append_window(Head& head, const HeadProgram& program, const at::Tensor& k,
                     const at::Tensor& v);
  struct Saved {
    std::vector<at::Tensor> k, v, mean_k, mean_v;  // of each head
  };
  void load_head(int64_t head, const Saved& saved, int64_t tokens);
  void load_groups(const Saved& saved, int64_t tokens);
  void drop(Head& head, const HeadProgram& program, const at::Tensor& k, const at::Tensor& v) const;
  void set_mean(Head& head, const HeadProgram& program, const at::Tensor& k, const at::Tensor& v,
                int64_t count) const;
  void grow_ring(Head& head, const HeadProgram& program, int64_t rows);

  std::vector<HeadProgram> programs_;
  KvOptions options_;
  std::vector<Head> heads_;             // unless
  std::optional<GroupedRows> grouped_;  // rows are grouped
  int64_t length_ = 0;
};

}  // namespace heed
