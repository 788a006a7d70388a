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

// Hides the keys that a row may not see. `base` is the position of the unit's first query.
HWY_INLINE void mask_rows(const AttendJob& job, const RowGroup& rows, int64_t base,
                          const int32_t* index, int from, int to, float* s) {
  const Tag d;
  const hn::RebindToSigned<Tag> di;
  constexpr int64_t kClamp = int64_t{1} << 30;
  const bool window = job.window > 0 && job.window < kFar;
  const auto sinks =
      hn::Set(di, static_cast<int32_t>(std::clamp(job.sinks - base, -kClamp, kClamp)));
  const int32_t width = static_cast<int32_t>(std::min<int64_t>(job.window, kClamp + kClamp / 2));
  const Vec hidden = hn::Set(d, kHidden);
  for (int r = 0; r < rows.rows; ++r) {
    const auto at = hn::Set(di, rows.position[r]);
    const auto before = hn::Set(di, rows.position[r] - width);
    // Not causal: keys below p_i + window; the sum is cut off where it would leave 32 bits.
    const auto behind = hn::Set(
        di, static_cast<int32_t>(std::min<int64_t>(int64_t{rows.position[r]} + width, kClamp + 1)));
    for (int j = from; j < to; j += kLanes) {
      const auto p = hn::LoadU(di, index + j);
      auto seen = hn::Eq(p, p);
      if (job.causal) seen = hn::Not(hn::Gt(p, at));
      if (window) {
        auto near = hn::Gt(p, before);
        if (!job.causal) near = hn::And(near, hn::Gt(behind, p));
        seen = hn::And(seen, hn::Or(near, hn::Gt(sinks, p)));
      }
      float* x = s + r * kTile + j;
      hn::StoreU(hn::IfThenElse(hn::RebindMask(d, seen), hn::LoadU(d, x), hidden), d, x);
    }
  }
}

// Applies everything to the logits of a group in [from, to), both multiples of the vector; keys
// from `end` on are hidden. `cap_slope`, if given, receives the derivative of the cap.
HWY_INLINE void finish_logits(const AttendTable& table, const AttendJob& job, const RowGroup& rows,
                              int64_t base, const float* bias, const float* position,
                              const int32_t* index, bool masked, int from, int to, int end,
                              float* s, float* cap_slope) {
  const Tag d;
  const Vec hidden = hn::Set(d, kHidden);
  if (table.soft_cap > 0) {
    const Vec inverse = hn::Set(d, 1.0f / table.soft_cap);
    const Vec cap = hn::Set(d, table.soft_cap * kLog2E);
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
  if (job.slopes) {
    for (int r = 0; r < rows.rows; ++r) {
      const Vec slope = hn::Set(d, job.slopes[rows.head[r]] * kLog2E);
      const Vec at = hn::Set(d, static_cast<float>(rows.position[r]));
      for (int j = from; j < to; j += kLanes) {
        float* x = s + r * kTile + j;
        const Vec distance = hn::Abs(hn::Sub(at, hn::LoadU(d, position + j)));
        hn::StoreU(hn::NegMulAdd(slope, distance, hn::LoadU(d, x)), d, x);
      }
    }
  }
  if (bias) {
    for (int r = 0; r < rows.rows; ++r) {
      const float* row = bias + static_cast<ptrdiff_t>(rows.head[r]) * kTile;
      for (int j = from; j < to; j += kLanes) {
        float* x = s + r * kTile + j;
        const Vec b = hn::LoadU(d, row + j);
        const Vec sum = hn::Add(hn::LoadU(d, x), b);  // NaN + -inf must not stay NaN
        hn::StoreU(hn::IfThenElse(hn::Eq(b, hidden), hidden, sum), d, x);
      }
    }
  }
  if (masked) mask_rows(job, rows, base, index, from, to, s);
  if (end < to) {
    const int j = to - kLanes;
    const auto inside = hn::FirstN(d, static_cast<size_t>(end - j));
    for (int r = 0; r < rows.rows; ++r) {
      float* x = s + r * kTile + j;
      hn::StoreU(hn::IfThenElse(inside, hn::LoadU(d, x), hidden), d, x);
    }
  }
}

// sigmoid(x + b) = 1 / (1 + 2^-(x + b)) in base 2, 0 for hidden keys.
HWY_INLINE Vec sigmoid_vec(Vec x, Vec b) {
  const Tag d;
  const Vec one = hn::Set(d, 1.0f);
  const Vec e = exp2_vec(hn::Min(hn::Set(d, 126.0f), hn::Neg(hn::Add(x, b))));
  return hn::IfThenZeroElse(hn::Eq(x, hn::Set(d, kHidden)), hn::Div(one, hn::Add(one, e)));
}

}  // namespace HWY_NAMESPACE
}  // namespace heed::kernel::attend
HWY_AFTER_NAMESPACE();
#endif  // HEED_VECTOR_TARGET

#endif  // HEED_KERNEL_ATTEND_LOGITS_INL_H_
