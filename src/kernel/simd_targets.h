// Which of Highway's targets the kernels are compiled for. Include before any Highway header.
// x86-64: AVX2 and AVX-512; Arm: NEON (the kernels keep vectors in arrays, which the sizeless types
// of SVE do not allow). Highway always adds its scalar fallback, for which kernels run their
// reference.
#pragma once

#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)

// Inside HWY_NAMESPACE: whether this target has vectors.
#define HEED_VECTOR_TARGET (HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128)
