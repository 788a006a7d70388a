/* Element-wise scans on the CPU, for programs in C and C++: a decaying sum per channel (real or
 * complex), Mamba's selective scan, and the running softmax average of Aaren.
 *
 *   heed_ewscan           h_t = a_t . h_{t-1} + x_t,  a = exp(log_decay), times `turn` if given
 *   heed_selective_scan   h_t = exp(d_t A) h_{t-1} + d_t x_t B_t
 *                         out_t = (h_t C_t + D x_t) silu(z_t)
 *   heed_lse_scan         out_t = sum_{j<=t} softmax(score_j + decays after j) v_j
 *
 * heed_run (heed/backend.h) says which pass: forward, backward, or a step of one token a sequence.
 * Token tensors (x, B, C, z, v, out) are float32, bfloat16 or float16, all the same; everything
 * else is float32. Strides are free but for the last dimension, states are contiguous, outputs that
 * are not given are not written. Gradients go where `grads` says: that of `out` and of the final
 * states comes in (absent: zero), the others come out, float32 and contiguous (absent: not wanted);
 * grads is NULL in the other passes. No call throws; each returns a status, and writes what was
 * wrong to run->message. */
#ifndef HEED_EWSCAN_H_
#define HEED_EWSCAN_H_

#include <stdint.h>

#include "heed/backend.h"
#include "heed/view.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct heed_ewscan_tensors {
  heed_view log_decay;     /* [B,T,C] or [C], at most 0 */
  heed_view x;             /* [B,T,C], complex: [B,T,C,2] */
  heed_view turn;          /* [B,T,C,2] or [C,2], optional */
  heed_view initial_state; /* [N,C] or [N,C,2], optional; N: B, or the sequences of a pack */
  heed_view out;           /* as x */
  heed_view final_state;   /* as initial_state */
} heed_ewscan_tensors;

typedef struct heed_selective_scan_tensors {
  heed_view x;             /* [B,T,C] */
  heed_view dt;            /* [B,T,C] */
  heed_view A;             /* [C,K] */
  heed_view B;             /* [B,T,G,K] */
  heed_view C;             /* [B,T,G,K] */
  heed_view D;             /* [C], optional */
  heed_view z;             /* [B,T,C], optional */
  heed_view dt_bias;       /* [C], optional */
  heed_view initial_state; /* [N,C,K], optional */
  heed_view out;           /* [B,T,C] */
  heed_view final_state;   /* [N,C,K] */
} heed_selective_scan_tensors;

typedef struct heed_selective_scan_options {
  int64_t dt_softplus; /* 1: dt + dt_bias goes through softplus */
} heed_selective_scan_options;

/* No softplus. A call whose options are NULL has these. */
void heed_selective_scan_options_init(heed_selective_scan_options* options);

typedef struct heed_lse_scan_tensors {
  heed_view score;     /* [B,T,H] */
  heed_view v;         /* [B,T,H,V] */
  heed_view log_decay; /* [B,T,H] or [H], optional */
  heed_view initial_m; /* [N,H]; the three states come together */
  heed_view initial_u; /* [N,H,V] */
  heed_view initial_w; /* [N,H] */
  heed_view out;       /* [B,T,H,V] */
  heed_view final_m;   /* [N,H] */
  heed_view final_u;   /* [N,H,V] */
  heed_view final_w;   /* [N,H] */
} heed_lse_scan_tensors;

heed_status heed_ewscan(const heed_ewscan_tensors* tensors, const heed_ewscan_tensors* grads,
                        const heed_run* run);
heed_status heed_selective_scan(const heed_selective_scan_tensors* tensors,
                                const heed_selective_scan_tensors* grads,
                                const heed_selective_scan_options* options, const heed_run* run);
heed_status heed_lse_scan(const heed_lse_scan_tensors* tensors, const heed_lse_scan_tensors* grads,
                          const heed_run* run);

/* Bytes of run->workspace for the pass and threads of `run`; -1 for wrong arguments. */
int64_t heed_ewscan_workspace(const heed_ewscan_tensors* tensors, const heed_ewscan_tensors* grads,
                              const heed_run* run);
int64_t heed_selective_scan_workspace(const heed_selective_scan_tensors* tensors,
                                      const heed_selective_scan_tensors* grads,
                                      const heed_selective_scan_options* options,
                                      const heed_run* run);
int64_t heed_lse_scan_workspace(const heed_lse_scan_tensors* tensors,
                                const heed_lse_scan_tensors* grads, const heed_run* run);

/* Bytes of run->saved, which spares the backward pass a forward one; -1 for wrong arguments. */
int64_t heed_ewscan_saved(const heed_ewscan_tensors* tensors, const heed_run* run);
int64_t heed_selective_scan_saved(const heed_selective_scan_tensors* tensors,
                                  const heed_selective_scan_options* options, const heed_run* run);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* HEED_EWSCAN_H_ */
