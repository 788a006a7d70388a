/* Pooled reads on the CPU, for programs in C and C++: linear attention that is not causal. All keys
 * and values of a sequence are summed once, every query reads the sums; with c = scale (by_count:
 * scale over the number of keys n), w = key_weight and r = row_scale (1 where absent):
 *
 *   S = sum_j w_j k_j^T v_j,  d_i = c q_i . sum_j w_j k_j,  D_i = d_i + eps (clamp: max(d_i, eps))
 *   out_i = r_i ((a0 + a1 / D_i) c q_i S + (b0 + b1 d_i) mean(v))
 *
 * q, k are features. Token tensors (q, k, v, out) are float32, bfloat16 or float16, all the same,
 * the weights float32; strides are free but for the last dimension. heed_run (heed/backend.h) says
 * which pass: forward or backward. Gradients go where `grads` says: that of `out` comes in, the
 * others come out, float32 and contiguous (absent: not wanted); grads is NULL in forward. No call
 * throws; each returns a status, and writes what was wrong to run->message. */
#ifndef HEED_POOL_H_
#define HEED_POOL_H_

#include <stdint.h>

#include "heed/backend.h"
#include "heed/view.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct heed_pool_tensors {
  heed_view q;          /* [B,T,H,M] */
  heed_view k;          /* [B,S,J,M], H a multiple of J */
  heed_view v;          /* [B,S,J,V] */
  heed_view key_weight; /* [B,S,J], optional */
  heed_view row_scale;  /* [B,T,H], optional */
  heed_view out;        /* [B,T,H,V] */
} heed_pool_tensors;

typedef struct heed_pool_options {
  double scale, a0, a1, b0, b1, eps;
  int64_t by_count, clamp; /* 1 or 0 */
} heed_pool_options;

/* scale 1, a0 1, all else 0: out = q S. Normalised linear attention has a0 = 0, a1 = 1. A call
 * whose options are NULL has the former. */
void heed_pool_options_init(heed_pool_options* options);

/* Packs (run->cu_seqlens) need as many keys as queries. */
heed_status heed_pool(const heed_pool_tensors* tensors, const heed_pool_tensors* grads,
                      const heed_pool_options* options, const heed_run* run);

/* Bytes of run->workspace for the pass and threads of `run`; -1 for wrong arguments. */
int64_t heed_pool_workspace(const heed_pool_tensors* tensors, const heed_pool_tensors* grads,
                            const heed_pool_options* options, const heed_run* run);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* HEED_POOL_H_ */
