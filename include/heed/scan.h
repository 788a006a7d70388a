/* Matrix-state recurrences on the CPU, for programs in C and C++: linear attention, RetNet, GLA,
 * Mamba-2, RWKV-6, DeltaNet, Gated DeltaNet, general diagonal-plus-low-rank.
 *
 * Per sequence and head, with the state S (Dk x Dv) and a_t = exp(log_decay_t):
 *   S_t = diag(a_t) S_{t-1} + p_t^T (r_t S_{t-1}) + k_t^T v_t
 *   read after:   out_t = scale q_t S_t
 *   read before:  out_t = scale q_t (S_{t-1} + diag(bonus) k_t^T v_t)
 * The delta rule is S' = diag(a_t) S_{t-1},  S_t = S' + beta_t k_t^T (v_t - k_t S').
 *
 * heed_run (heed/backend.h) says which pass: forward, backward, or a step of one token a sequence,
 * with the state updated in place. q, k, v, p, r and out are float32, bfloat16 or float16, all the
 * same; everything else is float32. Strides are free (0 shares an input between heads) but for the
 * last dimension, states are contiguous. Gradients go where `grads` says: those of `out` and
 * `final_state` come in (absent: zero), the others come out, float32 and contiguous (absent: not
 * wanted); grads is NULL in the other passes. No call throws; each returns a status, and writes
 * what was wrong to run->message. */
#ifndef HEED_SCAN_H_
#define HEED_SCAN_H_

#include <stdint.h>

#include "heed/backend.h"
#include "heed/view.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct heed_scan_options {
  double scale;
  int64_t read_before; /* 0 or 1 */
  int64_t chunk;       /* tokens handled at once, 1 to 1024; changes rounding only */
} heed_scan_options;

/* Scale 1, read after, chunk 64: what options NULL means too. */
void heed_scan_options_init(heed_scan_options* options);

typedef struct heed_scan_tensors {
  heed_view q, k;      /* [B,T,H,K] */
  heed_view v;         /* [B,T,H,V] */
  heed_view p, r;      /* [B,T,H,K], both or none */
  heed_view beta;      /* [B,T,H], optional, the delta rule: not with p and r */
  heed_view log_decay; /* [B,T,H,K], [B,T,H] or [H], optional; at most 0, -inf forgets everything */
  heed_view bonus;     /* [H,K], optional, read_before only */
  heed_view initial_state; /* [N,H,K,V], optional: zero; N: B, or the sequences of a pack */
  heed_view out;           /* [B,T,H,V] */
  heed_view final_state;   /* [N,H,K,V], optional; may be the memory of initial_state */
} heed_scan_tensors;

heed_status heed_scan(const heed_scan_tensors* tensors, const heed_scan_tensors* grads,
                      const heed_scan_options* options, const heed_run* run);

/* Bytes of run->workspace for the pass and threads of `run`; -1 for wrong arguments. */
int64_t heed_scan_workspace(const heed_scan_tensors* tensors, const heed_scan_tensors* grads,
                            const heed_scan_options* options, const heed_run* run);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* HEED_SCAN_H_ */
