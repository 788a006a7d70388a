// See rows.h.
#include "cache/rows.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cache/plan/kinds.h"
#include "cache/quantised.h"
#include "io/error.h"
#include "kernel/quant/quant.h"

namespace heed {
namespace {

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// `count` rows of `width` numbers, `stride` apart, to rows that lie close together.
template <typename From, typename To>
void convert(const void* from, int64_t stride, void* to, int64_t width, int64_t count) {
  const From* source = static_cast<const From*>(from);
  To* target = static_cast<To*>(to);
  for (int64_t n = 0; n < count; ++n, source += stride, target += width) {
    if constexpr (std::is_same_v<From, To>) {
      std::memcpy(target, source, static_cast<size_t>(width) * sizeof(To));
    } else {
      for (int64_t d = 0; d < width; ++d)
        target[d] = static_cast<To>(static_cast<float>(source[d]));
    }
  }
}

using Convert = void (*)(const void*, int64_t, void*, int64_t, int64_t);

template <typename From>
Convert convert_from(at::ScalarType to) {
  if (to == at::kFloat) return convert<From, float>;
  if (to == at::kBFloat16) return convert<From, at::BFloat16>;
  return to == at::kHalf ? convert<From, at::Half> : nullptr;
}

// Null for types that PyTorch converts.
Convert convert_rows(at::ScalarType from, at::ScalarType to) {
  if (from == at::kFloat) return convert_from<float>(to);
  if (from == at::kBFloat16) return convert_from<at::BFloat16>(to);
  return from == at::kHalf ? convert_from<at::Half>(to) : nullptr;
}

const char* at_row(const at::Tensor& t, int64_t i, int64_t j) {
  return static_cast<const char*>(t.const_data_ptr()) +
         (i * t.stride(0) + j * t.stride(1)) * static_cast<int64_t>(t.element_size());
}

// Rows [row, row + count) of head `from_head` of x [T, heads, D] to rows from `slot` of block row
// `n` of to [n, rows, D].
void copy_head(const at::Tensor& x, int64_t from_head, int64_t row, const at::Tensor& to, int64_t n,
               int64_t slot, int64_t count) {
  const Convert f = x.stride(2) == 1 || x.size(2) == 1
                        ? convert_rows(x.scalar_type(), to.scalar_type())
                        : nullptr;
  if (f == nullptr || !x.is_cpu() || to.stride(1) != to.size(2)) {
    to.select(0, n).narrow(0, slot, count).copy_(x.select(1, from_head).narrow(0, row, count));
    return;
  }
  f(at_row(x, row, from_head), x.stride(0), const_cast<char*>(at_row(to, n, slot)), to.size(2),
    count);
}

// Of `tokens` positions those at the beginning that lie apart, exactly.
int64_t first_packed(const HeadProgram& p, int64_t tokens) {
  return p.in_few_bits() ? std::min(p.sinks, tokens) : 0;
}

// The runs of a program, those that lie one behind the other as one.
std::vector<RowRun> joined_runs(const HeadProgram& p, int64_t length) {
  std::vector<RowRun> all, out;
  kind_of(p).runs(p, length, all);
  for (const RowRun& run : all) {
    if (!out.empty() && out.back().row + out.back().count == run.row &&
        out.back().position + out.back().count == run.position) {
      out.back().count += run.count;
    } else {
      out.push_back(run);
    }
  }
  return out;
}

// Rows of a window head's block that holds so many.
int64_t window_capacity(const HeadProgram& p, int64_t held) {
  return std::min(round_up(held, Rows::kPage), p.sinks + p.window);
}

}  // namespace

// ----------------------------------------------------------------------------------------------
// sizes

int64_t RowsPart::exact_row_bytes() const {
  int64_t bytes = width() * static_cast<int64_t>(c10::elementSize(dtype));
  for (const Column& column : columns) bytes += 4 * column.width;
  return bytes;
}

int64_t RowsPart::row_bytes(const HeadProgram& p) const {
  if (!p.in_few_bits()) return exact_row_bytes();
  HeadProgram alone = p;
  alone.sinks = 0;
  return alone.bytes(1, k_dim, v_dim, static_cast<int64_t>(c10::elementSize(dtype)));
}

int64_t RowsPart::formula_bytes(int64_t tokens) const {
  tokens /= every;
  int64_t total = 0;
  for (const HeadProgram& p : programs) {
    total += row_bytes(p) * p.kept(tokens);
    if (p.in_few_bits()) total += exact_row_bytes() * std::min(tokens, p.sinks);
  }
  return total;
}

int64_t Rows::allocated(const RowsPart& part, int64_t tokens) {
  tokens /= part.every;
  const auto element = static_cast<int64_t>(c10::elementSize(part.dtype));
  int64_t total = 0;
  for (const HeadProgram& p : part.programs) {
    const int64_t held = p.held(tokens), row = part.row_bytes(p);
    total += row * (p.full() ? round_up(held, kPage) : window_capacity(p, held));
    if (p.in_few_bits() && tokens > 0) total += part.exact_row_bytes() * p.sinks;
    if (p.kept(tokens) > held) {
      total += (part.k_dim + part.v_dim) * (4 + (part.grouped ? 0 : element));
    }
  }
  return total;
}

int64_t Rows::bytes() const {
  int64_t total = 0;
  const auto add = [&](const at::Tensor& t) { total += static_cast<int64_t>(t.nbytes()); };
  const auto add_block = [&](const Block& block) {
    add(block.k);
    if (!part_.v_in_k) add(block.v);
    for (const at::Tensor* scale : {&block.k_scale, &block.v_scale}) {
      if (scale->defined()) add(*scale);
    }
    for (const at::Tensor& column : block.columns) add(column);
  };
  for (const Group& group : groups_) {
    for (const auto& block : group.blocks) add_block(*block);
    if (group.exact) add_block(*group.exact);
    if (!group.mean) continue;
    for (const at::Tensor* t : {&group.mean->k, &group.mean->v}) add(*t);
    if (part_.grouped) continue;
    for (const at::Tensor* t : {&group.mean->rows.k, &group.mean->rows.v}) add(*t);
  }
  return total;
}

// ----------------------------------------------------------------------------------------------
// memory

std::vector<Rows::Group> group_heads(const std::vector<HeadProgram>& programs,
                                     const at::Device& device) {
  std::vector<Rows::Group> groups;
  for (int64_t h = 0; h < static_cast<int64_t>(programs.size()); ++h) {
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& g) { return g.program == programs[h]; });
    if (group == groups.end()) {
      groups.emplace_back();
      groups.back().program = programs[h];
      group = groups.end() - 1;
    }
    group->heads.push_back(h);
  }
  if (groups.size() > 1) {
    for (auto& group : groups) group.index = at::tensor(group.heads, at::kLong).to(device);
  }
  return groups;
}

