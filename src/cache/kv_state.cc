// See kv_state.h. Slots: position p >= sinks of a window head lies in ring row (p - sinks) mod
// window.
#include "cache/kv_state.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace heed {
namespace {

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

kernel::Segment segment_of(const at::Tensor& k, const at::Tensor& v, int64_t row, int64_t length,
                           int64_t position) {
  kernel::Segment s;
  s.k_stride = k.stride(0);
  s.v_stride = v.stride(0);
  const auto size = static_cast<int64_t>(k.element_size());
  s.k = static_cast<const char*>(k.const_data_ptr()) + row * s.k_stride * size;
  s.v = static_cast<const char*>(v.const_data_ptr()) + row * s.v_stride * size;
  s.length = length;
  s.position = position;
  return s;
}

template <typename From, typename To>
void convert_rows(const at::Tensor& from, int64_t row, const at::Tensor& to, int64_t slot,
                  int64_t count) {
  const int64_t size = to.size(1);
  const From* source = from.const_data_ptr<From>() + row * from.stride(0);
  To* target = to.mutable_data_ptr<To>() + slot * size;
  for (int64_t n = 0; n < count; ++n, source += from.stride(0), target += size) {
    if constexpr (std::is_same_v<From, To>) {
      std::memcpy(target, source, static_cast<size_t>(size) * sizeof(To));
    } else {
      for (int64_t d = 0; d < size; ++d) target[d] = static_cast<To>(static_cast<float>(source[d]));
    }
  }
}

template <typename From>
bool convert_from(const at::Tensor& from, int64_t row, const at::Tensor& to, int64_t slot,
                  int64_t count) {
  switch (to.scalar_type()) {
    case at::kFloat:
      convert_rows<From, float>(from, row, to, slot, count);
      return true;
    case at::kBFloat16:
      convert_rows<From, at::BFloat16>(from, row, to, slot, count);
      return true;
    case at::kHalf:
      convert_rows<From, at::Half>(from, row, to, slot, count);
      return true;
    default:
      return false;
  }
}

// Rows [row, row + count) of `from` to rows from `slot` of `to`.
void copy_rows(const at::Tensor& from, int64_t row, const at::Tensor& to, int64_t slot,
               int64_t count) {
  if (from.stride(1) == 1) {
    if (from.scalar_type() == at::kFloat && convert_from<float>(from, row, to, slot, count)) return;
    if (from.scalar_type() == at::kBFloat16 &&
        convert_from<at::BFloat16>(from, row, to, slot, count)) {
      return;
    }
    if (from.scalar_type() == at::kHalf && convert_from<at::Half>(from, row, to, slot, count))
      return;
  }
  to.narrow(0, slot, count).copy_(from.narrow(0, row, count));
}

}  // namespace

KvState::KvState(std::vector<HeadProgram> heads, const KvOptions& options)
    : programs_(std::move(heads)), options_(options), heads_(programs_.size()) {
  for (const HeadProgram& p : programs_) {
    if (p.window < 0 || p.sinks < 0) throw UsageError("a program's window or sinks are negative");
  }
  if (options.grouped) {
    grouped_.emplace(programs_, options);
  } else if (!options.device.is_cpu()) {
    throw UsageError("a cache on {} must be grouped", options.device.str());
  }
}

std::unique_ptr<State> KvState::fork() const { return std::make_unique<KvState>(*this); }

KvState::RowsPtr KvState::make_rows(int64_t rows) const {
  const auto options = at::TensorOptions().dtype(options_.dtype).device(options_.device);
  return std::make_shared<Rows>(Rows{at::empty({rows, options_.head_dim}, options),
                                     at::empty({rows, options_.head_dim}, options)});
}

void KvState::own(RowsPtr& rows) const {
  if (rows.use_count() > 1) rows = std::make_shared<Rows>(Rows{rows->k.clone(), rows->v.clone()});
}

