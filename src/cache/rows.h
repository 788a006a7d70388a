// The keys and values of one sequence in one layer, KV head by KV head as its program says.
//
// KV heads of one program lie together. Those that keep everything have pages of 64 tokens (or one
// growing tensor, where the part is grouped); pages are shared between forks and copied when one of
// them writes. Those with a window keep their sinks and behind them a ring of exactly `window`
// rows: position p lies in row p, and behind the sinks in row sinks + (p - sinks) mod window. Keys
// lie there as they were given (after rotary embedding at absolute positions).
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cache/state_pool.h"
#include "cache/state_spec.h"
#include "kernel/attend/attend.h"

namespace heed {

class Rows {
 public:
  static constexpr int64_t kPage = 64;  // tokens

  // `pool` may be null. Throws UsageError for a description that does not hold together.
  Rows(RowsPart part, const at::Device& device, std::shared_ptr<StatePool> pool = nullptr);

  const RowsPart& part() const { return part_; }
  int64_t heads() const { return static_cast<int64_t>(part_.programs.size()); }
  int64_t length() const { return length_; }
  // Bytes allocated; pages shared between forks count in each.
  int64_t bytes() const;
  // What bytes() is after `tokens` tokens.
  static int64_t allocated(const RowsPart& part, int64_t tokens);
  // Whether a pass of `queries` tokens now runs with every head full (dense prefill).
  bool sees_all(int64_t queries) const {
    return part_.dense_prefill && length_ == 0 && queries > 1;
  }

  // Heads of one program.
  struct Block {
    // [n, rows, D]; v a view of k where it lies in it. In few bits: codes uint8 [n, rows, bytes]
    // and scales bfloat16 [n, rows, 1].
    at::Tensor k, v, k_scale, v_scale;
    std::vector<at::Tensor> columns;  // [n, rows, width]
  };
  // Rows to come, as groups in few bits will hold them: all of them in `rows`, the first ones of a
  // sequence in `exact` too. Turned, like all that such a group holds (kernel/quant/quant.h).
  struct Incoming {
    int64_t position = 0;
    std::vector<Block> rows, exact;  // by group; empty where nothing is in few bits
  };
  Incoming prepare(const at::Tensor& k, const at::Tensor& v) const;
  // Those rows of a head as the kernel takes them, added to `out`.
  void add_segments(int64_t head, const Incoming& incoming,
                    std::vector<kernel::Segment>& out) const;

  // Appends keys [T, Hk, k_dim] and values [T, Hk, v_dim] of any floating type (converted; v is not
  // read where it lies in k), last dimension contiguous, and for each column float32 [T, Hk,
  // width]. `incoming`: what prepare() gave for the same rows, so that it is not done again.
  void append(const at::Tensor& k, const at::Tensor& v, std::span<const at::Tensor> columns = {},
              const Incoming* incoming = nullptr);

  // Adds delta [Hk, width] to a column of every row (a sum that begins anew). Pages that forks
  // share are copied.
  void add_to_column(size_t column, const at::Tensor& delta);

  // The mean of what a head dropped, k and v [1, D] in float32, and what is added to its logit.
  // Undefined tensors where there is none.
  struct Stand {
    at::Tensor k, v;
    double bias = 0;
  };
  Stand mean(int64_t head) const;
  // Rows of consecutive positions, views of the cache: of one head [rows, D], of a group [n, rows,
  // D], with the columns likewise.
  struct Run {
    at::Tensor k, v;
    std::vector<at::Tensor> columns;
    int64_t position = 0;
  };
  std::vector<Run> runs(int64_t head) const;
  // The same as the kernel takes them, added to `out`; a column "bias" is added to the logits.
  void add_segments(int64_t head, std::vector<kernel::Segment>& out) const;