at::Tensor heads_of(const Rows::Group& group, const at::Tensor& x) {
  return group.index.defined() ? x.index_select(1, group.index) : x;
}

// The centres of a group's heads, turned, [n, dim]; undefined where no head has one.
at::Tensor Rows::centres(const Group& group, std::vector<float> Centre::*side, int64_t dim) const {
  const at::Tensor all = at::zeros({static_cast<int64_t>(group.heads.size()), dim}, at::kFloat);
  bool any = false;
  for (size_t n = 0; n < group.heads.size(); ++n) {
    const auto& centre = part_.programs[group.heads[n]].centre;
    if (!centre || ((*centre).*side).empty()) continue;
    const std::vector<float>& x = (*centre).*side;
    if (static_cast<int64_t>(x.size()) != dim) {
      throw UsageError("a centre of {} numbers for rows of {}", x.size(), dim);
    }
    std::copy(x.begin(), x.end(), all.mutable_data_ptr<float>() + static_cast<int64_t>(n) * dim);
    any = true;
  }
  return any ? rotated(all).to(device_) : at::Tensor();
}

Rows::Rows(RowsPart part, const at::Device& device, std::shared_ptr<StatePool> pool)
    : part_(std::move(part)), device_(device), pool_(std::move(pool)) {
  if (part_.k_dim < 1 || part_.v_dim < 1 || (part_.v_in_k && part_.v_dim > part_.k_dim)) {
    throw UsageError("rows of {} and {} numbers cannot be kept", part_.k_dim, part_.v_dim);
  }
  if (!part_.grouped && !device.is_cpu()) {
    throw UsageError("a cache on {} must be grouped", device.str());
  }
  check_programs();
  for (size_t c = 0; c < part_.columns.size(); ++c) {
    if (part_.columns[c].name == "bias") bias_ = static_cast<int64_t>(c);
  }
  groups_ = group_heads(part_.programs, device);
  for (Group& group : groups_) {
    const HeadProgram& p = group.program;
    if (p.k_bits < 16) group.k_centre = centres(group, &Centre::k, part_.k_dim);
    if (p.v_bits < 16) group.v_centre = centres(group, &Centre::v, part_.v_dim);
  }
  places_.resize(part_.programs.size());
  for (size_t g = 0; g < groups_.size(); ++g) {
    groups_[g].segments.resize(groups_[g].heads.size());
    for (size_t n = 0; n < groups_[g].heads.size(); ++n) {
      places_[groups_[g].heads[n]] = {g, static_cast<int64_t>(n)};
    }
  }
}

at::Tensor Rows::make(at::IntArrayRef sizes, at::ScalarType dtype) const {
  return pool_ ? pool_->take(sizes, dtype, device_)
               : at::empty(sizes, at::TensorOptions().dtype(dtype).device(device_));
}

void Rows::check_programs() const {
  for (const HeadProgram& p : part_.programs) {
    if (p.window < 0 || p.sinks < 0) throw UsageError("a program's window or sinks are negative");
    if (p.dropped != Dropped::kGone && !part_.columns.empty()) {
      throw UsageError("what stands beside the rows of a cache has no mean of what was dropped");
    }
    if (!p.in_few_bits()) continue;
    for (const int bits : {int{p.k_bits}, int{p.v_bits}}) {
      if (bits != 16 && !kernel::quant_bits(bits)) {
        throw UsageError("{} bits cannot be kept: 2, 3, 4, 5, 6, 8 or 16", bits);
      }
    }
    if (p.dropped != Dropped::kGone || part_.v_in_k || !part_.columns.empty()) {
      throw UsageError(
          "rows in few bits are kept without a mean of what was dropped, without columns, and "
          "with values apart from the keys");
    }
    if (p.full() && p.sinks > kPage) {
      throw UsageError("{} exact rows beside few bits: at most {}", p.sinks, kPage);
    }
  }
}