int64_t KvState::bytes() const {
  if (grouped_) return grouped_->bytes();
  int64_t total = 0;
  const auto add = [&](const RowsPtr& rows) {
    if (rows) total += static_cast<int64_t>(rows->k.nbytes() + rows->v.nbytes());
  };
  for (const Head& head : heads_) {
    for (const RowsPtr& page : head.pages) add(page);
    add(head.sinks);
    add(head.ring);
    if (head.mean) {
      for (const at::Tensor* t : {&head.mean->k, &head.mean->v}) {
        total += static_cast<int64_t>(t->nbytes() + t->numel() * c10::elementSize(options_.dtype));
      }
    }
  }
  return total;
}

int64_t KvState::formula_bytes(const std::vector<HeadProgram>& heads, int64_t head_dim,
                               int64_t element_size, int64_t tokens) {
  int64_t rows = 0;
  for (const HeadProgram& p : heads) rows += p.kept(tokens);
  return 2 * head_dim * element_size * rows;
}

void KvState::append(const at::Tensor& k_in, const at::Tensor& v_in) {
  const int64_t count = k_in.size(0);
  if (count == 0) return;
  if (grouped_) {
    grouped_->append(k_in, v_in, length_);
    length_ += count;
    return;
  }
  // Many rows: PyTorch's conversion is vectorised; few: straight into the cache.
  at::Tensor k = k_in, v = v_in;
  if (k.scalar_type() != options_.dtype && k.numel() >= 4096) {
    k = k.to(options_.dtype);
    v = v.to(options_.dtype);
  }
  const auto one = [&](int64_t h) {
    const at::Tensor kh = k.select(1, h), vh = v.select(1, h);
    if (programs_[h].full()) {
      append_full(heads_[h], kh, vh);
    } else {
      append_window(heads_[h], programs_[h], kh, vh);
    }
  };
  for (int64_t h = 0; h < static_cast<int64_t>(heads_.size()); ++h) one(h);
  length_ += count;
}

void KvState::append_full(Head& head, const at::Tensor& k, const at::Tensor& v) {
  const int64_t count = k.size(0);
  for (int64_t row = 0; row < count;) {
    const int64_t position = length_ + row;
    const int64_t page = position / kPage, slot = position % kPage;
    const int64_t n = std::min(kPage - slot, count - row);
    if (slot == 0) {
      head.pages.push_back(make_rows(kPage));
    } else {
      own(head.pages[page]);
    }
    const Rows& rows = *head.pages[page];
    copy_rows(k, row, rows.k, slot, n);
    copy_rows(v, row, rows.v, slot, n);
    head.segments.resize(page + 1);
    head.segments[page] = segment_of(rows.k, rows.v, 0, slot + n, page * kPage);
    row += n;
  }
}

void KvState::grow_ring(Head& head, const HeadProgram& program, int64_t rows) {
  const int64_t capacity = std::min(program.window, round_up(rows, kPage));
  if (head.ring && head.ring->k.size(0) >= capacity) {
    own(head.ring);
    return;
  }
  RowsPtr larger = make_rows(capacity);
  if (head.ring) {
    const int64_t old = head.ring->k.size(0);
    larger->k.narrow(0, 0, old).copy_(head.ring->k);
    larger->v.narrow(0, 0, old).copy_(head.ring->v);
  }
  head.ring = std::move(larger);
}

void KvState::append_window(Head& head, const HeadProgram& program, const at::Tensor& k,
                            const at::Tensor& v) {
  const int64_t count = k.size(0);
  if (count == 0) return;
  if (program.dropped != Dropped::kGone) drop(head, program, k, v);
  int64_t row = 0;
  if (length_ < program.sinks) {
    const int64_t n = std::min(count, program.sinks - length_);
    if (head.sinks) {
      own(head.sinks);
    } else {
      head.sinks = make_rows(program.sinks);
    }
    copy_rows(k, 0, head.sinks->k, length_, n);
    copy_rows(v, 0, head.sinks->v, length_, n);
    row = n;
  }
  // Only the last `window` rows stay.
  row = std::max(row, count - program.window);
  if (row >= count) return;
  grow_ring(head, program, std::min(program.window, length_ + count - program.sinks));
  while (row < count) {
    const int64_t slot = (length_ + row - program.sinks) % program.window;
    const int64_t n = std::min(program.window - slot, count - row);
    copy_rows(k, row, head.ring->k, slot, n);
    copy_rows(v, row, head.ring->v, slot, n);
    row += n;
  }
}

