/* Memories that are trained while they are read, on the CPU, for programs in C and C++: Titans' and
 * TTT-linear's. Per sequence and head a linear map M (K x V), with a bias if asked for, learns to
 * answer v_j when asked k_j; the gradients dz_j of a chunk are taken at the memory M* of its start:
 *
 *   z_j = k_j M*,  dz_j = 2 (z_j - v_j), or with `norm` the gradient of 1/2 |LN(z_j) - v_j|^2
 *   Z_i = eta_i Z_{i-1} - theta_i k_i^T dz_i,  R_i = (1 - alpha_i) R_{i-1} + Z_i
 *   out_i = scale q_i M_i,  M_i = R_i or with a gain M* + gain_i (R_i - M*)
 *
 * heed_run (heed/backend.h) says which pass: forward, backward, or a step of one token a sequence,
 * which updates the initial states in place (final states are then the same memory, or absent). A
 * call that is given initial_position may begin and end inside a chunk. Token tensors (q, k, v,
 * out) are float32, bfloat16 or float16, all the same; everything else is float32. Strides are free
 * but for the last dimension, states are contiguous, outputs that are not given are not written.
 * Gradients go where `grads` says: those of outputs come in (absent: zero), the others come out,
 * float32 and contiguous (absent: not wanted); grads is NULL in the other passes. No call throws;
 * each returns a status, and writes what was wrong to run->message. */
#ifndef HEED_LEARN_H_
#define HEED_LEARN_H_

#include <stdint.h>

#include "heed/backend.h"
#include "heed/view.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct heed_learn_tensors {
  heed_view q, k;                 /* [B,T,H,K] */
  heed_view v;                    /* [B,T,H,V] */
  heed_view alpha, eta, theta;    /* [B,T,H], optional: 0, no momentum, 1 */
  heed_view gain;                 /* [B,T,H], optional; not with alpha or eta */
  heed_view norm_weight;          /* [H,V], with norm */
  heed_view norm_bias;            /* [H,V], with norm */
  heed_view initial_state;        /* [N,H,K,V], optional: M*; N: B, or the sequences of a pack */
  heed_view initial_momentum;     /* [N,H,K,V], optional, with eta */
  heed_view initial_bias;         /* [N,H,V], optional, with bias */
  heed_view initial_running;      /* [N,H,K,V], with initial_position: R */
  heed_view initial_running_bias; /* [N,H,V], with initial_position and bias */
  heed_view initial_position;     /* [N], optional: tokens of the open chunk */
  heed_view out;                  /* [B,T,H,V] */
  heed_view final_state, final_momentum; /* [N,H,K,V] */
  heed_view final_bias;                  /* [N,H,V] */
  heed_view final_running;               /* [N,H,K,V] */
  heed_view final_running_bias;          /* [N,H,V] */
  heed_view final_position;              /* [N] */
} heed_learn_tensors;

typedef struct heed_learn_options {
  double scale, eps; /* of q; of the norm */
  int64_t chunk;     /* tokens whose gradients are taken at one memory */
  int64_t norm;      /* 1: the loss lies behind a layer norm */
  int64_t bias;      /* 1: the memory has a bias; not with eta */
} heed_learn_options;

/* scale 1, eps 1e-6, chunk 1, neither norm nor bias. A call whose options are NULL has these. */
void heed_learn_options_init(heed_learn_options* options);

heed_status heed_learn(const heed_learn_tensors* tensors, const heed_learn_tensors* grads,
                       const heed_learn_options* options, const heed_run* run);

/* Bytes of run->workspace for the pass and threads of `run`; -1 for wrong arguments. */
int64_t heed_learn_workspace(const heed_learn_tensors* tensors, const heed_learn_tensors* grads,
                             const heed_learn_options* options, const heed_run* run);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* HEED_LEARN_H_ */