std::shared_ptr<Rows::Block> Rows::make_block(const Group& group, int64_t rows, bool exact) const {
  const auto n = static_cast<int64_t>(group.heads.size());
  auto block = std::make_shared<Block>();
  if (group.program.in_few_bits() && !exact) {
    const auto side = [&](int bits, int64_t dim, at::Tensor& x, at::Tensor& scale) {
      x = bits < 16 ? make({n, rows, kernel::row_bytes(bits, dim)}, at::kByte)
                    : make({n, rows, dim}, part_.dtype);
      if (bits < 16) scale = make({n, rows, 1}, at::kBFloat16);
    };
    side(group.program.k_bits, part_.k_dim, block->k, block->k_scale);
    side(group.program.v_bits, part_.v_dim, block->v, block->v_scale);
    return block;
  }
  block->k = make({n, rows, part_.k_dim}, part_.dtype);
  block->v =
      part_.v_in_k ? block->k.narrow(2, 0, part_.v_dim) : make({n, rows, part_.v_dim}, part_.dtype);
  for (const Column& column : part_.columns) {
    block->columns.push_back(make({n, rows, column.width}, at::kFloat));
  }
  return block;
}

namespace {

// Rows of x [n, rows, width] to `to`, of the same type.
void copy_rows(const at::Tensor& from, int64_t row, const at::Tensor& to, int64_t slot,
               int64_t count) {
  if (!from.is_cpu() || from.stride(1) != from.size(2) || to.stride(1) != to.size(2)) {
    to.narrow(1, slot, count).copy_(from.narrow(1, row, count));
    return;
  }
  const size_t bytes = static_cast<size_t>(count * from.size(2)) * from.element_size();
  for (int64_t n = 0; n < from.size(0); ++n) {
    std::memcpy(const_cast<char*>(at_row(to, n, slot)), at_row(from, n, row), bytes);
  }
}

// Rows [row, row + count) of one block to rows from `slot` of another of the same kind.
void copy_block(const Rows::Block& from, int64_t row, const Rows::Block& to, int64_t slot,
                int64_t count, bool values) {
  copy_rows(from.k, row, to.k, slot, count);
  if (values) copy_rows(from.v, row, to.v, slot, count);
  if (from.k_scale.defined()) copy_rows(from.k_scale, row, to.k_scale, slot, count);
  if (from.v_scale.defined()) copy_rows(from.v_scale, row, to.v_scale, slot, count);
  for (size_t c = 0; c < from.columns.size(); ++c) {
    copy_rows(from.columns[c], row, to.columns[c], slot, count);
  }
}

}  // namespace

// Makes a block one that no fork sees.
void Rows::own(std::shared_ptr<Block>& block, const Group& group) const {
  if (block.use_count() == 1) return;
  const auto copy = make_block(group, block->k.size(1));
  copy_block(*block, 0, *copy, 0, block->k.size(1), !part_.v_in_k);
  block = copy;
}

// Room for so many rows in the one block of a group, in memory that no fork sees.
void Rows::grow(Group& group, int64_t rows) const {
  const int64_t old = group.blocks.empty() ? 0 : group.blocks[0]->k.size(1);
  if (rows <= old) return own(group.blocks[0], group);
  const auto larger = make_block(
      group, group.program.full() ? round_up(rows, kPage) : window_capacity(group.program, rows));
  if (old > 0) copy_block(*group.blocks[0], 0, *larger, 0, old, !part_.v_in_k);
  group.blocks.assign(1, larger);
}

// ----------------------------------------------------------------------------------------------
// appending

// New rows: of all heads of the layer [T, Hk, ...], or of a group's alone [T, n, ...].
struct Rows::Source {
  at::Tensor k, v;
  std::span<const at::Tensor> columns;
  const int64_t* heads = nullptr;  // of the group among those of k; null: one after another
  const Block* block = nullptr;    // the rows as the group holds them, in place of the rest

  int64_t count() const { return block ? block->k.size(1) : k.size(0); }
  int64_t head(int64_t n) const { return heads ? heads[n] : n; }
};

void Rows::copy(const Source& from, int64_t row, Block& to, int64_t slot, int64_t count) const {
  if (count <= 0) return;
  if (from.block) return copy_block(*from.block, row, to, slot, count, true);
  const int64_t heads = to.k.size(0);
  if (!to.k.is_cpu()) {
    const auto put = [&](const at::Tensor& x, const at::Tensor& block) {
      block.narrow(1, slot, count).copy_(x.narrow(0, row, count).transpose(0, 1));
    };
    put(from.k, to.k);
    if (!part_.v_in_k) put(from.v, to.v);
    for (size_t c = 0; c < to.columns.size(); ++c) put(from.columns[c], to.columns[c]);
    return;
  }
  for (int64_t n = 0; n < heads; ++n) {
    const int64_t h = from.head(n);
    copy_head(from.k, h, row, to.k, n, slot, count);
    if (!part_.v_in_k) copy_head(from.v, h, row, to.v, n, slot, count);
    for (size_t c = 0; c < to.columns.size(); ++c) {
      copy_head(from.columns[c], h, row, to.columns[c], n, slot, count);
    }
  }
}

