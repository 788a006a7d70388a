// See attend_states.h.
#include "cache/attend_states.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "cache/quantised.h"
#include "io/error.h"
#include "kernel/attend/table.h"
#include "op/attend.h"
#include "op/view.h"

namespace heed {
namespace {

int32_t token_dtype(at::ScalarType type) {
  if (type != at::kFloat && type != at::kBFloat16 && type != at::kHalf) {
    throw UsageError("attention over a cache takes float32, bfloat16 or float16, not {}",
                     c10::toString(type));
  }
  return op::view_dtype(type);
}

heed_view token_view(const at::Tensor& t) {
  token_dtype(t.scalar_type());
  return op::view_of(t);
}

const char* row_pointer(const at::Tensor& t, int64_t row, int64_t head) {
  return static_cast<const char*>(t.const_data_ptr()) +
         (row * t.stride(0) + head * t.stride(1)) * static_cast<int64_t>(t.element_size());
}

// The keys and values of the rows themselves, in the cache's dtype, and what is added to their
// logits.
struct OwnRows {
  at::Tensor k, v, bias;

  kernel::Segment segment(int64_t begin, int64_t head, int64_t queries, int64_t position) const {
    kernel::Segment own;
    own.k = row_pointer(k, begin, head);
    own.v = row_pointer(v, begin, head);
    own.k_stride = k.stride(0);
    own.v_stride = v.stride(0);
    own.length = queries;
    own.position = position;
    if (bias.defined()) {
      own.bias = reinterpret_cast<const float*>(row_pointer(bias, begin, head));
      own.bias_stride = bias.stride(0);
      own.bias_head_stride = bias.size(2) > 1 ? 1 : 0;
    }
    return own;
  }
  Rows::Incoming prepare(const Rows& state, int64_t begin, int64_t count) const {
    return state.prepare(k.narrow(0, begin, count), v.narrow(0, begin, count));
  }
  void append_to(Rows& state, int64_t begin, int64_t count,
                 const Rows::Incoming* incoming = nullptr) const {
    at::Tensor column;
    if (bias.defined()) column = bias.narrow(0, begin, count);
    state.append(k.narrow(0, begin, count), v.narrow(0, begin, count),
                 {&column, static_cast<size_t>(bias.defined())}, incoming);
  }
};

bool in_few_bits(const std::vector<HeadProgram>& programs) {
  return std::any_of(programs.begin(), programs.end(),
                     [](const HeadProgram& p) { return p.in_few_bits(); });
}

// Turns the heads of x [N, Hq, D] whose program keeps keys (values) in few bits, as what they keep
// is turned: the queries before attention, the outputs after it.
void rotate_heads(at::Tensor& x, std::span<Rows* const> states, std::span<const int64_t> bounds,
                  int8_t HeadProgram::*bits) {
  for (size_t s = 0; s + 1 < bounds.size(); ++s) {
    const auto& programs = states[s]->part().programs;
    const int64_t group = x.size(1) / static_cast<int64_t>(programs.size());
    for (size_t h = 0; h < programs.size(); ++h) {
      if (programs[h].*bits == 16) continue;
      const at::Tensor part = x.narrow(0, bounds[s], bounds[s + 1] - bounds[s])
                                  .narrow(1, static_cast<int64_t>(h) * group, group);
      part.copy_(rotated(part));
    }
  }
}

// The larger of two tables' P, or 0.
int64_t reach_of(const AttendRule& rule) {
  const at::Tensor& table = rule.relative_bias.defined() ? rule.relative_bias : rule.relative_scale;
  return table.defined() ? (table.size(1) + 1) / 2 : 0;
}

void check_reach(const AttendRule& rule, int64_t tokens) {
  const int64_t reach = reach_of(rule);
  if (reach > 0 && tokens > reach) {
    throw UsageError("a table by distance reaches {} tokens, the sequence has {}", reach, tokens);
  }
}

void set_tables(kernel::AttendJob& job, const AttendRule& rule, int64_t head, int64_t tokens) {
  job.reach = reach_of(rule);
  if (job.reach == 0) return;
  check_reach(rule, tokens);
  job.relative_stride = 2 * job.reach - 1;
  const auto row = [&](const at::Tensor& table) {
    return table.defined() ? table.const_data_ptr<float>() + head * job.relative_stride : nullptr;
  };
  job.relative_bias = row(rule.relative_bias);
  job.relative_scale = row(rule.relative_scale);
}

at::Tensor attend_cpu(const at::Tensor& q_in, const at::Tensor& k, const at::Tensor& v,
                      std::span<const int64_t> bounds, std::span<Rows* const> states,
                      const std::vector<HeadProgram>& programs, const AttendRule& rule,
                      const at::Tensor& bias) {
  thread_local kernel::RaggedTable table;  // kept between calls so that decoding does not allocate
  bool packed = false;
  for (const Rows* state : states) packed |= in_few_bits(state->part().programs);
  at::Tensor q = q_in;
  if (packed) {
    q = q_in.to(at::kFloat, false, true);
    rotate_heads(q, states, bounds, &HeadProgram::k_bits);
  }
  const int64_t heads = k.size(1), group = q.size(1) / heads;
  const auto cache_type = states.empty() ? k.scalar_type() : states[0]->part().dtype;
  at::Tensor out = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
  table.start(token_view(q), token_view(out), {}, heads, token_dtype(cache_type));
  OwnRows own{k, v, bias};
  const OwnRows given = own;
  std::vector<Rows::Incoming> incoming(packed ? states.size() : 0);
  if (k.scalar_type() != cache_type) {
    bool chunk = false;
    for (size_t s = 0; s + 1 < bounds.size(); ++s) chunk |= bounds[s + 1] - bounds[s] > 1;
    if (chunk) {
      own.k = k.to(cache_type);
      own.v = v.to(cache_type);
    }
  }
  for (size_t s = 0; s + 1 < bounds.size(); ++s) {
    const int64_t begin = bounds[s], queries = bounds[s + 1] - begin;
    if (queries == 0) continue;
    Rows* state = states.empty() ? nullptr : states[s];
    const int64_t past = state ? state->length() : 0;
    const bool append_first = state && queries == 1;
    const bool sees_all = state && state->sees_all(queries);
    if (append_first) own.append_to(*state, begin, 1);
    if (packed && !append_first) incoming[s] = given.prepare(*state, begin, queries);
    for (int64_t h = 0; h < heads; ++h) {
      const HeadProgram& program = state ? state->part().programs[h] : programs[h];
      if (state) state->add_segments(h, table.segments());
      if (!append_first && program.in_few_bits()) {
        state->add_segments(h, incoming[s], table.segments());
      } else if (!append_first) {
        table.segments().push_back(own.segment(begin, h, queries, past));
      }
      kernel::AttendJob& job = table.add(begin, queries, h, past);
      job.sigmoid_bias = static_cast<float>(rule.sigmoid_bias);
      if (rule.slopes.defined()) job.slopes = rule.slopes.const_data_ptr<float>() + h * group;
      set_tables(job, rule, h * group, past + queries);
      if (!sees_all) {
        job.window = program.window;
        job.sinks = program.sinks;
      }
    }
  }
  kernel::AttendTable& jobs = table.finish();
  jobs.scale = static_cast<float>(rule.scale);
  jobs.weight = rule.weight;
  jobs.soft_cap = static_cast<float>(rule.soft_cap);
  op::attend_jobs(jobs);
  for (size_t s = 0; s + 1 < bounds.size() && !states.empty(); ++s) {
    const int64_t begin = bounds[s], queries = bounds[s + 1] - begin;
    if (queries > 1) own.append_to(*states[s], begin, queries, packed ? &incoming[s] : nullptr);
  }
  if (packed) {
    rotate_heads(out, states, bounds, &HeadProgram::v_bits);
    out = out.to(q_in.scalar_type());
  }
  return out;
}

using Group = Rows::Group;

// x [T, Hk * group, D] as [T, n heads, group, D] of the program's heads.
at::Tensor queries_of(const Group& g, const at::Tensor& q, int64_t kv_heads) {
  return heads_of(g, q.unflatten(1, {kv_heads, q.size(1) / kv_heads}));
}

// Entries of a table by distance for the heads of a group, [n, group, Tq, keys].
at::Tensor by_distance(const at::Tensor& table, const Group& g, const at::Tensor& x,
                       const at::Tensor& p, const at::Tensor& j) {
  at::Tensor rows = table.to(x.device(), x.scalar_type()).view({-1, x.size(1), table.size(1)});
  if (g.index.defined()) rows = rows.index_select(0, g.index);
  const int64_t reach = (table.size(1) + 1) / 2;
  const at::Tensor entry = j.unsqueeze(0).sub(p.unsqueeze(1)).add(reach - 1).to(at::kLong);
  return rows.index_select(2, entry.clamp(0, table.size(1) - 1).flatten())
      .view({rows.size(0), x.size(1), p.size(0), j.size(0)});
}

// The weights of logits x [n, group, Tq, keys] (scaled): bias [n, keys, width] is added, keys that
// are not visible [Tq, keys] get none. ALiBi's distances need the positions, float [Tq] and [keys].
at::Tensor weigh(at::Tensor x, const Group& g, const AttendRule& rule, const at::Tensor& bias,
                 const at::Tensor& visible, const at::Tensor& p, const at::Tensor& j) {
  if (rule.soft_cap > 0) x = at::tanh(x / rule.soft_cap) * rule.soft_cap;
  if (rule.slopes.defined()) {
    at::Tensor slopes = rule.slopes.to(x.device(), x.scalar_type());
    const int64_t group = x.size(1);
    slopes = slopes.view({-1, group});
    if (g.index.defined()) slopes = slopes.index_select(0, g.index);
    const at::Tensor distance = (p.unsqueeze(1) - j.unsqueeze(0)).abs();
    x = x - slopes.unsqueeze(-1).unsqueeze(-1) * distance;
  }
  if (rule.relative_bias.defined()) x = x + by_distance(rule.relative_bias, g, x, p, j);
  if (bias.defined()) x = x + bias.transpose(1, 2).unsqueeze(2).to(x.scalar_type());
  if (rule.weight == kernel::Weight::kSigmoid) {
    const at::Tensor w = at::sigmoid(x + rule.sigmoid_bias);
    return visible.defined() ? w * visible : w;
  }
  if (visible.defined()) x = x.masked_fill(visible.logical_not(), -INFINITY);
  const at::Tensor w = at::softmax(x, -1);
  return rule.relative_scale.defined() ? w * by_distance(rule.relative_scale, g, x, p, j) : w;
}

bool plain(const AttendRule& rule, const at::Tensor& bias) {
  return rule.weight == kernel::Weight::kSoftmax && rule.soft_cap == 0 && !rule.slopes.defined() &&
         reach_of(rule) == 0 && !bias.defined();
}

// Positions of the rows of runs, in their order.
at::Tensor positions_of(const std::vector<Rows::Run>& runs, const at::TensorOptions& options) {
  std::vector<at::Tensor> parts = {at::empty({0}, options)};
  for (const Rows::Run& run : runs) {
    parts.push_back(at::arange(run.position, run.position + run.k.size(1), options));
  }
  return at::cat(parts);
}

// One query a head over all that its group keeps: [n heads, group, Dv] in float32.
at::Tensor attend_kept(const at::Tensor& q, const Group& g, const Rows& state,
                       const AttendRule& rule, bool biased) {
  const auto wide = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  if (biased || rule.slopes.defined() || reach_of(rule) > 0) {  // needs each row's position
    std::vector<at::Tensor> ks, vs, bs;
    const auto runs = state.runs(g);
    for (const Rows::Run& run : runs) {
      ks.push_back(run.k.to(wide));
      vs.push_back(run.v.to(wide));
      if (biased) bs.push_back(run.columns[0]);
    }
    const at::Tensor j = positions_of(runs, q.options().dtype(wide));
    const at::Tensor p = at::full({1}, static_cast<double>(state.length() - 1), j.options());
    const at::Tensor x = at::bmm(q.to(wide).mul(rule.scale), at::cat(ks, 1).transpose(1, 2));
    const at::Tensor w =
        weigh(x.unsqueeze(2), g, rule, biased ? at::cat(bs, 1) : at::Tensor(), {}, p, j);
    return at::bmm(w.squeeze(2), at::cat(vs, 1));
  }
  const Rows::Run held = state.held(g);
  at::Tensor keys = held.k.to(wide), values = held.v.to(wide);
  if (g.mean) {
    keys = at::cat({keys, g.mean->k}, 1);
    values = at::cat({values, g.mean->v}, 1);
  }
  const at::Tensor scores = at::bmm(q.to(wide).mul(rule.scale), keys.transpose(1, 2));
  if (g.mean) scores.narrow(2, scores.size(2) - 1, 1).add_(g.mean->bias);
  if (plain(rule, {})) return at::bmm(at::softmax(scores, -1), values);
  return at::bmm(weigh(scores.unsqueeze(2), g, rule, {}, {}, {}, {}).squeeze(2), values);
}

// Queries at positions past, past + 1, ... of a group's heads [T, n, group, D] over what it kept
// before and the same tokens' keys and values [n, T, D]; returns [n, group, T, Dv].
at::Tensor attend_chunk(const at::Tensor& q, const OwnRows& own, const std::vector<Rows::Run>& runs,
                        const Group& g, const HeadProgram& program, int64_t past,
                        const AttendRule& rule) {
  const int64_t queries = q.size(0), heads = q.size(1), group = q.size(2);
  std::vector<at::Tensor> ks, vs, bs;
  const auto longs = q.options().dtype(at::kLong);
  for (const Rows::Run& run : runs) {
    ks.push_back(run.k.to(q.scalar_type()));
    vs.push_back(run.v.to(q.scalar_type()));
    if (own.bias.defined()) bs.push_back(run.columns[0]);
  }
  ks.push_back(own.k);
  vs.push_back(own.v);
  if (own.bias.defined()) bs.push_back(own.bias);
  const auto joined = [](const std::vector<at::Tensor>& parts) {
    return parts.size() == 1 ? parts[0] : at::cat(parts, 1);
  };
  const auto per_query_head = [&](const std::vector<at::Tensor>& parts) {
    return joined(parts).repeat_interleave(group, 0).unsqueeze(0);
  };
  const at::Tensor query = q.permute({1, 2, 0, 3}).flatten(0, 1).unsqueeze(0);
  const bool simple = plain(rule, own.bias);
  if (runs.empty() && program.full() && simple) {
    const at::Tensor out = at::scaled_dot_product_attention(
        query, per_query_head(ks), per_query_head(vs), {}, 0.0, true, rule.scale);
    return out[0].unflatten(0, {heads, group});
  }
  const at::Tensor ours = at::arange(past, past + queries, longs);
  const at::Tensor j = at::cat({positions_of(runs, longs), ours}).unsqueeze(0);
  const at::Tensor p = ours.unsqueeze(1);
  at::Tensor visible = j <= p;
  if (!program.full()) {
    visible = visible.logical_and((j < program.sinks).logical_or(j > p - program.window));
  }
  if (simple) {
    const at::Tensor out = at::scaled_dot_product_attention(
        query, per_query_head(ks), per_query_head(vs), visible, 0.0, false, rule.scale);
    return out[0].unflatten(0, {heads, group});
  }
  const auto wide = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor keys = joined(ks).to(wide).unsqueeze(1), values = joined(vs).to(wide);
  const at::Tensor x =
      at::matmul(q.permute({1, 2, 0, 3}).to(wide).mul(rule.scale), keys.transpose(2, 3));
  const at::Tensor w = weigh(x, g, rule, own.bias.defined() ? joined(bs) : at::Tensor(), visible,
                             ours.to(wide), j[0].to(wide));
  return at::matmul(w, values.unsqueeze(1)).to(q.scalar_type());
}

}  // namespace

at::Tensor attend_states_grouped(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 std::span<const int64_t> bounds, std::span<Rows* const> states,
                                 const std::vector<HeadProgram>& programs, const AttendRule& rule,
                                 const at::Tensor& bias) {
  const int64_t heads = k.size(1), group = q.size(1) / heads;
  std::vector<Group> stateless;
  if (states.empty()) stateless = group_heads(programs, q.device());
  at::Tensor out = at::empty({q.size(0), heads, group, v.size(2)}, q.options());
  const OwnRows given{k, v, bias};
  for (size_t s = 0; s + 1 < bounds.size(); ++s) {
    const int64_t begin = bounds[s], queries = bounds[s + 1] - begin;
    if (queries == 0) continue;
    Rows* state = states.empty() ? nullptr : states[s];
    if (state && !state->part().grouped) throw UsageError("this state does not group its heads");
    const at::Tensor qs = q.narrow(0, begin, queries);
    const int64_t past = state ? state->length() : 0;
    const bool sees_all = state && state->sees_all(queries);
    const bool step = state && queries == 1;  // its ring then holds exactly what it sees
    check_reach(rule, past + queries);
    if (step) given.append_to(*state, begin, 1);
    const auto cache_type = state ? state->part().dtype : k.scalar_type();
    const auto own = [&](const Group& g, const at::Tensor& x) {  // as the cache will hold it
      return heads_of(g, x.narrow(0, begin, queries))
          .to(cache_type)
          .to(q.scalar_type())
          .transpose(0, 1);
    };
    Rows::Incoming incoming;
    if (state && !step && in_few_bits(state->part().programs)) {
      incoming = given.prepare(*state, begin, queries);
    }
    for (const Group& g : state ? state->groups() : stateless) {
      at::Tensor query = queries_of(g, qs, heads);
      if (g.program.k_bits < 16) query = rotated(query).to(q.scalar_type());
      at::Tensor result;  // [T, n, group, Dv]
      if (step) {
        result = attend_kept(query[0], g, *state, rule, bias.defined()).unsqueeze(0);
      } else {
        OwnRows rows;
        if (g.program.in_few_bits()) {
          const Rows::Run run = state->plain(g, incoming);
          rows.k = run.k.to(q.scalar_type()), rows.v = run.v.to(q.scalar_type());
        } else {
          rows.k = own(g, k), rows.v = own(g, v);
        }
        if (bias.defined()) {
          rows.bias = heads_of(g, bias.narrow(0, begin, queries)).transpose(0, 1);
        }
        const auto runs = past > 0 ? state->runs(g) : std::vector<Rows::Run>{};
        result =
            attend_chunk(query, rows, runs, g, sees_all ? HeadProgram{} : g.program, past, rule)
                .permute({2, 0, 1, 3});
      }
      if (g.program.v_bits < 16) result = rotated(result);
      at::Tensor target = out.narrow(0, begin, queries);
      if (g.index.defined()) {
        target.index_copy_(1, g.index, result.to(out.scalar_type()));
      } else {
        target.copy_(result);
      }
    }
    if (state && !step) {
      given.append_to(*state, begin, queries, incoming.rows.empty() ? nullptr : &incoming);
    }
  }
  return out.flatten(1, 2);
}

void attend_held(const at::Tensor& q, const Rows& state, const AttendRule& rule, at::Tensor& out) {
  const int64_t heads = state.heads();
  for (const Group& g : state.groups()) {
    at::Tensor query = queries_of(g, q.unsqueeze(0), heads)[0];
    if (g.program.k_bits < 16) query = rotated(query).to(q.scalar_type());
    at::Tensor result = attend_kept(query, g, state, rule, false);
    if (g.program.v_bits < 16) result = rotated(result);
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
bool goes_by_token(const Rows& state, int64_t queries) {
  if (queries == 1 || state.sees_all(queries)) return false;
  const int64_t length = state.length() + queries;
  return std::any_of(state.part().programs.begin(), state.part().programs.end(),
                     [&](const HeadProgram& p) { return p.kept(length) > p.held(length); });
}

at::Tensor attend_by_token(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           std::span<const int64_t> bounds, std::span<Rows* const> states,
                           const AttendRule& rule) {
  at::Tensor out = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
  for (size_t s = 0; s + 1 < bounds.size(); ++s) {
    const int64_t queries = bounds[s + 1] - bounds[s];
    if (queries == 0) continue;
    const int64_t count = goes_by_token(*states[s], queries) ? 1 : queries;
    const int64_t part[] = {0, count};
    for (int64_t row = bounds[s]; row < bounds[s + 1]; row += count) {
      const auto rows = [&](const at::Tensor& x) { return x.narrow(0, row, count); };
      rows(out).copy_(
          attend_states(rows(q), rows(k), rows(v), part, states.subspan(s, 1), {}, rule));
    }
  }
  return out;
}

}  // namespace

at::Tensor attend_states(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         std::span<const int64_t> bounds, std::span<Rows* const> states,
                         const std::vector<HeadProgram>& programs, const AttendRule& rule,
                         const at::Tensor& bias) {
  if (states.empty() && (keeps_means(programs) || in_few_bits(programs))) {
    RowsPart part;
    part.k_dim = k.size(2);
    part.v_dim = v.size(2);
    part.programs = programs;
    part.dtype = k.scalar_type() == at::kDouble ? at::kFloat : k.scalar_type();
    part.grouped = !k.is_cpu();
    std::vector<std::unique_ptr<Rows>> own;
    std::vector<Rows*> list;
    for (size_t s = 0; s + 1 < bounds.size(); ++s) {
      own.push_back(std::make_unique<Rows>(part, k.device()));
      list.push_back(own.back().get());
    }
    return attend_states(q, k, v, bounds, list, {}, rule, bias);
  }
  for (size_t s = 0; s < states.size(); ++s) {
    if (goes_by_token(*states[s], bounds[s + 1] - bounds[s])) {
      return attend_by_token(q, k, v, bounds, states, rule);
    }
  }
  if (!q.is_cpu() || (!states.empty() && states[0]->part().grouped)) {
    return attend_states_grouped(q, k, v, bounds, states, programs, rule, bias);
  }
  if (q.scalar_type() == at::kDouble) {
    return attend_cpu(q.to(at::kFloat), k.to(at::kFloat), v.to(at::kFloat), bounds, states,
                      programs, rule, bias)
        .to(q.scalar_type());
  }
  return attend_cpu(q, k, v, bounds, states, programs, rule, bias);
}

}  // namespace heed
