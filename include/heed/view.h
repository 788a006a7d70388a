/* Views of tensors, and the way kernels are given threads: the C side of Heed's kernels.
 * A view owns nothing. Strides count elements, not bytes. */
#ifndef HEED_VIEW_H_
#define HEED_VIEW_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum heed_dtype {
  HEED_FLOAT32 = 0,
  HEED_BFLOAT16 = 1,
  HEED_FLOAT16 = 2,
  HEED_FLOAT64 = 3,
  HEED_INT64 = 4,
  HEED_INT32 = 5,
  HEED_UINT8 = 6
} heed_dtype;

typedef enum heed_device { HEED_CPU = 0, HEED_CUDA = 1 } heed_device;

enum { HEED_MAX_RANK = 5 };

/* data == NULL means "not given" for an optional tensor. */
typedef struct heed_view {
  void* data;
  int32_t dtype;  /* heed_dtype */
  int32_t device; /* heed_device */
  int32_t rank;   /* at most HEED_MAX_RANK */
  int64_t sizes[HEED_MAX_RANK];
  int64_t strides[HEED_MAX_RANK]; /* in elements */
} heed_view;

typedef enum heed_status {
  HEED_OK = 0,
  HEED_INVALID_ARGUMENT = 1, /* a shape, dtype or option that the call does not take */
  HEED_UNSUPPORTED = 2,      /* valid, but this build or processor has no kernel for it */
  HEED_OUT_OF_MEMORY = 3
} heed_status;

/* Runs task(i, context) for every i in [0, n), on any threads, in any order; returns when all are
 * done. `threads` is how many run at once at most: kernels split their work by it, and each task
 * gets the number of the worker it runs on (0 <= worker < threads) for its scratch memory.
 * A NULL heed_parallel means one thread. */
typedef void (*heed_task)(int64_t i, int32_t worker, void* context);
typedef struct heed_parallel {
  void (*run)(const struct heed_parallel* self, int64_t n, heed_task task, void* context);
  int32_t threads;
  void* data;
} heed_parallel;

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* HEED_VIEW_H_ */
