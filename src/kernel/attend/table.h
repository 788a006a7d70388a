// The job table of one call on tensors, and of a cache: what the C library, the operator, decoding
// and the measures build. Nothing is checked or allocated here but the table itself.
#pragma once

#include <cstdint>
#include <vector>

#include "heed/view.h"
#include "kernel/attend/call.h"

namespace heed::kernel {

// Keeps its memory from call to call.
struct AttendJobs {
  std::vector<Segment> segments;
  std::vector<AttendJob> jobs;
  std::vector<AttendGradJob> grads;  // of a backward pass
  Axis axes[kMaxAxes];
  AttendTable table;
};

// Whether every query head is a job of its own, for it has lists of its own. The gradients of k and
// v have Hq heads then.
inline bool heads_apart(const AttendCall& call) {
  return given(call.in.block_start) && call.in.block_start.sizes[1] != call.in.k.sizes[2];
}

// `jobs` points into itself and into the tensors of `call`, which must have passed the checks. With
// `backward` the gradients of `call` are what is added to; call.grad.out must be there.
void build_table(const AttendCall& call, bool backward, AttendJobs& jobs);

// A table over rows that lie in several places: jobs whose segments are added one by one. Keeps its
// memory from table to table.
class RaggedTable {
 public:
  // q, out [rows,Hq,D or Dv] and lse [rows,Hq] (may be absent) of all jobs, with Hk KV heads.
  void start(const heed_view& q, const heed_view& out, const heed_view& lse, int64_t kv_heads,
             int32_t kv_dtype);
  // The segments of the job that is added next: append to them.
  std::vector<Segment>& segments() { return segments_; }
  // The job of KV head `head` for rows [begin, begin + queries), the first at `position`, over the
  // segments since the job before. Its rule may still be set.
  AttendJob& add(int64_t begin, int64_t queries, int64_t head, int64_t position);
  // Valid until the next start.
  AttendTable& finish();

 private:
  heed_view q_{}, out_{}, lse_{};
  std::vector<Segment> segments_;
  std::vector<AttendJob> jobs_;
  std::vector<size_t> first_;  // of each job's segments
  AttendTable table_;
};

}  // namespace heed::kernel
