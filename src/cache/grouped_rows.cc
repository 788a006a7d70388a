// See grouped_rows.h.
#include "cache/grouped_rows.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "cache/kv_state.h"

namespace heed {
namespace {

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

std::vector<GroupedRows::Group> group_heads(const std::vector<HeadProgram>& programs,
                                            const at::Device& device) {
  std::vector<GroupedRows::Group> groups;
  for (int64_t h = 0; h < static_cast<int64_t>(programs.size()); ++h) {
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& g) { return g.program == programs[h]; });
    if (group == groups.end()) {
      groups.push_back({programs[h], {}, {}, {}, {}});
      group = groups.end() - 1;
    }
    group->heads.push_back(h);
  }
  if (groups.size() > 1) {
    for (auto& group : groups) group.index = at::tensor(group.heads, at::kLong).to(device);
  }
  return groups;
}

at::Tensor heads_of(const GroupedRows::Group& group, const at::Tensor& x) {
  return group.index.defined() ? x.index_select(1, group.index) : x;
}

GroupedRows::GroupedRows(const std::vector<HeadProgram>& programs, const KvOptions& options)
    : groups_(group_heads(programs, options.device)),
      head_dim_(options.head_dim),
      options_(at::TensorOptions().dtype(options.dtype).device(options.device)) {}

std::shared_ptr<GroupedRows::Rows> GroupedRows::make_rows(const Group& group, int64_t rows) const {
  const auto heads = static_cast<int64_t>(group.heads.size());
  return std::make_shared<Rows>(Rows{at::empty({heads, rows, head_dim_}, options_),
                                     at::empty({heads, rows, head_dim_}, options_)});
}

// Room for so many rows, in memory that no fork sees.
void GroupedRows::grow(Group& group, int64_t rows) const {
  const int64_t old = group.rows ? group.rows->k.size(1) : 0;
  const bool shared = group.rows.use_count() > 1;
  if (rows <= old && !shared) return;
  int64_t capacity = std::max(old, round_up(rows, KvState::kPage));
  if (!group.program.full()) {
    capacity = std::min(capacity, group.program.sinks + group.program.window);
  }
  const auto larger = make_rows(group, capacity);
  if (old > 0) {
    larger->k.narrow(1, 0, old).copy_(group.rows->k);
    larger->v.narrow(1, 0, old).copy_(group.rows->v);
  }
  group.rows = larger;
}

void GroupedRows::append(const at::Tensor& k, const at::Tensor& v, int64_t length) {
  for (Group& group : groups_) {
    append(group, heads_of(group, k).transpose(0, 1), heads_of(group, v).transpose(0, 1), length);
  }
}

void GroupedRows::append(Group& group, const at::Tensor& k, const at::Tensor& v,
                         int64_t length) const {
  const int64_t count = k.size(1);
  if (count == 0) return;
  const HeadProgram& p = group.program;
  if (p.dropped != Dropped::kGone) drop(group, k, v, length);
  grow(group, p.held(length + count));
  const auto copy = [&](int64_t from, int64_t to, int64_t n) {
    if (n <= 0) return;
    group.rows->k.narrow(1, to, n).copy_(k.narrow(1, from, n));
    group.rows->v.narrow(1, to, n).copy_(v.narrow(1, from, n));
  };
  if (p.full()) return copy(0, length, count);
  int64_t row = std::clamp<int64_t>(p.sinks - length, 0, count);
  copy(0, length, row);
  // Behind the sinks only the last `window` rows stay.
  for (row = std::max(row, count - p.window); row < count;) {
    const int64_t slot = (length + row - p.sinks) % p.window;
    const int64_t n = std::min(p.window - slot, count - row);
    copy(row, p.sinks + slot, n);
    row += n;
  }
}

GroupedRows::Group& GroupedRows::group_of(int64_t head) {
  return *std::find_if(groups_.begin(), groups_.end(), [&](const Group& g) {
    return std::find(g.heads.begin(), g.heads.end(), head) != g.heads.end();
  });
}
const GroupedRows::Group& GroupedRows::group_of(int64_t head) const {
  return const_cast<GroupedRows*>(this)->group_of(head);
}

