/* Matrix-state recurrences on the CPU, for programs in C and C++: linear attention, RetNet, GLA,
 * Mamba-2, RWKV-6, DeltaNet, Gated DeltaNet, general diagonal-plus-low-rank.
 *
 * Per sequence and head, with the state S (Dk x Dv) and a_t = exp(log_decay_t):
 *   S_t = diag(a_t) S_{t-1} + p_t^T (r_t S_{t-1}) + k_t^T v_t
 *   read after:   out_t = scale q_t S_t
 *   read before:  out_t = scale q_t (S_{t-1} + diag(bonus) k_t^T v_t)
 * The delta rule is S' = diag(a_t) S_{t-1},  S_t = S' + beta_t k_t^T (v_t - k_t S').
 *
 * No call throws; every call returns a status and, where it is not HEED_OK, writes one line that
 * says what was wrong into `message` (NULL: nowhere), at most message_size bytes with the closing
 * zero. */
#ifndef HEED_SCAN_H_
#define HEED_SCAN_H_

#include <stddef.h>
#include <stdint.h>

#include "heed/view.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { HEED_SCAN_VERSION = 1 };

typedef enum heed_scan_decay {
  HEED_DECAY_NONE = 0,
  HEED_DECAY_HEAD = 1,   /* log_decay [H] */
  HEED_DECAY_TOKEN = 2,  /* log_decay [B,T,H] */
  HEED_DECAY_CHANNEL = 3 /* log_decay [B,T,H,Dk] */
} heed_scan_decay;

typedef enum heed_scan_correction {
  HEED_CORRECTION_NONE = 0,
  HEED_CORRECTION_DELTA = 1,  /* beta */
  HEED_CORRECTION_GENERAL = 2 /* p, r */
} heed_scan_correction;

typedef enum heed_scan_read { HEED_READ_AFTER = 0, HEED_READ_BEFORE = 1 } heed_scan_read;

typedef struct heed_scan_options {
  uint32_t version;   /* HEED_SCAN_VERSION */
  int32_t decay;      /* heed_scan_decay */
  int32_t correction; /* heed_scan_correction */
  int32_t read;       /* heed_scan_read */
  float scale;
  int32_t chunk; /* tokens handled at once, at least 1; changes rounding only */
} heed_scan_options;

/* No decay, no correction, read after, scale 1, chunk 64. */
void heed_scan_options_init(heed_scan_options* options);

/* q, k, p, r [B,T,H,Dk], v and out [B,T,H,Dv], in one of float32, bfloat16, float16; all other
 * tensors are float32. Strides are free (0 shares an input between heads), the last dimension is
 * contiguous. Packs: cu_seqlens holds `sequences` + 1 offsets, B is 1 and states are
 * [sequences,H,Dk,Dv]. final_state may be the memory of initial_state. */
typedef struct heed_scan_tensors {
  heed_view q, k, v;
  heed_view p, r;          /* correction GENERAL */
  heed_view beta;          /* [B,T,H], correction DELTA */
  heed_view log_decay;     /* by decay; at most 0, -inf forgets everything */
  heed_view bonus;         /* [H,Dk], read BEFORE, optional */
  heed_view initial_state; /* [B,H,Dk,Dv], optional: zero */
  heed_view out;
  heed_view final_state; /* optional */
  const int64_t* cu_seqlens;
  int64_t sequences;
} heed_scan_tensors;

/* Bytes of workspace for heed_scan_forward (step = 0) or heed_scan_step (step = 1) with `threads`
 * threads; -1 for wrong arguments. */
int64_t heed_scan_workspace(const heed_scan_tensors* tensors, const heed_scan_options* options,
                            int32_t threads, int32_t step, char* message, size_t message_size);

/* Whole sequences. workspace NULL: the call allocates. parallel NULL: one thread. */
heed_status heed_scan_forward(const heed_scan_tensors* tensors, const heed_scan_options* options,
                              const heed_parallel* parallel, void* workspace,
                              int64_t workspace_bytes, char* message, size_t message_size);

/* One token a sequence (T = 1). */
heed_status heed_scan_step(const heed_scan_tensors* tensors, const heed_scan_options* options,
                           const heed_parallel* parallel, void* workspace, int64_t workspace_bytes,
                           char* message, size_t message_size);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* HEED_SCAN_H_ */
