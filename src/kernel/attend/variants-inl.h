// From logits to weights, one struct a variant (variants.inc lists them). Each has two hooks:
//
//   weigh     forward: the logits of a group of rows become what values are multiplied by; keeps
//             each row's maximum and sum, and says what its output so far must be multiplied by
//   gradient  backward: of a vector of logits x and of dP = dO V^T, the weight (what dV is made of)
//             and the gradient of the logits
//
// Logits are in base 2; hidden keys are -inf.
#if defined(HEED_KERNEL_ATTEND_VARIANTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_KERNEL_ATTEND_VARIANTS_INL_H_
#undef HEED_KERNEL_ATTEND_VARIANTS_INL_H_
#else
#define HEED_KERNEL_ATTEND_VARIANTS_INL_H_
#endif

#include "kernel/attend/logits-inl.h"
#include "kernel/attend/merge.h"

#if HEED_VECTOR_TARGET
HWY_BEFORE_NAMESPACE();
namespace heed::kernel::attend {
namespace HWY_NAMESPACE {

// sigmoid(x + b) = 1 / (1 + 2^-(x + b)) in base 2, 0 for hidden keys.
HWY_INLINE Vec sigmoid_vec(Vec x, Vec b) {
  const Tag d;
  const Vec one = hn::Set(d, 1.0f);
  const Vec e = exp2_vec(hn::Min(hn::Set(d, 126.0f), hn::Neg(hn::Add(x, b))));
  return hn::IfThenZeroElse(hn::Eq(x, hn::Set(d, kHidden)), hn::Div(one, hn::Add(one, e)));
}

// What `gradient` reads of one row.
struct RowGradient {
  const Hooks& hooks;
  const RowGroup& rows;
  int r;      // of the group
  Vec lse;    // base 2
  Vec delta;  // sum dO O - dlse
  Vec shift;  // the sigmoid's bias, base 2
};

struct Weighed {
  Vec weight, dx;
};

// A hidden key may hold NaN, and 0 NaN is NaN.
HWY_INLINE Vec zero_where_hidden(Vec p, Vec dx) {
  return hn::IfThenZeroElse(hn::Eq(p, hn::Zero(Tag())), dx);
}

// p = exp(x - lse), dx = p (dP - delta)
struct Softmax {
  static HWY_NOINLINE void weigh(const Hooks&, const RowGroup& group, int from, int to, float* s,
                                 SoftmaxPart<float>* parts, float* factor) {
    const Tag d;
    const int rows = group.rows;
    // All maxima first: the sums across lanes then overlap.
    float base[kGroup];
    for (int r = 0; r < rows; ++r) {
      const float* row = s + r * kTile;
      Vec max = hn::LoadU(d, row + from);
      for (int j = from + kLanes; j < to; j += kLanes) max = hn::Max(max, hn::LoadU(d, row + j));
      const float both = std::max(parts[r].max, hn::GetLane(hn::MaxOfLanes(d, max)));
      factor[r] = 1;
      if (both != parts[r].max) factor[r] = SoftmaxPart<float>::weight(parts[r].max, both);
      parts[r].max = both;
      base[r] = both == kHidden ? 0.0f : both;
    }
    for (int r = 0; r < rows; ++r) {
      float* row = s + r * kTile;
      const Vec shift = hn::Set(d, base[r]);
      Vec sum = hn::Zero(d);
      for (int j = from; j < to; j += kLanes) {
        const Vec p = exp2_vec(hn::Sub(hn::LoadU(d, row + j), shift));
        sum = hn::Add(sum, p);
        hn::StoreU(p, d, row + j);
      }
      parts[r].sum = parts[r].sum * factor[r] + hn::GetLane(hn::SumOfLanes(d, sum));
    }
  }