  struct Mean {       // of what a window group dropped
    at::Tensor k, v;  // float32 [n, 1, D]
    Block rows;       // the same in the cache's dtype, for the kernel (not where grouped)
    float bias = 0;   // of its logit
    int64_t count = 0;
  };
  struct Group {
    HeadProgram program;
    std::vector<int64_t> heads;  // in order
    at::Tensor index;            // the same on the device; undefined: all heads of the layer
    std::vector<std::shared_ptr<Block>> blocks;          // pages, or one
    std::shared_ptr<Block> exact;                        // the first `sinks` rows beside few bits
    at::Tensor k_centre, v_centre;                       // turned, float32 [n, D]; undefined: none
    std::vector<std::vector<kernel::Segment>> segments;  // of pages, by head: kept up to date
    std::shared_ptr<const Mean> mean;                    // never changed, only replaced
  };
  const std::vector<Group>& groups() const { return groups_; }
  // What a group holds: by position; or (one block alone) as it lies.
  std::vector<Run> runs(const Group& group) const;
  Run held(const Group& group) const;
  // The rows to come of a group in few bits, as numbers.
  Run plain(const Group& group, const Incoming& incoming) const;

  // Throws Error, with the reason, where rows are gone that a shorter state would need.
  void check_truncate(int64_t length) const;
  void truncate(int64_t length);

  // PREFIX + "length" and, for each head H, PREFIX + "hH.k", "hH.v" [rows held, D] in order of
  // position, "hH.COLUMN" [rows held, width], and "hH.mean_k", "hH.mean_v" [1, D] where a mean of
  // dropped ones is kept. In few bits "hH.k", "hH.v" are codes, with "hH.k_scale", "hH.v_scale"
  // [rows held, 1] and "hH.exact_k", "hH.exact_v" of the first rows.
  void save(NamedTensors& out, const std::string& prefix) const;
  void load(const NamedTensors& in, const std::string& prefix);

 private:
  struct Source;
  bool paged(const Group& group) const { return group.program.full() && !part_.grouped; }
  at::Tensor make(at::IntArrayRef sizes, at::ScalarType dtype) const;
  // Memory of a group's rows, exact or as its program says.
  std::shared_ptr<Block> make_block(const Group& group, int64_t rows, bool exact = false) const;
  void own(std::shared_ptr<Block>& block, const Group& group) const;
  void copy(const Source& from, int64_t row, Block& to, int64_t slot, int64_t count) const;
  kernel::Segment segment(const Group& group, const Block& block, int64_t n, int64_t row,
                          int64_t length, int64_t position) const;
  // Rows `first`.. of a block as numbers, the exact ones among them: [n, count, D].
  Run plain_run(const Group& group, const Block& block, int64_t row, int64_t count,
                int64_t position, const Block* exact_rows, int64_t exact_from) const;
  at::Tensor centres(const Group& group, std::vector<float> Centre::*side, int64_t dim) const;
  // What a group holds, by position; make(block, row, count, position) gives a run.
  template <class F>
  std::vector<Run> runs(const Group& group, F&& make) const;
  void save_codes(int64_t head, NamedTensors& out, const std::string& prefix) const;
  void append_exact(Group& group, const Block& from, int64_t length) const;
  void append(Group& group, const Source& from, int64_t length) const;
  void append_pages(Group& group, const Source& from, int64_t length) const;
  void grow(Group& group, int64_t rows) const;
  void drop(Group& group, const Source& from, int64_t length) const;
  void set_mean(Group& group, const at::Tensor& k, const at::Tensor& v, int64_t count) const;
  void load_group(Group& group, const NamedTensors& in, const std::string& prefix, int64_t tokens);
  void check_programs() const;

  RowsPart part_;
  at::Device device_;
  std::shared_ptr<StatePool> pool_;
  std::vector<Group> groups_;
  std::vector<std::pair<size_t, int64_t>> places_;  // of each head: its group, its place there
  int64_t bias_ = -1;                               // the column "bias"; -1: none
  int64_t length_ = 0;
};

// Heads of one program together, `index` on `device`. No rows.
std::vector<Rows::Group> group_heads(const std::vector<HeadProgram>& programs,
                                     const at::Device& device);

// The columns [T, n heads, ...] of x [T, Hk, ...] that belong to a group.
at::Tensor heads_of(const Rows::Group& group, const at::Tensor& x);

}  // namespace heed
