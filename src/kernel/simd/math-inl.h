// Elementary functions of float32 vectors, with Highway, compiled once a target.
#include <cstdint>

#if defined(HEED_KERNEL_SIMD_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_KERNEL_SIMD_MATH_INL_H_
#undef HEED_KERNEL_SIMD_MATH_INL_H_
#else
#define HEED_KERNEL_SIMD_MATH_INL_H_
#endif

#include <hwy/highway.h>

#include "kernel/simd_targets.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
constexpr int64_t kLanes = hn::MaxLanes(DF());

// x 2^n for a whole n, at least -127 (there it may be 0) but on AVX-512, which takes any.
HWY_INLINE VF times_power_of_two(VF x, VF n) {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  return VF{_mm512_scalef_ps(x.raw, n.raw)};
#else
  const DF d;
  const hn::RebindToSigned<DF> di;
  const auto biased = hn::Add(n, hn::Set(d, 12582912.0f + 127.0f));
  return hn::Mul(x, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, biased))));
#endif
}

// exp(x) = hi + lo for x <= 0, with hi a power of two (exact) and lo rounded once; 0 below -87.
struct TwoFloats {
  VF hi, lo;
};
HWY_INLINE TwoFloats exp_two(VF x) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  // The second argument of Max is the one that lets NaN through on x86.
  const VF n = hn::Round(hn::Mul(hn::Max(hn::Set(d, -88.0f), x), hn::Set(d, 1.44269504f)));
  VF r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  VF y = hn::Set(d, 1.9875691500e-4f);  // exp(r) - 1 - r - r^2/2 ... (Cephes expf)
  y = hn::MulAdd(y, r, hn::Set(d, 1.3981999507e-3f));
  y = hn::MulAdd(y, r, hn::Set(d, 8.3334519073e-3f));
  y = hn::MulAdd(y, r, hn::Set(d, 4.1665795894e-2f));
  y = hn::MulAdd(y, r, hn::Set(d, 1.6666665459e-1f));
  y = hn::MulAdd(y, r, hn::Set(d, 5.0000001201e-1f));
  y = hn::MulAdd(hn::Mul(r, r), y, r);
  const auto small = hn::Lt(x, hn::Set(d, -87.0f));
  const auto bits = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  const VF hi = hn::IfThenZeroElse(small, hn::BitCast(d, bits));
  return {hi, hn::IfThenZeroElse(small, hn::Mul(hi, y))};
}
HWY_INLINE VF exp_of(VF x) {
  const TwoFloats e = exp_two(x);
  return hn::Add(e.hi, e.lo);
}

// log(x) for normal x > 0, relative error below 2e-7 away from 1 and absolute near it (Cephes
// logf).
HWY_INLINE VF log_of(VF x) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  // x = m 2^e with m in [sqrt(1/2), sqrt(2)).
  const auto bits = hn::BitCast(di, x);
  const auto e = hn::ShiftRight<23>(hn::Sub(bits, hn::Set(di, 0x3f3504f3)));
  const VF m = hn::BitCast(d, hn::Sub(bits, hn::ShiftLeft<23>(e)));
  const VF f = hn::Sub(m, hn::Set(d, 1.0f)), n = hn::ConvertTo(d, e);
  VF y = hn::Set(d, 7.0376836292e-2f);
  y = hn::MulAdd(y, f, hn::Set(d, -1.1514610310e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, 1.1676998740e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, -1.2420140846e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, 1.4249322787e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, -1.6668057665e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, 2.0000714765e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, -2.4999993993e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, 3.3333331174e-1f));
  const VF f2 = hn::Mul(f, f);
  y = hn::Mul(hn::Mul(y, f), f2);
  y = hn::MulAdd(n, hn::Set(d, -2.12194440e-4f), y);
  y = hn::NegMulAdd(hn::Set(d, 0.5f), f2, y);
  return hn::MulAdd(n, hn::Set(d, 0.693359375f), hn::Add(f, y));
}

// 1 / (1 + exp(-x)), from exp of -|x|, which never overflows.
HWY_INLINE VF sigmoid_of(VF x) {
  const DF d;
  const VF one = hn::Set(d, 1.0f), e = exp_of(hn::Neg(hn::Abs(x)));
  const VF small = hn::Div(e, hn::Add(one, e));  // sigmoid(-|x|)
  return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), small, hn::Div(one, hn::Add(one, e)));
}

// log(1 + x) for 0 <= x <= 1: log(u) x / (u - 1) with u = 1 + x rounded (Goldberg, theorem 4).
HWY_INLINE VF log1p_of(VF x) {
  const DF d;
  const VF one = hn::Set(d, 1.0f), u = hn::Add(one, x), rest = hn::Sub(u, one);
  const auto tiny = hn::Eq(rest, hn::Zero(d));
  const VF y = hn::Mul(log_of(u), hn::Div(x, hn::IfThenElse(tiny, one, rest)));
  return hn::IfThenElse(tiny, x, y);
}

// log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)).
HWY_INLINE VF softplus_of(VF x) {
  const DF d;
  return hn::Add(hn::Max(hn::Zero(d), x), log1p_of(exp_of(hn::Neg(hn::Abs(x)))));
}

// tanh(x): an odd polynomial near 0 (Cephes tanhf), (1 - e) / (1 + e) with e = exp(-2|x|)
// elsewhere.
HWY_INLINE VF tanh_of(VF x) {
  const DF d;
  const VF one = hn::Set(d, 1.0f), a = hn::Abs(x), s = hn::Mul(x, x);
  const VF e = exp_of(hn::Mul(hn::Set(d, -2.0f), a));
  const VF big = hn::CopySign(hn::Div(hn::Sub(one, e), hn::Add(one, e)), x);
  VF y = hn::Set(d, -5.70498872745e-3f);
  y = hn::MulAdd(y, s, hn::Set(d, 2.06390887954e-2f));
  y = hn::MulAdd(y, s, hn::Set(d, -5.37397155531e-2f));
  y = hn::MulAdd(y, s, hn::Set(d, 1.33314422036e-1f));
  y = hn::MulAdd(y, s, hn::Set(d, -3.33332819422e-1f));
  const VF small = hn::MulAdd(hn::Mul(y, s), x, x);
  return hn::IfThenElse(hn::Lt(a, hn::Set(d, 0.625f)), small, big);
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HEED_KERNEL_SIMD_MATH_INL_H_