namespace {

// The ring's rows after `length` tokens: up to two runs {row, count, first position}.
struct RingRun {
  int64_t row, count, position;
};
std::array<RingRun, 2> ring_runs(const HeadProgram& p, int64_t length) {
  const int64_t first = std::max(p.sinks, length - p.window);
  const int64_t count = length - first;
  if (count <= 0) return {};
  const int64_t row = (first - p.sinks) % p.window;
  const int64_t head = std::min(count, p.window - row);
  return {RingRun{row, head, first}, RingRun{0, count - head, first + head}};
}

}  // namespace

// Takes what an append of k and v [T, D] will push out into the mean.
void KvState::drop(Head& head, const HeadProgram& p, const at::Tensor& k,
                   const at::Tensor& v) const {
  const Evicted gone(p, length_, k.size(0));
  if (gone.total() == 0) return;
  const int64_t before = head.mean ? head.mean->count : 0;
  const auto zero = at::zeros({1, options_.head_dim}, at::kFloat);
  at::Tensor sum_k = head.mean ? head.mean->k.mul(before) : zero;
  at::Tensor sum_v = head.mean ? head.mean->v.mul(before) : zero;
  const auto add = [&](const at::Tensor& rows_k, const at::Tensor& rows_v) {
    sum_k = sum_k + rows_k.sum(0, true, at::kFloat);
    sum_v = sum_v + rows_v.sum(0, true, at::kFloat);
  };
  for (int64_t p0 = gone.old_begin; p0 < gone.old_end;) {
    const int64_t slot = (p0 - p.sinks) % p.window;
    const int64_t n = std::min(p.window - slot, gone.old_end - p0);
    add(head.ring->k.narrow(0, slot, n), head.ring->v.narrow(0, slot, n));
    p0 += n;
  }
  if (const int64_t n = gone.new_end - gone.new_begin; n > 0) {
    // As the cache would have rounded them.
    const auto rows = [&](const at::Tensor& x) {
      return x.narrow(0, gone.new_begin - length_, n).to(options_.dtype);
    };
    add(rows(k), rows(v));
  }
  const int64_t count = before + gone.total();
  set_mean(head, p, sum_k.div(count), sum_v.div(count), count);
}

void KvState::set_mean(Head& head, const HeadProgram& program, const at::Tensor& k,
                       const at::Tensor& v, int64_t count) const {
  auto mean = std::make_shared<Mean>();
  mean->k = k, mean->v = v;
  mean->rows = {k.to(options_.dtype, false, true), v.to(options_.dtype, false, true)};
  mean->count = count;
  mean->bias = program.dropped == Dropped::kMean ? std::log(static_cast<float>(count)) : 0.0f;
  head.mean = std::move(mean);
}

KvState::Stand KvState::mean(int64_t h) const {
  if (!grouped_) {
    const auto& mean = heads_[h].mean;
    return mean ? Stand{mean->k, mean->v, mean->bias} : Stand{};
  }
  const GroupedRows::Group& group = grouped_->group_of(h);
  if (!group.mean) return {};
  const int64_t n = std::find(group.heads.begin(), group.heads.end(), h) - group.heads.begin();
  return {group.mean->k.select(0, n), group.mean->v.select(0, n), group.mean->bias};
}

