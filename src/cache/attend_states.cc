// See attend_states.h.
#include "cache/attend_states.h"

#include <ATen/ATen.h>

#include "op/attend.h"

namespace heed {
namespace {

int32_t kernel_dtype(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return HEED_FLOAT32;
    case at::kBFloat16:
      return HEED_BFLOAT16;
    case at::kHalf:
      return HEED_FLOAT16;
    default:
      throw UsageError("attention over a cache takes float32, bfloat16 or float16, not {}",
                       c10::toString(type));
  }
}

const char* row_pointer(const at::Tensor& t, int64_t row, int64_t head) {
  return static_cast<const char*>(t.const_data_ptr()) +
         (row * t.stride(0) + head * t.stride(1)) * static_cast<int64_t>(t.element_size());
}

// Kept between calls so that decoding does not allocate.
struct Workspace {
  std::vector<kernel::AttendJob> jobs;
  std::vector<kernel::Segment> segments;
  std::vector<size_t> first;  // of each job's segments
};

at::Tensor attend_cpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      std::span<const int64_t> bounds, std::span<KvState* const> states,
                      const std::vector<HeadProgram>& programs, double scale) {
  thread_local Workspace work;
  work.jobs.clear();
  work.segments.clear();
  work.first.clear();
  const int64_t heads = k.size(1), group = q.size(1) / heads;
  const auto cache_type = states.empty() ? k.scalar_type() : states[0]->options().dtype;
  at::Tensor out = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
  at::Tensor chunk_k = k, chunk_v = v;  // in the cache's dtype
  if (k.scalar_type() != cache_type) {
    bool chunk = false;
    for (size_t s = 0; s + 1 < bounds.size(); ++s) chunk |= bounds[s + 1] - bounds[s] > 1;
    if (chunk) {
      chunk_k = k.to(cache_type);
      chunk_v = v.to(cache_type);
    }
  }
  for (size_t s = 0; s + 1 < bounds.size(); ++s) {
    const int64_t begin = bounds[s], queries = bounds[s + 1] - begin;
    if (queries == 0) continue;
    KvState* state = states.empty() ? nullptr : states[s];
    const int64_t past = state ? state->length() : 0;
    const bool append_first = state && queries == 1;
    const bool sees_all = state && state->sees_all(queries);
    if (append_first) state->append(k.narrow(0, begin, 1), v.narrow(0, begin, 1));
    for (int64_t h = 0; h < heads; ++h) {
      const HeadProgram& program = state ? state->programs()[h] : programs[h];
      work.first.push_back(work.segments.size());
      if (state) state->add_segments(h, work.segments);
      if (!append_first) {
        kernel::Segment own;
        own.k = row_pointer(chunk_k, begin, h);
        own.v = row_pointer(chunk_v, begin, h);
        own.k_stride = chunk_k.stride(0);
        own.v_stride = chunk_v.stride(0);
        own.length = queries;
        own.position = past;
        work.segments.push_back(own);
      }
      kernel::AttendJob job;
      job.q = row_pointer(q, begin, h * group);
      job.q_stride = q.stride(0);
      job.q_head_stride = q.stride(1);
      job.out = const_cast<char*>(row_pointer(out, begin, h * group));
      job.out_stride = out.stride(0);
      job.out_head_stride = out.stride(1);
      job.queries = queries;
      job.q_position = past;
      job.segment_count = static_cast<int32_t>(work.segments.size() - work.first.back());
      if (!sees_all) {
        job.window = program.window;
        job.sinks = program.sinks;
      }
      work.jobs.push_back(job);
    }
  }
  for (size_t i = 0; i < work.jobs.size(); ++i) {
    work.jobs[i].segments = work.segments.data() + work.first[i];
  }
  kernel::AttendTable table;
  table.jobs = work.jobs.data();
  table.job_count = static_cast<int64_t>(work.jobs.size());
  table.group = static_cast<int32_t>(group);
  table.head_dim = static_cast<int32_t>(q.size(2));
  table.value_dim = static_cast<int32_t>(v.size(2));
  table.q_dtype = kernel_dtype(q.scalar_type());
  table.kv_dtype = kernel_dtype(cache_type);
  table.scale = static_cast<float>(scale);
  op::attend_jobs(table);
  for (size_t s = 0; s + 1 < bounds.size() && !states.empty(); ++s) {
    const int64_t begin = bounds[s], queries = bounds[s + 1] - begin;
    if (queries > 1) {
      states[s]->append(chunk_k.narrow(0, begin, queries), chunk_v.narrow(0, begin, queries));
    }
  }
  return out;
}

}  // namespace