  static HWY_INLINE Weighed gradient(const RowGradient& row, int, Vec x, Vec dp) {
    const Tag d;
    const Vec p = exp2_vec(hn::Min(hn::Set(d, 126.0f), hn::Sub(x, row.lse)));
    return {p, zero_where_hidden(p, hn::Mul(p, hn::Sub(dp, row.delta)))};
  }
};

// p = sigmoid(x + b), dx = p (1 - p) dP
struct Sigmoid {
  static HWY_NOINLINE void weigh(const Hooks& hooks, const RowGroup& group, int from, int to,
                                 float* s, SoftmaxPart<float>*, float* factor) {
    const Tag d;
    const Vec b = hn::Set(d, hooks.job.sigmoid_bias * kLog2E);
    for (int r = 0; r < group.rows; ++r) {
      factor[r] = 1;
      for (int j = from; j < to; j += kLanes) {
        float* x = s + r * kTile + j;
        hn::StoreU(sigmoid_vec(hn::LoadU(d, x), b), d, x);
      }
    }
  }

  static HWY_INLINE Weighed gradient(const RowGradient& row, int, Vec x, Vec dp) {
    const Vec p = sigmoid_vec(x, row.shift);
    const Vec slope = hn::Mul(p, hn::Sub(hn::Set(Tag(), 1.0f), p));
    return {p, zero_where_hidden(p, hn::Mul(slope, dp))};
  }
};

// Softmax times C by distance, not normalised again: weight C p, dx = p (C dP - delta). Universal
// relative position encoding, arXiv 2205.13401.
struct Urpe {
  static HWY_INLINE void weigh(const Hooks& hooks, const RowGroup& group, int from, int to,
                               float* s, SoftmaxPart<float>* parts, float* factor) {
    const Tag d;
    Softmax::weigh(hooks, group, from, to, s, parts, factor);
    for (int r = 0; r < group.rows; ++r) {
      for (int j = from; j < to; j += kLanes) {
        float* p = s + r * kTile + j;
        const Vec c = by_distance(hooks, hooks.job.relative_scale, group, r, j);
        hn::StoreU(hn::Mul(hn::LoadU(d, p), c), d, p);
      }
    }
  }

  static HWY_INLINE Weighed gradient(const RowGradient& row, int j, Vec x, Vec dp) {
    const Vec c = by_distance(row.hooks, row.hooks.job.relative_scale, row.rows, row.r, j);
    const Vec p = Softmax::gradient(row, j, x, dp).weight;
    const Vec dx = hn::Mul(p, hn::Sub(hn::Mul(c, dp), row.delta));
    return {hn::Mul(p, c), zero_where_hidden(p, dx)};
  }
};

// Any function of the logit, by pointer: f(x + b), dx = f'(x + b) dP.
struct Generic {
  static HWY_NOINLINE void weigh(const Hooks& hooks, const RowGroup& group, int from, int to,
                                 float* s, SoftmaxPart<float>*, float* factor) {
    const float b = hooks.job.sigmoid_bias;
    for (int r = 0; r < group.rows; ++r) {
      factor[r] = 1;
      float* row = s + r * kTile;
      for (int j = from; j < to; ++j) row[j] = row[j] * kLn2 + b;
      hooks.table.generic->tile(row + from, to - from, hooks.table.power, row + from, nullptr);
    }
  }

  static HWY_INLINE Weighed gradient(const RowGradient& row, int, Vec x, Vec dp) {
    const Tag d;
    HWY_ALIGN float logits[kLanes], p[kLanes], slope[kLanes];
    hn::Store(hn::MulAdd(x, hn::Set(d, kLn2), hn::Set(d, row.hooks.job.sigmoid_bias)), d, logits);
    row.hooks.table.generic->tile(logits, kLanes, row.hooks.table.power, p, slope);
    const Vec hidden = hn::Load(d, slope);
    return {hn::Load(d, p), hn::IfThenZeroElse(hn::Eq(hidden, hn::Zero(d)), hn::Mul(hidden, dp))};
  }
};

// Calls f with the struct of a weight.
template <class F>
HWY_INLINE void with_variant(Weight weight, F&& f) {
  switch (weight) {
#define HEED_ATTEND_VARIANT(Name, text, normalised) \
  case Weight::k##Name:                             \
    return f(Name{});
#include "kernel/attend/variants.inc"
#undef HEED_ATTEND_VARIANT
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace heed::kernel::attend
HWY_AFTER_NAMESPACE();
#endif  // HEED_VECTOR_TARGET

#endif  // HEED_KERNEL_ATTEND_VARIANTS_INL_H_