Rows::Incoming Rows::prepare(const at::Tensor& k, const at::Tensor& v) const {
  Incoming incoming{length_, {}, {}};
  if (std::none_of(groups_.begin(), groups_.end(),
                   [](const Group& g) { return g.program.in_few_bits(); })) {
    return incoming;
  }
  incoming.rows.resize(groups_.size());
  incoming.exact.resize(groups_.size());
  for (size_t g = 0; g < groups_.size(); ++g) {
    const Group& group = groups_[g];
    if (!group.program.in_few_bits()) continue;
    const int64_t first = std::clamp<int64_t>(group.program.sinks - length_, 0, k.size(0));
    const auto side = [&](const at::Tensor& x, int bits, const at::Tensor& centre, at::Tensor& rows,
                          at::Tensor& scale, at::Tensor& exact) {
      at::Tensor own = heads_of(group, x).transpose(0, 1);  // [n, T, D]
      if (bits < 16) own = rotated(own);
      exact = own.narrow(1, 0, first).to(part_.dtype).contiguous();
      if (bits == 16) {
        rows = own.to(part_.dtype).contiguous();
        return;
      }
      if (centre.defined()) own = own.sub(centre.unsqueeze(1));  // `exact` may share its memory
      const QuantisedRows kept = encode(own, bits);
      rows = kept.codes, scale = kept.scales;
    };
    Block& rows = incoming.rows[g];
    side(k, group.program.k_bits, group.k_centre, rows.k, rows.k_scale, incoming.exact[g].k);
    side(v, group.program.v_bits, group.v_centre, rows.v, rows.v_scale, incoming.exact[g].v);
  }
  return incoming;
}

void Rows::add_segments(int64_t h, const Incoming& incoming,
                        std::vector<kernel::Segment>& out) const {
  const auto [g, n] = places_[h];
  const Group& group = groups_[g];
  const Block &exact = incoming.exact[g], &rows = incoming.rows[g];
  const int64_t first = exact.k.size(1), all = rows.k.size(1), at = incoming.position;
  if (first > 0) out.push_back(segment(group, exact, n, 0, first, at));
  if (first < all) out.push_back(segment(group, rows, n, first, all - first, at + first));
}

void Rows::append_exact(Group& group, const Block& from, int64_t length) const {
  if (from.k.size(1) == 0) return;
  if (!group.exact) {
    group.exact = make_block(group, group.program.sinks, true);
  } else if (group.exact.use_count() > 1) {
    const auto copy = make_block(group, group.program.sinks, true);
    copy_block(*group.exact, 0, *copy, 0, length, true);
    group.exact = copy;
  }
  copy_block(from, 0, *group.exact, length, from.k.size(1), true);
}

void Rows::append(const at::Tensor& k_in, const at::Tensor& v_in,
                  std::span<const at::Tensor> columns, const Incoming* given) {
  const int64_t count = k_in.size(0);
  if (count == 0) return;
  if (columns.size() != part_.columns.size()) {
    throw Error("rows of a cache have {} columns, {} were given", part_.columns.size(),
                columns.size());
  }
  Incoming own_incoming;
  if (!given) own_incoming = prepare(k_in, v_in);
  const Incoming& incoming = given ? *given : own_incoming;
  // Many rows: PyTorch's conversion is vectorised; few: straight into the cache.
  at::Tensor k = k_in, v = part_.v_in_k ? k_in : v_in;
  if (k.scalar_type() != part_.dtype && k.numel() >= 4096) {
    k = k.to(part_.dtype);
    v = part_.v_in_k ? k : v.to(part_.dtype);
  }
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    if (group.program.in_few_bits()) {
      append_exact(group, incoming.exact[g], length_);
      append(group, {{}, {}, {}, nullptr, &incoming.rows[g]}, length_);
      continue;
    }
    if (device_.is_cpu()) {
      append(group, {k, v, columns, group.index.defined() ? group.heads.data() : nullptr, nullptr},
             length_);
      continue;
    }
    std::vector<at::Tensor> own;
    for (const at::Tensor& column : columns) own.push_back(heads_of(group, column));
    append(group, {heads_of(group, k), heads_of(group, v), own, nullptr, nullptr}, length_);
  }
  length_ += count;
}

void Rows::append(Group& group, const Source& from, int64_t length) const {
  if (from.count() == 0) return;
  if (paged(group)) return append_pages(group, from, length);
  const int64_t count = from.count();
  const HeadProgram& p = group.program;
  if (p.dropped != Dropped::kGone) drop(group, from, length);
  grow(group, p.held(length + count));
  Block& block = *group.blocks[0];
  if (p.full()) return copy(from, 0, block, length, count);
  int64_t row = std::clamp<int64_t>(p.sinks - length, 0, count);
  copy(from, 0, block, length, row);
  // Behind the sinks only the last `window` rows stay.
  for (row = std::max(row, count - p.window); row < count;) {
    const int64_t slot = (length + row - p.sinks) % p.window;
    const int64_t n = std::min(p.window - slot, count - row);
    copy(from, row, block, p.sinks + slot, n);
    row += n;
  }
}

