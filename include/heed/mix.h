/* Short convolutions over tokens on the CPU, for programs in C and C++: depthwise, causal with a
 * state or reaching ahead, with one kernel a channel or one a token. For every channel c of head h
 * (c div (C / H)):
 *
 *   y_t[c] = bias[c] + sum_{i<L} w[i] x_{t+i-(L-1)+ahead}[c],  w = weight[c] or weight_t[h]
 *   out_t  = y_t, or with `silu` y_t sigmoid(y_t)
 *
 * With ahead = 0 tokens before the first are those of initial_state (the last L-1 inputs of what
 * came before, oldest first; absent: zero), and final_state is the same for what comes after. With
 * ahead > 0 there are no states, and tokens beyond either end are zero; (L-1)/2 is centred.
 *
 * heed_run (heed/backend.h) says which pass: forward, backward, or a step of one token a sequence,
 * whose final state may be the memory of its initial one. Token tensors (x, out) are float32,
 * bfloat16 or float16, both the same; everything else is float32. Strides are free but for the last
 * dimension, states are contiguous, outputs that are not given are not written. Gradients go where
 * `grads` says: those of outputs come in (absent: zero), the others come out, float32 and
 * contiguous (absent: not wanted); grads is NULL in the other passes. No call throws; each returns
 * a status, and writes what was wrong to run->message. */
#ifndef HEED_MIX_H_
#define HEED_MIX_H_

#include <stdint.h>

#include "heed/backend.h"
#include "heed/view.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct heed_short_conv_tensors {
  heed_view x;             /* [B,T,C] */
  heed_view weight;        /* [C,L], or one kernel a token and head [B,T,H,L]; C a multiple of H */
  heed_view bias;          /* [C], optional */
  heed_view initial_state; /* [N,L-1,C], optional; N: B, or the sequences of a pack */
  heed_view out;           /* [B,T,C] */
  heed_view final_state;   /* [N,L-1,C] */
} heed_short_conv_tensors;

typedef struct heed_short_conv_options {
  int64_t ahead; /* 0 to L-1: tokens after the current one that are read */
  int64_t silu;  /* 1: the output goes through x sigmoid(x) */
} heed_short_conv_options;

/* ahead 0, no silu. A call whose options are NULL has these. */
void heed_short_conv_options_init(heed_short_conv_options* options);

heed_status heed_short_conv(const heed_short_conv_tensors* tensors,
                            const heed_short_conv_tensors* grads,
                            const heed_short_conv_options* options, const heed_run* run);

/* Bytes of run->workspace for the pass and threads of `run`; -1 for wrong arguments. */
int64_t heed_short_conv_workspace(const heed_short_conv_tensors* tensors,
                                  const heed_short_conv_tensors* grads,
                                  const heed_short_conv_options* options, const heed_run* run);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* HEED_MIX_H_ */
