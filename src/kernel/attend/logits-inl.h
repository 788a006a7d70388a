// The hooks between q.k and the weights, on a group of rows of logits: soft cap, ALiBi, bias, mask.
// Logits are in base 2 (times log2(e)) once the hooks have run.
#if defined(HEED_KERNEL_ATTEND_LOGITS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_KERNEL_ATTEND_LOGITS_INL_H_
#undef HEED_KERNEL_ATTEND_LOGITS_INL_H_
#else
#define HEED_KERNEL_ATTEND_LOGITS_INL_H_
#endif

#include "hwy/contrib/math/math-inl.h"
#include "kernel/attend/tile-inl.h"
#include "kernel/attend/tile.h"

#if HEED_VECTOR_TARGET
HWY_BEFORE_NAMESPACE();
namespace heed::kernel::attend {
namespace HWY_NAMESPACE {

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.69314718055994530942f;
inline constexpr float kHidden = -std::numeric_limits<float>::infinity();

// Rows of the micro-kernels' group: heads of the KV group and positions counted from the unit's
// first query.
struct RowGroup {
  int rows = 0;
  int32_t head[kGroup];
  int32_t position[kGroup];
};

HWY_INLINE RowGroup row_group(int first_row, int rows, int32_t group) {
  RowGroup result;
  result.rows = rows;
  for (int r = 0; r < rows; ++r) {
    result.head[r] = (first_row + r) % group;
    result.position[r] = (first_row + r) / group;
  }
  return result;
}

// What queries are multiplied by before the product with the keys.
HWY_INLINE float query_factor(const AttendTable& table) {
  return table.soft_cap > 0 ? table.scale : table.scale * kLog2E;
}

// What the hooks read of a unit and of the tile at hand.
struct Hooks {
  const AttendTable& table;
  const AttendJob& job;
  int64_t base;           // position of the unit's first query
  const float* bias;      // [G][kTile], times log2(e); NULL: none
  const float* position;  // of the keys, from base
  const int32_t* index;   // the same, or places on the last axis
  const int32_t* listed;  // where lists open keys
};

// Grids: the keys of a line that a row may not see; lines that it may not see are in no tile.
HWY_INLINE void mask_places(const Hooks& hooks, const RowGroup& rows, int from, int to, float* s) {
  const Tag d;
  const hn::RebindToSigned<Tag> di;
  const Axis& line = hooks.job.axes[hooks.job.rank - 1];
  const Vec hidden = hn::Set(d, kHidden);
  for (int r = 0; r < rows.rows; ++r) {
    const Places places = seen(line, hooks.base % line.length + rows.position[r]);
    const auto begin = hn::Set(di, static_cast<int32_t>(places.begin));
    const auto end = hn::Set(di, static_cast<int32_t>(places.end));
    for (int j = from; j < to; j += kLanes) {
      const auto p = hn::LoadU(di, hooks.index + j);
      const auto shut = hn::Or(hn::Gt(begin, p), hn::Not(hn::Gt(end, p)));
      float* x = s + r * kTile + j;
      hn::StoreU(hn::IfThenElse(hn::RebindMask(d, shut), hidden, hn::LoadU(d, x)), d, x);
    }
  }
}

// Hides the keys that a row may not see.
HWY_INLINE void mask_rows(const Hooks& hooks, const RowGroup& rows, int from, int to, float* s) {
  const AttendJob& job = hooks.job;
  if (job.axes) return mask_places(hooks, rows, from, to, s);
  const Tag d;
  const hn::RebindToSigned<Tag> di;
  constexpr int64_t kClamp = int64_t{1} << 30;
  const bool window = has_window(job);
  const bool lists_open = job.any && job.block_start;
  const auto sinks =
      hn::Set(di, static_cast<int32_t>(std::clamp(job.sinks - hooks.base, -kClamp, kClamp)));
  const int32_t width = static_cast<int32_t>(std::min<int64_t>(job.window, kClamp + kClamp / 2));
  const Vec hidden = hn::Set(d, kHidden);
  for (int r = 0; r < rows.rows; ++r) {
    const auto at = hn::Set(di, rows.position[r]);
    const auto before = hn::Set(di, rows.position[r] - width);
    // Not causal: keys below p_i + window; the sum is cut off where it would leave 32 bits.
    const auto behind = hn::Set(
        di, static_cast<int32_t>(std::min<int64_t>(int64_t{rows.position[r]} + width, kClamp + 1)));
    for (int j = from; j < to; j += kLanes) {
      const auto p = hn::LoadU(di, hooks.index + j);
      auto open = hn::Eq(p, p);
      if (job.causal) open = hn::Not(hn::Gt(p, at));
      if (window) {
        auto near = hn::Gt(p, before);
        if (!job.causal) near = hn::And(near, hn::Gt(behind, p));
        near = hn::Or(near, hn::Gt(sinks, p));
        if (lists_open) near = hn::Or(near, hn::Gt(hn::LoadU(di, hooks.listed + j), hn::Zero(di)));
        open = hn::And(open, near);
      }
      float* x = s + r * kTile + j;
      hn::StoreU(hn::IfThenElse(hn::RebindMask(d, open), hn::LoadU(d, x), hidden), d, x);
    }
  }
}

// Elements of a table by distance for row r and the keys from j on; distances beyond the table,
// which only hidden keys have, read its ends.
HWY_INLINE Vec by_distance(const Hooks& hooks, const float* table, const RowGroup& rows, int r,
                           int j) {
  const Tag d;
  const hn::RebindToSigned<Tag> di;
  const int32_t reach = static_cast<int32_t>(hooks.job.reach);
  const auto at =
      hn::Add(hn::LoadU(di, hooks.index + j), hn::Set(di, reach - 1 - rows.position[r]));
  const auto inside = hn::Min(hn::Max(at, hn::Zero(di)), hn::Set(di, 2 * reach - 2));
  return hn::GatherIndex(d, table + rows.head[r] * hooks.job.relative_stride, inside);
}

HWY_INLINE void cap_rows(const Hooks& hooks, const RowGroup& rows, int from, int to, float* s,
                         float* cap_slope) {
  const Tag d;
  const Vec inverse = hn::Set(d, 1.0f / hooks.table.soft_cap);
  const Vec cap = hn::Set(d, hooks.table.soft_cap * kLog2E);
  for (int r = 0; r < rows.rows; ++r) {
    for (int j = from; j < to; j += kLanes) {
      float* x = s + r * kTile + j;
      const Vec t = hn::CallTanh(d, hn::Mul(hn::LoadU(d, x), inverse));
      hn::StoreU(hn::Mul(cap, t), d, x);
      if (cap_slope) {
        hn::StoreU(hn::NegMulAdd(t, t, hn::Set(d, 1.0f)), d, cap_slope + r * kTile + j);
      }
    }
  }
}

// ALiBi, and the table of biases by distance.
HWY_INLINE void add_distances(const Hooks& hooks, const RowGroup& rows, int from, int to,
                              float* s) {
  const Tag d;
  const AttendJob& job = hooks.job;
  for (int r = 0; job.slopes && r < rows.rows; ++r) {
    const Vec slope = hn::Set(d, job.slopes[rows.head[r]] * kLog2E);
    const Vec at = hn::Set(d, static_cast<float>(rows.position[r]));
    for (int j = from; j < to; j += kLanes) {
      float* x = s + r * kTile + j;
      const Vec distance = hn::Abs(hn::Sub(at, hn::LoadU(d, hooks.position + j)));
      hn::StoreU(hn::NegMulAdd(slope, distance, hn::LoadU(d, x)), d, x);
    }
  }
  const Vec log2e = hn::Set(d, kLog2E);
  for (int r = 0; job.relative_bias && r < rows.rows; ++r) {
    for (int j = from; j < to; j += kLanes) {
      float* x = s + r * kTile + j;
      const Vec b = by_distance(hooks, job.relative_bias, rows, r, j);
      hn::StoreU(hn::MulAdd(log2e, b, hn::LoadU(d, x)), d, x);
    }
  }
}

HWY_INLINE void add_biases(const Hooks& hooks, const RowGroup& rows, int from, int to, float* s) {
  const Tag d;
  const Vec hidden = hn::Set(d, kHidden);
  const AttendJob& job = hooks.job;
  for (int r = 0; job.q_bias && r < rows.rows; ++r) {
    const int64_t n = hooks.base - job.q_position + rows.position[r];
    const Vec b = hn::Set(
        d, kLog2E * job.q_bias[n * job.q_bias_stride + rows.head[r] * job.q_bias_head_stride]);
    for (int j = from; j < to; j += kLanes) {
      float* x = s + r * kTile + j;
      hn::StoreU(hn::Add(hn::LoadU(d, x), b), d, x);
    }
  }
  for (int r = 0; hooks.bias && r < rows.rows; ++r) {
    const float* row = hooks.bias + static_cast<ptrdiff_t>(rows.head[r]) * kTile;
    for (int j = from; j < to; j += kLanes) {
      float* x = s + r * kTile + j;
      const Vec b = hn::LoadU(d, row + j);
      const Vec sum = hn::Add(hn::LoadU(d, x), b);  // NaN + -inf must not stay NaN
      hn::StoreU(hn::IfThenElse(hn::Eq(b, hidden), hidden, sum), d, x);
    }
  }
}

// Applies everything to the logits of a group in [from, to), both multiples of the vector; keys
// from `end` on are hidden. `cap_slope`, if given, receives the derivative of the cap.
HWY_INLINE void finish_logits(const Hooks& hooks, const RowGroup& rows, bool masked, int from,
                              int to, int end, float* s, float* cap_slope) {
  const Tag d;
  const Vec hidden = hn::Set(d, kHidden);
  if (hooks.table.soft_cap > 0) cap_rows(hooks, rows, from, to, s, cap_slope);
  if (hooks.job.slopes || hooks.job.relative_bias) add_distances(hooks, rows, from, to, s);
  if (hooks.bias || hooks.job.q_bias) add_biases(hooks, rows, from, to, s);
  if (masked) mask_rows(hooks, rows, from, to, s);
  if (end < to) {
    const int j = to - kLanes;
    const auto inside = hn::FirstN(d, static_cast<size_t>(end - j));
    for (int r = 0; r < rows.rows; ++r) {
      float* x = s + r * kTile + j;
      hn::StoreU(hn::IfThenElse(inside, hn::LoadU(d, x), hidden), d, x);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace heed::kernel::attend
HWY_AFTER_NAMESPACE();
#endif  // HEED_VECTOR_TARGET

#endif  // HEED_KERNEL_ATTEND_LOGITS_INL_H_