void Rows::append_pages(Group& group, const Source& from, int64_t length) const {
  for (int64_t row = 0; row < from.count();) {
    const int64_t position = length + row;
    const size_t page = position / kPage;
    const int64_t slot = position % kPage, n = std::min(kPage - slot, from.count() - row);
    // A page may be there without rows, from a time when there was no memory for another group's.
    if (page == group.blocks.size()) {
      group.blocks.push_back(make_block(group, kPage));
    } else {
      own(group.blocks[page], group);
    }
    Block& block = *group.blocks[page];
    copy(from, row, block, slot, n);
    for (size_t h = 0; h < group.segments.size(); ++h) {
      group.segments[h].resize(page + 1);
      const int64_t first = page == 0 ? first_packed(group.program, slot + n) : 0;
      group.segments[h][page] =
          segment(group, block, static_cast<int64_t>(h), first, slot + n - first,
                  static_cast<int64_t>(page) * kPage + first);
    }
    row += n;
  }
}

void Rows::add_to_column(size_t column, const at::Tensor& delta) {
  for (Group& group : groups_) {
    const at::Tensor own_delta =
        (group.index.defined() ? delta.index_select(0, group.index) : delta).unsqueeze(1);
    for (size_t page = 0; page < group.blocks.size(); ++page) {
      own(group.blocks[page], group);
      Block& block = *group.blocks[page];
      block.columns[column].add_(own_delta);
      if (!paged(group)) continue;
      for (size_t h = 0; h < group.segments.size(); ++h) {
        if (page >= group.segments[h].size()) continue;
        kernel::Segment& kept = group.segments[h][page];
        kept = segment(group, block, static_cast<int64_t>(h), 0, kept.length, kept.position);
      }
    }
  }
}

// Takes what an append will push out into the mean.
void Rows::drop(Group& group, const Source& from, int64_t length) const {
  const HeadProgram& p = group.program;
  const Evicted gone(p, length, from.count());
  if (gone.total() == 0) return;
  const int64_t before = group.mean ? group.mean->count : 0;
  const auto n = static_cast<int64_t>(group.heads.size());
  const auto floats = at::TensorOptions().dtype(at::kFloat).device(device_);
  at::Tensor sum_k =
      group.mean ? group.mean->k.mul(before) : at::zeros({n, 1, part_.k_dim}, floats);
  at::Tensor sum_v =
      group.mean ? group.mean->v.mul(before) : at::zeros({n, 1, part_.v_dim}, floats);
  const auto add = [&](const at::Tensor& rows_k, const at::Tensor& rows_v) {
    sum_k = sum_k + rows_k.sum(1, true, at::kFloat);
    sum_v = sum_v + rows_v.sum(1, true, at::kFloat);
  };
  for (int64_t p0 = gone.old_begin; p0 < gone.old_end;) {
    const int64_t slot = (p0 - p.sinks) % p.window;
    const int64_t count = std::min(p.window - slot, gone.old_end - p0);
    const Block& block = *group.blocks[0];
    add(block.k.narrow(1, p.sinks + slot, count), block.v.narrow(1, p.sinks + slot, count));
    p0 += count;
  }
  if (const int64_t count = gone.new_end - gone.new_begin; count > 0) {
    // As the cache would have rounded them.
    const auto rows = [&](const at::Tensor& x, int64_t width) {
      at::Tensor part = x.narrow(0, gone.new_begin - length, count).narrow(2, 0, width);
      if (from.heads) part = part.index_select(1, group.index);
      return part.to(part_.dtype).transpose(0, 1);
    };
    add(rows(from.k, part_.k_dim), rows(from.v, part_.v_dim));
  }
  const int64_t count = before + gone.total();
  set_mean(group, sum_k.div(count), sum_v.div(count), count);
}

void Rows::set_mean(Group& group, const at::Tensor& k, const at::Tensor& v, int64_t count) const {
  auto mean = std::make_shared<Mean>();
  mean->k = k, mean->v = v;
  if (!part_.grouped) {
    mean->rows.k = k.to(part_.dtype, false, true).contiguous();
    mean->rows.v = v.to(part_.dtype, false, true).contiguous();
  }
  mean->count = count;
  mean->bias = group.program.dropped == Dropped::kMean ? std::log(static_cast<float>(count)) : 0.0f;
  group.mean = std::move(mean);
}

// ----------------------------------------------------------------------------------------------
// reading

Rows::Stand Rows::mean(int64_t h) const {
  const auto [g, n] = places_[h];
  const auto& mean = groups_[g].mean;
  return mean ? Stand{mean->k.select(0, n), mean->v.select(0, n), mean->bias} : Stand{};
}