// Takes what an append of k and v [n, T, D] will push out into the mean.
void GroupedRows::drop(Group& group, const at::Tensor& k, const at::Tensor& v,
                       int64_t length) const {
  const HeadProgram& p = group.program;
  const Evicted gone(p, length, k.size(1));
  if (gone.total() == 0) return;
  std::vector<at::Tensor> ks, vs;
  const auto add = [&](const at::Tensor& rows_k, const at::Tensor& rows_v) {
    ks.push_back(rows_k.to(at::kFloat));
    vs.push_back(rows_v.to(at::kFloat));
  };
  for (int64_t p0 = gone.old_begin; p0 < gone.old_end;) {
    const int64_t slot = (p0 - p.sinks) % p.window;
    const int64_t n = std::min(p.window - slot, gone.old_end - p0);
    add(group.rows->k.narrow(1, p.sinks + slot, n), group.rows->v.narrow(1, p.sinks + slot, n));
    p0 += n;
  }
  if (const int64_t n = gone.new_end - gone.new_begin; n > 0) {
    // As the cache would have rounded them.
    const auto rows = [&](const at::Tensor& x) {
      return x.narrow(1, gone.new_begin - length, n).to(options_);
    };
    add(rows(k), rows(v));
  }
  const int64_t before = group.mean ? group.mean->count : 0, count = before + gone.total();
  const auto mean = [&](const std::vector<at::Tensor>& parts, const at::Tensor* old) {
    const at::Tensor sum = at::cat(parts, 1).sum(1, true);
    return (old ? sum.add(*old, before) : sum).div(count);
  };
  set_mean(group, mean(ks, group.mean ? &group.mean->k : nullptr),
           mean(vs, group.mean ? &group.mean->v : nullptr), count);
}

void GroupedRows::set_mean(Group& group, const at::Tensor& k, const at::Tensor& v, int64_t count) {
  const double bias =
      group.program.dropped == Dropped::kMean ? std::log(static_cast<double>(count)) : 0.0;
  group.mean = std::make_shared<Mean>(Mean{k, v, bias, count});
}

GroupedRows::Rows GroupedRows::held(const Group& group, int64_t length) {
  const int64_t rows = group.program.held(length);
  return {group.rows->k.narrow(1, 0, rows), group.rows->v.narrow(1, 0, rows)};
}

std::vector<GroupedRows::Run> GroupedRows::runs(const Group& group, int64_t length) {
  std::vector<Run> out;
  const auto add = [&](int64_t row, int64_t count, int64_t position) {
    if (count <= 0) return;
    out.push_back(
        {group.rows->k.narrow(1, row, count), group.rows->v.narrow(1, row, count), position});
  };
  const HeadProgram& p = group.program;
  if (p.full() || length <= p.sinks + p.window) {
    add(0, length, 0);
    return out;
  }
  const int64_t first = length - p.window, slot = (first - p.sinks) % p.window;
  add(0, p.sinks, 0);
  add(p.sinks + slot, p.window - slot, first);
  add(p.sinks, slot, first + p.window - slot);
  return out;
}

void GroupedRows::truncate(int64_t length) {
  for (Group& group : groups_) {
    if (!group.rows) continue;
    const int64_t rows = round_up(group.program.held(length), KvState::kPage);
    if (rows >= group.rows->k.size(1)) continue;
    if (rows == 0) {
      group.rows.reset();
      continue;
    }
    group.rows = std::make_shared<Rows>(
        Rows{group.rows->k.narrow(1, 0, rows).clone(), group.rows->v.narrow(1, 0, rows).clone()});
  }
}

int64_t GroupedRows::bytes() const {
  int64_t total = 0;
  for (const Group& group : groups_) {
    if (group.rows) total += static_cast<int64_t>(group.rows->k.nbytes() + group.rows->v.nbytes());
    if (group.mean) total += static_cast<int64_t>(group.mean->k.nbytes() + group.mean->v.nbytes());
  }
  return total;
}

}  // namespace heed
