// See attend_states.h.
#include "cache/attend_states.h"

#include <ATen/ATen.h>

#include <algorithm>

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

using Group = GroupedRows::Group;

// x [T, Hk * group, D] as [T, n heads, group, D] of the program's heads.
at::Tensor queries_of(const Group& g, const at::Tensor& q, int64_t kv_heads) {
  return heads_of(g, q.unflatten(1, {kv_heads, q.size(1) / kv_heads}));
}

// One query a head over all that its group keeps: [n heads, group, D] in float32.
at::Tensor attend_kept(const at::Tensor& q, const Group& g, int64_t length, double scale) {
  const auto wide = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const GroupedRows::Rows held = GroupedRows::held(g, length);
  at::Tensor keys = held.k.to(wide), values = held.v.to(wide);
  if (g.mean) {
    keys = at::cat({keys, g.mean->k}, 1);
    values = at::cat({values, g.mean->v}, 1);
  }
  const at::Tensor scores = at::bmm(q.to(wide).mul(scale), keys.transpose(1, 2));
  if (g.mean) scores.narrow(2, scores.size(2) - 1, 1).add_(g.mean->bias);
  return at::bmm(at::softmax(scores, -1), values);
}

// Queries at positions past, past + 1, ... of a group's heads [T, n, group, D] over what it kept
// before and the same tokens' keys and values [n, T, D]; returns [n, group, T, D].
at::Tensor attend_chunk(const at::Tensor& q, const at::Tensor& own_k, const at::Tensor& own_v,
                        const std::vector<GroupedRows::Run>& runs, const HeadProgram& program,
                        int64_t past, double scale) {
  const int64_t queries = q.size(0), heads = q.size(1), group = q.size(2);
  std::vector<at::Tensor> ks, vs, positions;
  const auto longs = q.options().dtype(at::kLong);
  for (const GroupedRows::Run& run : runs) {
    ks.push_back(run.k.to(q.scalar_type()));
    vs.push_back(run.v.to(q.scalar_type()));
    positions.push_back(at::arange(run.position, run.position + run.k.size(1), longs));
  }
  ks.push_back(own_k);
  vs.push_back(own_v);
  const auto per_query_head = [&](const std::vector<at::Tensor>& parts) {
    const at::Tensor all = parts.size() == 1 ? parts[0] : at::cat(parts, 1);
    return all.repeat_interleave(group, 0).unsqueeze(0);
  };
  const at::Tensor key = per_query_head(ks), value = per_query_head(vs);
  const at::Tensor query = q.permute({1, 2, 0, 3}).flatten(0, 1).unsqueeze(0);
  at::Tensor out;
  if (runs.empty() && program.full()) {
    out = at::scaled_dot_product_attention(query, key, value, {}, 0.0, true, scale);
  } else {
    const at::Tensor own = at::arange(past, past + queries, longs);
    positions.push_back(own);
    const at::Tensor j = at::cat(positions).unsqueeze(0), p = own.unsqueeze(1);
    at::Tensor visible = j <= p;
    if (!program.full()) {
      visible = visible.logical_and((j < program.sinks).logical_or(j > p - program.window));
    }
    out = at::scaled_dot_product_attention(query, key, value, visible, 0.0, false, scale);
  }
  return out[0].unflatten(0, {heads, group});
}

}  // namespace

at::Tensor attend_states_grouped(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 std::span<const int64_t> bounds, std::span<KvState* const> states,
                                 const std::vector<HeadProgram>& programs, double scale) {
  const int64_t heads = k.size(1), group = q.size(1) / heads;
  std::vector<Group> stateless;
  if (states.empty()) stateless = group_heads(programs, q.device());
  at::Tensor out = at::empty({q.size(0), heads, group, v.size(2)}, q.options());
  for (size_t s = 0; s + 1 < bounds.size(); ++s) {
    const int64_t begin = bounds[s], queries = bounds[s + 1] - begin;
    if (queries == 0) continue;
    KvState* state = states.empty() ? nullptr : states[s];
    if (state && !state->grouped()) throw UsageError("this state does not group its heads");
    const at::Tensor qs = q.narrow(0, begin, queries);
    const at::Tensor ks = k.narrow(0, begin, queries), vs = v.narrow(0, begin, queries);
    const int64_t past = state ? state->length() : 0;
    const bool sees_all = state && state->sees_all(queries);
    const bool step = state && queries == 1;  // its ring then holds exactly what it sees
    if (step) state->append(ks, vs);
    const auto cache_type = state ? state->options().dtype : k.scalar_type();
    const auto own = [&](const Group& g, const at::Tensor& x) {  // as the cache will hold it
      return heads_of(g, x).to(cache_type).to(q.scalar_type()).transpose(0, 1);
    };
    for (const Group& g : state ? state->grouped()->groups() : stateless) {
      const at::Tensor query = queries_of(g, qs, heads);
      at::Tensor result;  // [T, n, group, D]
      if (step) {
        result = attend_kept(query[0], g, past + 1, scale).unsqueeze(0);
      } else {
        const auto runs = past > 0 ? GroupedRows::runs(g, past) : std::vector<GroupedRows::Run>{};
        result = attend_chunk(query, own(g, ks), own(g, vs), runs,
                              sees_all ? HeadProgram{} : g.program, past, scale)
                     .permute({2, 0, 1, 3});
      }
      at::Tensor target = out.narrow(0, begin, queries);
      if (g.index.defined()) {
        target.index_copy_(1, g.index, result.to(out.scalar_type()));
      } else {
        target.copy_(result);
      }
    }
    if (state && !step) state->append(ks, vs);
  }
  return out.flatten(1, 2);
}