std::vector<KvState::Run> KvState::runs(int64_t h) const {
  std::vector<Run> out;
  if (grouped_) {
    if (length_ == 0) return out;
    const GroupedRows::Group& group = grouped_->group_of(h);
    const int64_t n = std::find(group.heads.begin(), group.heads.end(), h) - group.heads.begin();
    for (const GroupedRows::Run& run : GroupedRows::runs(group, length_)) {
      out.push_back({run.k.select(0, n), run.v.select(0, n), run.position});
    }
    return out;
  }
  const Head& head = heads_[h];
  const HeadProgram& p = programs_[h];
  if (p.full()) {
    for (size_t i = 0; i < head.pages.size(); ++i) {
      const int64_t position = static_cast<int64_t>(i) * kPage;
      const int64_t n = std::min(kPage, length_ - position);
      out.push_back({head.pages[i]->k.narrow(0, 0, n), head.pages[i]->v.narrow(0, 0, n), position});
    }
    return out;
  }
  if (const int64_t n = std::min(length_, p.sinks); n > 0) {
    out.push_back({head.sinks->k.narrow(0, 0, n), head.sinks->v.narrow(0, 0, n), 0});
  }
  for (const RingRun& run : ring_runs(p, length_)) {
    if (run.count == 0) continue;
    out.push_back({head.ring->k.narrow(0, run.row, run.count),
                   head.ring->v.narrow(0, run.row, run.count), run.position});
  }
  return out;
}

void KvState::add_segments(int64_t h, std::vector<kernel::Segment>& out) const {
  const Head& head = heads_[h];
  const HeadProgram& p = programs_[h];
  if (p.full()) {
    out.insert(out.end(), head.segments.begin(), head.segments.end());
    return;
  }
  if (const int64_t n = std::min(length_, p.sinks); n > 0) {
    out.push_back(segment_of(head.sinks->k, head.sinks->v, 0, n, 0));
  }
  for (const RingRun& run : ring_runs(p, length_)) {
    if (run.count == 0) continue;
    out.push_back(segment_of(head.ring->k, head.ring->v, run.row, run.count, run.position));
  }
  if (head.mean) {  // at the last position, which no window hides
    out.push_back(segment_of(head.mean->rows.k, head.mean->rows.v, 0, 1, length_ - 1));
    out.back().bias = &head.mean->bias;
  }
}

void KvState::truncate(int64_t length) {
  if (length < 0 || length > length_) {
    throw UsageError("a state of {} tokens cannot be cut to {}", length_, length);
  }
  if (length == length_) return;
  for (const HeadProgram& p : programs_) {
    if (!p.full() && length_ > p.sinks + p.window) {
      throw Error(
          "a window head (sinks {}, window {}) has dropped keys of the first {} tokens: keep a "
          "fork of the "
          "state to go back to",
          p.sinks, p.window, length);
    }
  }
  if (grouped_) grouped_->truncate(length);
  for (size_t h = 0; h < heads_.size() && !grouped_; ++h) {
    Head& head = heads_[h];
    const HeadProgram& p = programs_[h];
    if (p.full()) {
      const int64_t pages = (length + kPage - 1) / kPage;
      head.pages.resize(pages);
      head.segments.resize(pages);
      if (pages > 0) head.segments.back().length = length - (pages - 1) * kPage;
    } else {
      if (length == 0) head.sinks.reset();
      if (length <= p.sinks) head.ring.reset();
    }
  }
  length_ = length;
}

void KvState::save(NamedTensors& out, const std::string& prefix) const {
  out[prefix + "length"] = at::full({1}, length_, at::kLong);
  for (int64_t h = 0; h < static_cast<int64_t>(heads_.size()); ++h) {
    std::vector<at::Tensor> k, v;
    for (const Run& run : runs(h)) {
      k.push_back(run.k);
      v.push_back(run.v);
    }
    if (k.empty()) {
      k.push_back(make_rows(0)->k);
      v.push_back(k.back());
    }
    out[fmt::format("{}h{}.k", prefix, h)] = at::cat(k).cpu();
    out[fmt::format("{}h{}.v", prefix, h)] = at::cat(v).cpu();
    if (const Stand stand = mean(h); stand.k.defined()) {
      out[fmt::format("{}h{}.mean_k", prefix, h)] = stand.k.cpu();
      out[fmt::format("{}h{}.mean_v", prefix, h)] = stand.v.cpu();
    }
  }
}

