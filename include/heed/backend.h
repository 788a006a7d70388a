/* What one implementation of an engine offers: rows of a table that the CPU kernels fill today and
 * the CUDA plugin adds to. Plain C, so that a row can come from a library of another compiler. */
#ifndef HEED_BACKEND_H_
#define HEED_BACKEND_H_

#include <stdint.h>

#include "heed/view.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One line that says what was wrong. */
typedef struct heed_message {
  char text[256];
} heed_message;

/* STEP: one token a sequence (T = 1); the final states may be the memory of the initial ones. */
typedef enum heed_pass { HEED_FORWARD = 0, HEED_BACKWARD = 1, HEED_STEP = 2 } heed_pass;

/* How the call of every engine begins; its options, its tensors and their gradients follow, at the
 * offsets that its list of fields names (src/kernel/call/fields.h). */
typedef struct heed_call {
  uint32_t struct_size; /* of the whole call */
  int32_t reserved;     /* 0 */
  /* Packs: sequences + 1 offsets, in the memory of the CPU; then B = 1. NULL: B sequences. */
  const int64_t* cu_seqlens;
  int64_t sequences;
  /* What FORWARD keeps for BACKWARD, of the bytes that `saved` of the backend asked for; NULL in
   * FORWARD: nothing is kept, NULL in BACKWARD: it is computed again. */
  void* saved;
} heed_call;

typedef struct heed_backend {
  uint32_t struct_size;
  const char* engine;
  const char* name;
  int32_t device;   /* heed_device */
  int32_t priority; /* the highest that does not refuse runs */
  /* NULL: it takes the call; else the reason, a string that stays valid. The call is valid. */
  const char* (*refuses)(const void* call, int32_t pass);
  /* Bytes of workspace for `threads` threads; 0: none. */
  int64_t (*workspace)(const void* call, int32_t pass, int32_t threads);
  /* Bytes that forward keeps for backward; 0: none. NULL: none ever. */
  int64_t (*saved)(const void* call);
  heed_status (*run)(const void* call, int32_t pass, void* workspace, void* stream,
                     const heed_parallel* parallel, heed_message* message);
} heed_backend;

/* How the entry points of the engines are called from C (heed/ewscan.h and others): set struct_size
 * to sizeof(heed_run), and what is needed of the rest; zero is a sensible value everywhere. */
typedef struct heed_run {
  uint32_t struct_size;
  int32_t pass;                  /* heed_pass */
  const heed_parallel* parallel; /* NULL: one thread */
  const int64_t* cu_seqlens;     /* packs: sequences + 1 offsets, then B = 1; NULL: none */
  int64_t sequences;
  void* saved;     /* FORWARD writes it, BACKWARD reads it; NULL: BACKWARD computes it again */
  void* workspace; /* NULL: the call allocates and frees it */
  int64_t workspace_bytes;
  char*
      message; /* what was wrong, at most message_size bytes with the closing zero; NULL: nowhere */
  int64_t message_size;
} heed_run;

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* HEED_BACKEND_H_ */