void attend_held(const at::Tensor& q, const KvState& state, double scale, at::Tensor& out) {
  const auto heads = static_cast<int64_t>(state.programs().size());
  for (const Group& g : state.grouped()->groups()) {
    const at::Tensor result =
        attend_kept(queries_of(g, q.unsqueeze(0), heads)[0], g, state.length(), scale);
    at::Tensor target = out.unflatten(0, {heads, out.size(0) / heads});
    if (g.index.defined()) {
      target.index_copy_(0, g.index, result.to(out.scalar_type()));
    } else {
      target.copy_(result);
    }
  }
}

namespace {

bool keeps_means(const std::vector<HeadProgram>& programs) {
  return std::any_of(programs.begin(), programs.end(),
                     [](const HeadProgram& p) { return p.dropped != Dropped::kGone; });
}

// Whether a chunk must go token by token: the mean of what was dropped moves with every token.
bool goes_by_token(const KvState& state, int64_t queries) {
  if (queries == 1 || state.sees_all(queries)) return false;
  const int64_t length = state.length() + queries;
  return std::any_of(state.programs().begin(), state.programs().end(),
                     [&](const HeadProgram& p) { return p.kept(length) > p.held(length); });
}

at::Tensor attend_by_token(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           std::span<const int64_t> bounds, std::span<KvState* const> states,
                           double scale) {
  at::Tensor out = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
  for (size_t s = 0; s + 1 < bounds.size(); ++s) {
    const int64_t queries = bounds[s + 1] - bounds[s];
    if (queries == 0) continue;
    const int64_t count = goes_by_token(*states[s], queries) ? 1 : queries;
    const int64_t part[] = {0, count};
    for (int64_t row = bounds[s]; row < bounds[s + 1]; row += count) {
      const auto rows = [&](const at::Tensor& x) { return x.narrow(0, row, count); };
      rows(out).copy_(
          attend_states(rows(q), rows(k), rows(v), part, states.subspan(s, 1), {}, scale));
    }
  }
  return out;
}

}  // namespace

at::Tensor attend_states(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         std::span<const int64_t> bounds, std::span<KvState* const> states,
                         const std::vector<HeadProgram>& programs, double scale) {
  if (states.empty() && keeps_means(programs)) {
    KvOptions options;
    options.head_dim = k.size(2);
    options.dtype = k.scalar_type() == at::kDouble ? at::kFloat : k.scalar_type();
    options.device = k.device();
    options.grouped = !k.is_cpu();
    std::vector<std::unique_ptr<KvState>> own;
    std::vector<KvState*> list;
    for (size_t s = 0; s + 1 < bounds.size(); ++s) {
      own.push_back(std::make_unique<KvState>(programs, options));
      list.push_back(own.back().get());
    }
    return attend_states(q, k, v, bounds, list, {}, scale);
  }
  for (size_t s = 0; s < states.size(); ++s) {
    if (goes_by_token(*states[s], bounds[s + 1] - bounds[s])) {
      return attend_by_token(q, k, v, bounds, states, scale);
    }
  }
  if (!q.is_cpu() || (!states.empty() && states[0]->grouped())) {
    return attend_states_grouped(q, k, v, bounds, states, programs, scale);
  }
  if (q.scalar_type() == at::kHalf || q.scalar_type() == at::kDouble) {
    return attend_cpu(q.to(at::kFloat), k.to(at::kFloat), v.to(at::kFloat), bounds, states,
                      programs, scale)
        .to(q.scalar_type());
  }
  return attend_cpu(q, k, v, bounds, states, programs, scale);
}

}  // namespace heed