Rows::Run Rows::plain_run(const Group& group, const Block& block, int64_t row, int64_t count,
                          int64_t position, const Block* exact_rows, int64_t exact_from) const {
  const auto side = [&](int bits, int64_t dim, const at::Tensor& x, const at::Tensor& scale,
                        const at::Tensor& centre) {
    at::Tensor rows = x.narrow(1, row, count);
    if (bits == 16) return rows;
    at::Tensor out = decode({rows, scale.narrow(1, row, count)}, bits, dim);
    return centre.defined() ? out.add_(centre.unsqueeze(1)) : out;
  };
  const HeadProgram& p = group.program;
  Run run{side(p.k_bits, part_.k_dim, block.k, block.k_scale, group.k_centre),
          side(p.v_bits, part_.v_dim, block.v, block.v_scale, group.v_centre),
          {},
          position};
  const int64_t exact = std::min(p.sinks - position, count);
  if (exact > 0) {
    const auto put = [&](at::Tensor& x, const at::Tensor& from) {
      x = x.to(at::kFloat, false, true);
      x.narrow(1, 0, exact).copy_(from.narrow(1, position - exact_from, exact));
    };
    put(run.k, exact_rows->k);
    put(run.v, exact_rows->v);
  }
  return run;
}

namespace {

Rows::Run run_of(const Rows::Block& block, int64_t row, int64_t count, int64_t position) {
  Rows::Run run{block.k.narrow(1, row, count), block.v.narrow(1, row, count), {}, position};
  for (const at::Tensor& column : block.columns) {
    run.columns.push_back(column.narrow(1, row, count));
  }
  return run;
}

}  // namespace

std::vector<Rows::Run> Rows::runs(const Group& group) const {
  return runs(group, [&](const Block& block, int64_t row, int64_t count, int64_t position) {
    return group.program.in_few_bits()
               ? plain_run(group, block, row, count, position, group.exact.get(), 0)
               : run_of(block, row, count, position);
  });
}

template <class F>
std::vector<Rows::Run> Rows::runs(const Group& group, F&& make) const {
  std::vector<Run> out;
  if (length_ == 0) return out;
  if (paged(group)) {
    for (size_t i = 0; i < group.blocks.size(); ++i) {
      const int64_t position = static_cast<int64_t>(i) * kPage;
      out.push_back(make(*group.blocks[i], 0, std::min(kPage, length_ - position), position));
    }
    return out;
  }
  for (const RowRun& run : joined_runs(group.program, length_)) {
    out.push_back(make(*group.blocks[0], run.row, run.count, run.position));
  }
  return out;
}

Rows::Run Rows::held(const Group& group) const {
  const int64_t rows = group.program.held(length_);
  return group.program.in_few_bits()
             ? plain_run(group, *group.blocks[0], 0, rows, 0, group.exact.get(), 0)
             : run_of(*group.blocks[0], 0, rows, 0);
}

Rows::Run Rows::plain(const Group& group, const Incoming& incoming) const {
  const auto g = static_cast<size_t>(&group - groups_.data());
  const Block& rows = incoming.rows[g];
  return plain_run(group, rows, 0, rows.k.size(1), incoming.position, &incoming.exact[g],
                   incoming.position);
}

std::vector<Rows::Run> Rows::runs(int64_t h) const {
  const auto [g, n] = places_[h];
  std::vector<Run> out = runs(groups_[g]);
  for (Run& run : out) {
    run.k = run.k.select(0, n);
    run.v = run.v.select(0, n);
    for (at::Tensor& column : run.columns) column = column.select(0, n);
  }
  return out;
}

kernel::Segment Rows::segment(const Group& group, const Block& block, int64_t n, int64_t row,
                              int64_t length, int64_t position) const {
  kernel::Segment s;
  const auto few = [&](const at::Tensor& scale, int8_t bits, const at::Tensor& centre,
                       uint8_t& s_bits, const uint16_t*& s_scale, const float*& s_centre) {
    if (!scale.defined()) return;
    s_bits = static_cast<uint8_t>(bits);
    s_scale = reinterpret_cast<const uint16_t*>(at_row(scale, n, row));
    if (centre.defined()) s_centre = centre.const_data_ptr<float>() + n * centre.size(1);
  };
  few(block.k_scale, group.program.k_bits, group.k_centre, s.k_bits, s.k_scale, s.k_centre);
  few(block.v_scale, group.program.v_bits, group.v_centre, s.v_bits, s.v_scale, s.v_centre);
  s.k = at_row(block.k, n, row);
  s.v = at_row(block.v, n, row);
  s.k_stride = block.k.stride(1);
  s.v_stride = block.v.stride(1);
  s.length = length;
  s.position = position;
  if (bias_ >= 0) {
    const at::Tensor& bias = block.columns[bias_];
    s.bias = reinterpret_cast<const float*>(at_row(bias, n, row));
    s.bias_stride = bias.stride(1);
    s.bias_head_stride = bias.size(2) > 1 ? 1 : 0;
  }
  return s;
}

