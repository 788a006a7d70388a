// See state.h.
#include "cache/state.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace heed {
namespace {

template <typename... F>
struct Overload : F... {
  using F::operator()...;
};
template <typename... F>
Overload(F...) -> Overload<F...>;

int64_t element_size(at::ScalarType dtype) { return static_cast<int64_t>(c10::elementSize(dtype)); }

const std::string& name_of(const StatePart& part) {
  return std::visit([](const auto& p) -> const std::string& { return p.name; }, part);
}

// Before the names of a part's own tensors in saved states.
std::string prefix_of(const StatePart& part, const std::string& prefix) {
  return name_of(part).empty() ? prefix : prefix + name_of(part) + ".";
}

at::Tensor make(StatePool* pool, at::IntArrayRef sizes, at::ScalarType dtype,
                const at::Device& device) {
  return pool ? pool->take(sizes, dtype, device)
              : at::empty(sizes, at::TensorOptions().dtype(dtype).device(device));
}

}  // namespace

// ----------------------------------------------------------------------------------------------
// descriptions

int64_t StateSpec::bytes(int64_t tokens) const {
  int64_t total = 0;
  for (const StatePart& part : parts) {
    total += std::visit(Overload{[&](const RowsPart& p) { return Rows::allocated(p, tokens); },
                                 [&](const FixedPart& p) {
                                   return c10::multiply_integers(p.shape) * element_size(p.dtype);
                                 },
                                 [&](const HistoryPart& p) {
                                   const int64_t rows = p.most > 0 ? p.most
                                                                   : (tokens + Rows::kPage - 1) /
                                                                         Rows::kPage * Rows::kPage;
                                   return rows * p.width * element_size(p.dtype);
                                 }},
                        part);
  }
  return total;
}

bool StateSpec::can_truncate() const {
  return std::all_of(parts.begin(), parts.end(), [](const StatePart& part) {
    const auto* history = std::get_if<HistoryPart>(&part);
    return std::holds_alternative<RowsPart>(part) || (history && history->most == 0);
  });
}

bool StateSpec::dense_prefill() const {
  return std::any_of(parts.begin(), parts.end(), [](const StatePart& part) {
    const auto* rows = std::get_if<RowsPart>(&part);
    return rows && rows->dense_prefill;
  });
}

// ----------------------------------------------------------------------------------------------
// states

State::State(StateSpec spec, std::shared_ptr<StatePool> pool)
    : spec_(std::move(spec)), pool_(std::move(pool)) {
  const auto zeros = [&](at::IntArrayRef sizes, at::ScalarType dtype) {
    return make(pool_.get(), sizes, dtype, spec_.device).zero_();
  };
  parts_.reserve(spec_.parts.size());
  for (const StatePart& part : spec_.parts) {
    if (const auto* rows = std::get_if<RowsPart>(&part)) {
      parts_.emplace_back(std::in_place_type<Rows>, *rows, spec_.device, pool_);
    } else if (const auto* fixed = std::get_if<FixedPart>(&part)) {
      parts_.emplace_back(zeros(fixed->shape, fixed->dtype));
    } else {
      const auto& history = std::get<HistoryPart>(part);
      if (history.most > 0) {
        parts_.emplace_back(zeros({history.most, history.width}, history.dtype));
      } else {
        parts_.emplace_back(Growing{zeros({0, history.width}, history.dtype), 0});
      }
    }
  }
}

std::unique_ptr<State> State::fork() const {
  auto copy = std::make_unique<State>(*this);
  const auto clone = [&](at::Tensor& t) {
    const at::Tensor own = make(pool_.get(), t.sizes(), t.scalar_type(), t.device());
    t = own.copy_(t);
  };
  for (Part& part : copy->parts_) {
    std::visit(Overload{[](Rows&) {}, [&](at::Tensor& t) { clone(t); },
                        [&](Growing& g) { clone(g.room); }},
               part);
  }
  return copy;
}

int64_t State::bytes() const {
  int64_t total = 0;
  for (const Part& part : parts_) {
    total +=
        std::visit(Overload{[](const Rows& rows) { return rows.bytes(); },
                            [](const at::Tensor& t) { return static_cast<int64_t>(t.nbytes()); },
                            [](const Growing& g) { return static_cast<int64_t>(g.room.nbytes()); }},
                   part);
  }
  return total;
}

at::Tensor State::extend(size_t part, const at::Tensor& x) {
  auto& growing = std::get<Growing>(parts_[part]);
  const int64_t rows = growing.rows + x.size(0);
  if (rows > growing.room.size(0)) {
    const int64_t capacity = (rows + Rows::kPage - 1) / Rows::kPage * Rows::kPage;
    const at::Tensor room = make(pool_.get(), {capacity, growing.room.size(1)},
                                 growing.room.scalar_type(), growing.room.device());
    room.narrow(0, 0, growing.rows).copy_(growing.room.narrow(0, 0, growing.rows));
    growing.room = room;
  }
  growing.room.narrow(0, growing.rows, x.size(0)).copy_(x);
  growing.rows = rows;
  return growing.room.narrow(0, 0, rows);
}

