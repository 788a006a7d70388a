/* Pairwise attention on the CPU, for programs in C and C++: softmax or sigmoid attention over dense
 * tensors, packs of sequences, or a cache that is only partly filled. Forward for any number of
 * queries (one query a sequence is a decoding step: its keys are then split over all threads), and
 * backward.
 *
 *   x_ij  = cap(scale q_i.k_j) - slope_h |p_i - j| + key_bias_jh + q_bias_ih
 *                                                             cap(x) = c tanh(x / c) if c > 0
 *   out_i = sum_j exp(x_ij) v_j / sum_j exp(x_ij),   lse_i = ln sum_j exp(x_ij)      (softmax)
 *   out_i = sum_j sigmoid(x_ij + sigmoid_bias) v_j                                   (sigmoid)
 *
 * over the visible keys j of query i, which stands at position p_i = i + Tk - Tq: the last query
 * stands at the last key. Key j is visible when (not causal or j <= p_i) and (window == 0 or j <
 * sinks or (j > p_i - window and (causal or j < p_i + window))) and key_bias_jh > -inf. A query
 * that sees no key gets out = 0 and lse = -inf. Query head h reads key/value head h / (Hq / Hk).
 *
 * No call throws; every call returns a status and, where it is not HEED_OK, writes one line that
 * says what was wrong into `message` (NULL: nowhere), at most message_size bytes with the closing
 * zero.
 *
 * Memory: the calling thread keeps its scratch memory (a few hundred KB a thread of the call)
 * between forward calls, so that decoding allocates nothing big; heed_attend_release() frees it.
 * Backward allocates and frees. Several threads may call at the same time. Results are the same
 * bytes for the same arguments and the same number of threads. */
#ifndef HEED_ATTEND_H_
#define HEED_ATTEND_H_

#include <stddef.h>
#include <stdint.h>

#include "heed/view.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { HEED_ATTEND_VERSION = 2 };

typedef enum heed_attend_weight {
  HEED_ATTEND_SOFTMAX = 0,
  HEED_ATTEND_SIGMOID = 1
} heed_attend_weight;

typedef struct heed_attend_options {
  uint32_t version; /* HEED_ATTEND_VERSION */
  int32_t weight;   /* heed_attend_weight */
  int32_t causal;   /* 0 or 1 */
  int64_t window;   /* 0: off */
  int64_t sinks;    /* first keys that a window does not hide */
  float scale;      /* 0: 1/sqrt(D) */
  float soft_cap;   /* 0: off */
  float sigmoid_bias;
  int32_t default_sigmoid_bias; /* 1: -ln(keys of the sequence) in place of sigmoid_bias */
} heed_attend_options;

/* Softmax, causal, no window, default scale, no cap, default sigmoid bias. */
void heed_attend_options_init(heed_attend_options* options);

/* Strides are free, the last dimension of q, k, v and out is contiguous. D and Dv are at least 1.
 * Packs: cu_seqlens_q and cu_seqlens_k hold `sequences` + 1 offsets (from 0, never falling, to Tq
 * and Tk) and B is 1; positions count inside each sequence. A partly filled cache: kv_lengths holds
 * the number of keys of each of the B sequences, in place of Tk. */
typedef struct heed_attend_tensors {
  heed_view q;            /* [B,Tq,Hq,D], float32, bfloat16 or float16 */
  heed_view k;            /* [B,Tk,Hk,D], float32, bfloat16 or float16 (need not be q's) */
  heed_view v;            /* [B,Tk,Hk,Dv], dtype of k */
  heed_view out;          /* [B,Tq,Hq,Dv], dtype of q */
  heed_view lse;          /* [B,Tq,Hq] float32; optional in a forward call */
  heed_view key_bias;     /* [B,Tk,Hq] float32, optional */
  heed_view q_bias;       /* [B,Tq,Hq] float32, finite, optional */
  heed_view alibi_slopes; /* [Hq] float32, contiguous, optional */
  const int64_t* cu_seqlens_q;
  const int64_t* cu_seqlens_k;
  int64_t sequences;
  const int64_t* kv_lengths; /* [B], optional */
} heed_attend_tensors;

/* Writes out and, if given, lse. parallel NULL: one thread (heed/parallel.h makes a pool). */
heed_status heed_attend_forward(const heed_attend_tensors* tensors,
                                const heed_attend_options* options, const heed_parallel* parallel,
                                char* message, size_t message_size);

/* Gradients are ADDED to what the tensors hold, all but the inputs grad_out and grad_lse; float32
 * and contiguous in the shape of what they belong to; a tensor whose data is NULL is left out. */
typedef struct heed_attend_gradients {
  heed_view grad_out; /* an input: shape and dtype of out, last dimension contiguous */
  heed_view grad_q, grad_k, grad_v;
  heed_view grad_lse;          /* an input, [B,Tq,Hq] float32, any strides; softmax only */
  heed_view grad_key_bias;     /* [B,Tk,Hq] */
  heed_view grad_q_bias;       /* [B,Tq,Hq] */
  heed_view grad_alibi_slopes; /* [Hq] */
} heed_attend_gradients;

/* `tensors` with out and (softmax) lse as heed_attend_forward wrote them. */
heed_status heed_attend_backward(const heed_attend_tensors* tensors,
                                 const heed_attend_gradients* gradients,
                                 const heed_attend_options* options, const heed_parallel* parallel,
                                 char* message, size_t message_size);

/* Frees the scratch memory that forward calls of this thread keep. */
void heed_attend_release(void);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* HEED_ATTEND_H_ */