void KvState::load(const NamedTensors& in, const std::string& prefix) {
  const auto get = [&](const std::string& name) -> const at::Tensor& {
    const auto it = in.find(prefix + name);
    if (it == in.end()) throw Error("a saved state lacks tensor {}{}", prefix, name);
    return it->second;
  };
  const at::Tensor& length = get("length");
  if (length.numel() != 1 || length.scalar_type() != at::kLong || length.item<int64_t>() < 0) {
    throw Error("a saved state's tensor {}length is not one count of tokens", prefix);
  }
  const int64_t tokens = length.item<int64_t>();
  KvState fresh(programs_, options_);
  Saved saved;
  for (int64_t h = 0; h < static_cast<int64_t>(heads_.size()); ++h) {
    const int64_t held = programs_[h].held(tokens);
    const auto rows = [&](const char* what, int64_t count, at::ScalarType type) {
      const std::string name = fmt::format("h{}.{}", h, what);
      const at::Tensor& t = get(name);
      if (t.dim() != 2 || t.size(0) != count || t.size(1) != options_.head_dim ||
          !at::isFloatingType(t.scalar_type())) {
        throw Error("a saved state's tensor {}{} does not fit: [{}, {}] was expected", prefix, name,
                    count, options_.head_dim);
      }
      return t.to(options_.device, type).contiguous();
    };
    saved.k.push_back(rows("k", held, options_.dtype));
    saved.v.push_back(rows("v", held, options_.dtype));
    saved.mean_k.emplace_back();
    saved.mean_v.emplace_back();
    if (programs_[h].kept(tokens) > held) {
      saved.mean_k.back() = rows("mean_k", 1, at::kFloat);
      saved.mean_v.back() = rows("mean_v", 1, at::kFloat);
    }
    if (!grouped_) fresh.load_head(h, saved, tokens);
  }
  if (grouped_) fresh.load_groups(saved, tokens);
  fresh.length_ = tokens;
  *this = std::move(fresh);
}

// What a head keeps after `tokens` tokens, into an empty head.
void KvState::load_head(int64_t h, const Saved& saved, int64_t tokens) {
  Head& head = heads_[h];
  const HeadProgram& p = programs_[h];
  const at::Tensor &k = saved.k[h], &v = saved.v[h];
  if (p.full()) return append_full(head, k, v);
  const int64_t sinks = std::min(p.sinks, tokens), rest = k.size(0) - sinks;
  append_window(head, p, k.narrow(0, 0, sinks), v.narrow(0, 0, sinks));
  // The ring's rows, as if the tokens before them had just gone by.
  length_ = tokens - rest;
  HeadProgram plain = p;  // nothing is dropped now
  plain.dropped = Dropped::kGone;
  append_window(head, plain, k.narrow(0, sinks, rest), v.narrow(0, sinks, rest));
  length_ = 0;
  if (saved.mean_k[h].defined()) {
    set_mean(head, p, saved.mean_k[h], saved.mean_v[h], tokens - p.held(tokens));
  }
}

void KvState::load_groups(const Saved& saved, int64_t tokens) {
  for (const GroupedRows::Group& named : grouped_->groups()) {
    GroupedRows::Group& group = grouped_->group_of(named.heads[0]);
    const auto stacked = [&](const std::vector<at::Tensor>& parts) {
      std::vector<at::Tensor> list;
      for (const int64_t h : group.heads) list.push_back(parts[h]);
      return at::stack(list);
    };
    const at::Tensor key = stacked(saved.k), value = stacked(saved.v);
    const HeadProgram p = group.program;
    const int64_t first = p.full() ? key.size(1) : std::min(p.sinks, tokens);
    const int64_t rest = key.size(1) - first;
    group.program.dropped = Dropped::kGone;  // nothing is dropped now
    grouped_->append(group, key.narrow(1, 0, first), value.narrow(1, 0, first), 0);
    grouped_->append(group, key.narrow(1, first, rest), value.narrow(1, first, rest),
                     tokens - rest);
    group.program.dropped = p.dropped;
    if (p.kept(tokens) > p.held(tokens)) {
      GroupedRows::set_mean(group, stacked(saved.mean_k), stacked(saved.mean_v),
                            tokens - p.held(tokens));
    }
  }
}

}  // namespace heed