void Rows::add_segments(int64_t h, std::vector<kernel::Segment>& out) const {
  const auto [g, n] = places_[h];
  const Group& group = groups_[g];
  if (length_ == 0) return;
  const int64_t exact = first_packed(group.program, length_);
  if (exact > 0) out.push_back(segment(group, *group.exact, n, 0, exact, 0));
  if (paged(group)) {
    out.insert(out.end(), group.segments[n].begin(), group.segments[n].end());
    return;
  }
  thread_local std::vector<RowRun> runs;  // decoding does not allocate
  runs.clear();
  kind_of(group.program).runs(group.program, length_, runs);
  for (const RowRun& run : runs) {
    const int64_t skip = std::clamp<int64_t>(exact - run.position, 0, run.count);
    if (skip == run.count) continue;
    out.push_back(
        segment(group, *group.blocks[0], n, run.row + skip, run.count - skip, run.position + skip));
  }
  if (group.mean && !part_.grouped) {  // at the last position, which no window hides
    const Mean& mean = *group.mean;
    kernel::Segment s;
    s.k = at_row(mean.rows.k, n, 0);
    s.v = at_row(mean.rows.v, n, 0);
    s.k_stride = part_.k_dim;
    s.v_stride = part_.v_dim;
    s.length = 1;
    s.position = length_ - 1;
    s.bias = &mean.bias;
    out.push_back(s);
  }
}

// ----------------------------------------------------------------------------------------------
// going back, saving, loading

void Rows::check_truncate(int64_t length) const {
  if (length < 0 || length > length_) {
    throw UsageError("a state of {} tokens cannot be cut to {}", length_, length);
  }
  if (length == length_ || length == 0) return;  // nothing needs none of the rows
  for (const HeadProgram& p : part_.programs) {
    if (!p.full() && length_ > p.sinks + p.window) {
      throw Error(
          "a window head (sinks {}, window {}) has dropped keys of the first {} tokens: keep a "
          "fork of the state to go back to",
          p.sinks, p.window, length);
    }
  }
}

void Rows::truncate(int64_t length) {
  check_truncate(length);
  if (length == length_) return;
  for (Group& group : groups_) {
    if (length == 0) group.mean.reset(), group.exact.reset();
    if (paged(group)) {
      const size_t pages = (length + kPage - 1) / kPage;
      group.blocks.resize(pages);
      for (auto& segments : group.segments) {
        segments.resize(pages);
        if (pages > 0)
          segments.back().length = std::max<int64_t>(0, length - segments.back().position);
      }
      continue;
    }
    if (group.blocks.empty()) continue;
    const int64_t held = group.program.held(length);
    const int64_t rows =
        group.program.full() ? round_up(held, kPage) : window_capacity(group.program, held);
    if (rows >= group.blocks[0]->k.size(1)) continue;
    if (rows == 0) {
      group.blocks.clear();
      continue;
    }
    const auto smaller = make_block(group, rows);
    copy_block(*group.blocks[0], 0, *smaller, 0, rows, !part_.v_in_k);
    group.blocks.assign(1, smaller);
  }
  length_ = length;
}

void Rows::save_codes(int64_t h, NamedTensors& out, const std::string& prefix) const {
  const auto& [g, place] = places_[h];
  const int64_t n = place;
  const Group& group = groups_[g];
  // The tensors of a block, those that it has not empty.
  const auto all = runs(group, [&](const Block& block, int64_t row, int64_t count, int64_t at) {
    Run run{block.k.select(0, n).narrow(0, row, count),
            block.v.select(0, n).narrow(0, row, count),
            {},
            at};
    for (const at::Tensor* scale : {&block.k_scale, &block.v_scale}) {
      run.columns.push_back(scale->defined() ? scale->select(0, n).narrow(0, row, count)
                                             : at::Tensor());
    }
    return run;
  });
  const auto empty = make_block(group, 0);
  const auto put = [&](const char* name, const at::Tensor& like, auto&& part) {
    if (!like.defined()) return;
    std::vector<at::Tensor> parts = {like.select(0, n).cpu()};
    for (const Run& run : all) parts.push_back(part(run).cpu());
    out[prefix + name] = at::cat(parts);
  };
  put("k", empty->k, [](const Run& r) { return r.k; });
  put("v", empty->v, [](const Run& r) { return r.v; });
  put("k_scale", empty->k_scale, [](const Run& r) { return r.columns[0]; });
  put("v_scale", empty->v_scale, [](const Run& r) { return r.columns[1]; });
  const int64_t exact = first_packed(group.program, length_);
  const auto first = [&](const char* name, auto member) {
    out[prefix + name] = exact > 0 ? ((*group.exact).*member).select(0, n).narrow(0, 0, exact).cpu()
                                   : at::empty({0, member == &Block::k ? part_.k_dim : part_.v_dim},
                                               at::TensorOptions().dtype(part_.dtype));
  };
  first("exact_k", &Block::k);
  first("exact_v", &Block::v);
}

void Rows::save(NamedTensors& out, const std::string& prefix) const {
  out[prefix + "length"] = at::full({1}, length_, at::kLong);
  const auto options = at::TensorOptions().dtype(part_.dtype);
  for (int64_t h = 0; h < heads(); ++h) {
    if (part_.programs[h].in_few_bits()) {
      save_codes(h, out, fmt::format("{}h{}.", prefix, h));
      continue;
    }
    std::vector<at::Tensor> k = {at::empty({0, part_.k_dim}, options)};
    std::vector<at::Tensor> v = {at::empty({0, part_.v_dim}, options)};
    std::vector<std::vector<at::Tensor>> columns;
    for (const Column& column : part_.columns) {
      columns.push_back({at::empty({0, column.width}, options.dtype(at::kFloat))});
    }
    for (const Run& run : runs(h)) {
      k.push_back(run.k.cpu());
      v.push_back(run.v.cpu());
      for (size_t c = 0; c < columns.size(); ++c) columns[c].push_back(run.columns[c].cpu());
    }
    const std::string head = fmt::format("{}h{}.", prefix, h);
    out[head + "k"] = at::cat(k);
    if (!part_.v_in_k) out[head + "v"] = at::cat(v);
    for (size_t c = 0; c < columns.size(); ++c) {
      out[head + part_.columns[c].name] = at::cat(columns[c]);
    }
    if (const Stand stand = mean(h); stand.k.defined()) {
      out[head + "mean_k"] = stand.k.cpu();
      out[head + "mean_v"] = stand.v.cpu();
    }
  }
}