void State::check_truncate(int64_t length) const {
  if (length < 0 || length > length_) {
    throw UsageError("a state of {} tokens cannot be cut to {}", length_, length);
  }
  if (length == length_) return;
  for (const Part& part : parts_) {
    if (const auto* rows = std::get_if<Rows>(&part)) {
      // A part with rows of its own count (compressed ones) can only be emptied.
      const int64_t every = rows->part().every;
      if (rows->length() == length_ / every || length == 0) {
        rows->check_truncate(std::min(length / every, rows->length()));
        continue;
      }
    } else if (length == 0 || std::holds_alternative<Growing>(part)) {
      continue;
    }
    throw Error(
        "a recurrent state of {} tokens cannot be cut back to {}; keep a fork of it at that length",
        length_, length);
  }
}

void State::truncate(int64_t length) {
  check_truncate(length);
  if (length == length_) return;
  for (Part& part : parts_) {
    std::visit(Overload{[&](Rows& rows) {
                          rows.truncate(std::min(length / rows.part().every, rows.length()));
                        },
                        [](at::Tensor& t) { t.zero_(); }, [&](Growing& g) { g.rows = length; }},
               part);
  }
  length_ = length;
}

void State::save(NamedTensors& out, const std::string& prefix) const {
  for (size_t i = 0; i < parts_.size(); ++i) {
    const std::string name = prefix + name_of(spec_.parts[i]);
    std::visit(
        Overload{[&](const Rows& rows) { rows.save(out, prefix_of(spec_.parts[i], prefix)); },
                 [&](const at::Tensor& t) { out[name] = t.clone(); },
                 [&](const Growing& g) { out[name] = g.room.narrow(0, 0, g.rows).clone(); }},
        parts_[i]);
  }
  out[prefix + "length"] = at::full({1}, length_, at::kLong);
}

void State::load(const NamedTensors& in, const std::string& prefix) {
  const auto find = [&](const std::string& name) -> const at::Tensor& {
    const auto it = in.find(prefix + name);
    if (it == in.end()) throw Error("state: tensor {}{} is missing", prefix, name);
    return it->second;
  };
  const at::Tensor& length = find("length");
  if (length.scalar_type() != at::kLong || length.numel() != 1 || length.item<int64_t>() < 0) {
    throw Error("state: tensor {}length must be one int64, at least 0", prefix);
  }
  State fresh(spec_, pool_);  // so that a state that does not fit changes nothing
  for (size_t i = 0; i < parts_.size(); ++i) {
    const std::string& name = name_of(spec_.parts[i]);
    if (Rows* rows = std::get_if<Rows>(&fresh.parts_[i])) {
      rows->load(in, prefix_of(spec_.parts[i], prefix));
      continue;
    }
    const at::Tensor& value = find(name);
    if (std::holds_alternative<Growing>(fresh.parts_[i])) {
      const int64_t width = std::get<HistoryPart>(spec_.parts[i]).width;
      if (value.dim() != 2 || value.size(1) != width) {
        throw Error("state: tensor {}{} has shape [{}], expected [rows,{}]", prefix, name,
                    fmt::join(value.sizes(), ","), width);
      }
      fresh.extend(i, value);
      continue;
    }
    at::Tensor& t = std::get<at::Tensor>(fresh.parts_[i]);
    if (value.sizes() != t.sizes()) {
      throw Error("state: tensor {}{} has shape [{}], expected [{}]", prefix, name,
                  fmt::join(value.sizes(), ","), fmt::join(t.sizes(), ","));
    }
    t.copy_(value);
  }
  fresh.length_ = length.item<int64_t>();
  *this = std::move(fresh);
}

at::Tensor side_by_side(std::span<State* const> states, size_t part) {
  const at::Tensor& first = states[0]->tensor(part);
  if (states.size() == 1) return first.unsqueeze(0);
  const auto count = static_cast<int64_t>(states.size());
  std::vector<int64_t> sizes = {count}, strides = {first.numel()};
  sizes.insert(sizes.end(), first.sizes().begin(), first.sizes().end());
  strides.insert(strides.end(), first.strides().begin(), first.strides().end());
  bool together = first.is_contiguous();
  for (int64_t n = 1; n < count && together; ++n) {
    const at::Tensor& t = states[n]->tensor(part);
    together = t.storage().is_alias_of(first.storage()) &&
               t.storage_offset() == first.storage_offset() + n * first.numel();
  }
  if (together) return first.as_strided(sizes, strides, first.storage_offset());
  const at::Tensor moved = make(states[0]->pool_.get(), sizes, first.scalar_type(), first.device());
  for (int64_t n = 0; n < count; ++n) {
    at::Tensor& own = states[n]->tensor(part);
    const at::Tensor place = moved.select(0, n);
    place.copy_(own);
    own = place;
  }
  return moved;
}

}  // namespace heed