// Other devices: gather what a head keeps, then PyTorch's attention with the mask of its program;
// heads of one program go together.
at::Tensor attend_states_gathered(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  std::span<const int64_t> bounds, std::span<KvState* const> states,
                                  const std::vector<HeadProgram>& programs, double scale) {
  const int64_t heads = k.size(1), group = q.size(1) / heads;
  at::Tensor out = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
  for (size_t s = 0; s + 1 < bounds.size(); ++s) {
    const int64_t begin = bounds[s], queries = bounds[s + 1] - begin;
    if (queries == 0) continue;
    KvState* state = states.empty() ? nullptr : states[s];
    const int64_t past = state ? state->length() : 0;
    const bool sees_all = state && state->sees_all(queries);
    const auto& plan = state ? state->programs() : programs;
    const auto cache_type = state ? state->options().dtype : k.scalar_type();
    const at::Tensor own_k = k.narrow(0, begin, queries).to(cache_type).to(q.scalar_type());
    const at::Tensor own_v = v.narrow(0, begin, queries).to(cache_type).to(q.scalar_type());
    std::vector<bool> done(heads, false);
    for (int64_t first = 0; first < heads; ++first) {
      if (done[first]) continue;
      std::vector<int64_t> same;
      for (int64_t h = first; h < heads; ++h) {
        if (plan[h] == plan[first]) {
          same.push_back(h);
          done[h] = true;
        }
      }
      std::vector<at::Tensor> ks, vs, qs, positions;
      for (int64_t h : same) {
        std::vector<at::Tensor> kr, vr;
        if (state) {
          for (const KvState::Run& run : state->runs(h)) {
            kr.push_back(run.k);
            vr.push_back(run.v);
            if (h == first) {
              positions.push_back(at::arange(run.position, run.position + run.k.size(0),
                                             q.options().dtype(at::kLong)));
            }
          }
        }
        at::Tensor kh = own_k.select(1, h), vh = own_v.select(1, h);
        if (!kr.empty()) {
          kh = at::cat({at::cat(kr).to(q.scalar_type()), kh});
          vh = at::cat({at::cat(vr).to(q.scalar_type()), vh});
        }
        ks.push_back(kh);
        vs.push_back(vh);
        qs.push_back(q.narrow(0, begin, queries).narrow(1, h * group, group).transpose(0, 1));
      }
      const at::Tensor key = at::stack(ks).repeat_interleave(group, 0).unsqueeze(0);
      const at::Tensor value = at::stack(vs).repeat_interleave(group, 0).unsqueeze(0);
      const at::Tensor query = at::cat(qs).unsqueeze(0);
      const HeadProgram program = sees_all ? HeadProgram{} : plan[first];
      at::Tensor result;
      if (past == 0 && program.full()) {
        result = at::scaled_dot_product_attention(query, key, value, {}, 0.0, true, scale);
      } else {
        const auto longs = q.options().dtype(at::kLong);
        positions.push_back(at::arange(past, past + queries, longs));
        const at::Tensor j = at::cat(positions).unsqueeze(0);
        const at::Tensor p = at::arange(past, past + queries, longs).unsqueeze(1);
        at::Tensor visible = j <= p;
        if (!program.full()) {
          visible = visible.logical_and((j < program.sinks).logical_or(j > p - program.window));
        }
        result = at::scaled_dot_product_attention(query, key, value, visible, 0.0, false, scale);
      }
      for (size_t i = 0; i < same.size(); ++i) {
        out.narrow(0, begin, queries)
            .narrow(1, same[i] * group, group)
            .copy_(result[0].narrow(0, static_cast<int64_t>(i) * group, group).transpose(0, 1));
      }
    }
    if (state) state->append(k.narrow(0, begin, queries), v.narrow(0, begin, queries));
  }
  return out;
}

at::Tensor attend_states(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         std::span<const int64_t> bounds, std::span<KvState* const> states,
                         const std::vector<HeadProgram>& programs, double scale) {
  if (!q.is_cpu()) return attend_states_gathered(q, k, v, bounds, states, programs, scale);
  if (q.scalar_type() == at::kHalf || q.scalar_type() == at::kDouble) {
    return attend_cpu(q.to(at::kFloat), k.to(at::kFloat), v.to(at::kFloat), bounds, states,
                      programs, scale)
        .to(q.scalar_type());
  }
  return attend_cpu(q, k, v, bounds, states, programs, scale);
}

}  // namespace heed