void Rows::load(const NamedTensors& in, const std::string& prefix) {
  const auto it = in.find(prefix + "length");
  if (it == in.end()) throw Error("a saved state lacks tensor {}length", prefix);
  const at::Tensor& length = it->second;
  if (length.numel() != 1 || length.scalar_type() != at::kLong || length.item<int64_t>() < 0) {
    throw Error("a saved state's tensor {}length is not one count of tokens", prefix);
  }
  Rows fresh(part_, device_, pool_);
  const int64_t tokens = length.item<int64_t>();
  for (Group& group : fresh.groups_) fresh.load_group(group, in, prefix, tokens);
  fresh.length_ = tokens;
  *this = std::move(fresh);
}

// What a group keeps after `tokens` tokens, into an empty one.
void Rows::load_group(Group& group, const NamedTensors& in, const std::string& prefix,
                      int64_t tokens) {
  const HeadProgram p = group.program;
  // [rows, n, width] of the group's heads.
  const auto get = [&](const std::string& what, int64_t count, int64_t width, at::ScalarType type) {
    std::vector<at::Tensor> parts;
    for (const int64_t h : group.heads) {
      const std::string name = fmt::format("{}h{}.{}", prefix, h, what);
      const auto it = in.find(name);
      if (it == in.end()) throw Error("a saved state lacks tensor {}", name);
      const at::Tensor& t = it->second;
      const bool codes = type == at::kByte;
      if (t.dim() != 2 || t.size(0) != count || t.size(1) != width ||
          (codes ? t.scalar_type() != type : !at::isFloatingType(t.scalar_type()))) {
        throw Error("a saved state's tensor {} does not fit: [{}, {}] was expected", name, count,
                    width);
      }
      parts.push_back(t.to(device_, type));
    }
    return at::stack(parts, 1);
  };
  const int64_t held = p.held(tokens);
  // The sinks; then the ring's rows, as if the tokens before them had just gone by.
  const int64_t first = p.full() ? held : std::min(p.sinks, tokens);
  if (p.in_few_bits()) {
    const auto block = make_block(group, 0);
    const auto read = [&](const char* name, const at::Tensor& like) {
      return like.defined()
                 ? get(name, held, like.size(2), like.scalar_type()).transpose(0, 1).contiguous()
                 : at::Tensor();
    };
    const Block rows{read("k", block->k),
                     read("v", block->v),
                     read("k_scale", block->k_scale),
                     read("v_scale", block->v_scale),
                     {}};
    const int64_t exact = first_packed(p, tokens);
    Block begin;
    begin.k = get("exact_k", exact, part_.k_dim, part_.dtype).transpose(0, 1).contiguous();
    begin.v = get("exact_v", exact, part_.v_dim, part_.dtype).transpose(0, 1).contiguous();
    append_exact(group, begin, 0);
    const auto append_codes = [&](int64_t row, int64_t count, int64_t length) {
      const auto part = [&](const at::Tensor& x) {
        return x.defined() ? x.narrow(1, row, count) : x;
      };
      const Block some{part(rows.k), part(rows.v), part(rows.k_scale), part(rows.v_scale), {}};
      append(group, {{}, {}, {}, nullptr, &some}, length);
    };
    append_codes(0, first, 0);
    append_codes(first, held - first, tokens - (held - first));
    return;
  }
  const at::Tensor k = get("k", held, part_.k_dim, part_.dtype);
  const at::Tensor v = part_.v_in_k ? k : get("v", held, part_.v_dim, part_.dtype);
  std::vector<at::Tensor> columns;
  for (const Column& column : part_.columns) {
    columns.push_back(get(column.name, held, column.width, at::kFloat));
  }
  group.program.dropped = Dropped::kGone;  // nothing is dropped now
  const auto append_part = [&](int64_t first, int64_t count, int64_t length) {
    std::vector<at::Tensor> own;
    for (const at::Tensor& column : columns) own.push_back(column.narrow(0, first, count));
    append(group, {k.narrow(0, first, count), v.narrow(0, first, count), own, nullptr, nullptr},
           length);
  };
  append_part(0, first, 0);
  append_part(first, held - first, tokens - (held - first));
  group.program.dropped = p.dropped;
  if (p.kept(tokens) > held) {
    const at::Tensor mean_k = get("mean_k", 1, part_.k_dim, at::kFloat);
    const at::Tensor mean_v = get("mean_v", 1, part_.v_dim, at::kFloat);
    set_mean(group, mean_k.transpose(0, 1), mean_v.transpose(0, 1), tokens - held);
  }
}

}  // namespace heed
