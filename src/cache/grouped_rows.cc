// See grouped_rows.h.
#include "cache/grouped_rows.h"

#include <ATen/ATen.h>

#include <algorithm>

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
      groups.push_back({programs[h], {}, {}, {}});
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
  grow(group, p.kept(length + count));
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

GroupedRows::Rows GroupedRows::kept(const Group& group, int64_t length) {
  const int64_t rows = group.program.kept(length);
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
    const int64_t rows = round_up(group.program.kept(length), KvState::kPage);
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
  }
  return total;
}

}  // namespace heed
