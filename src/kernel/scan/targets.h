// Which instruction sets the engine is compiled for: AVX2, AVX-512 and the baseline. Include before
// hwy/foreach_target.h; three copies keep the build short.
#pragma once

#include <hwy/detect_targets.h>

#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
// The baseline of x86-64 is Highway's portable code there; -march flags raise it.
