/* A pool of threads for Heed's kernels, for programs that have none of their own. */
#ifndef HEED_PARALLEL_H_
#define HEED_PARALLEL_H_

#include <stdint.h>

#include "heed/view.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A pool of `threads` threads, the caller of a kernel among them; NULL if it cannot be had. One
 * kernel runs on it at a time, further callers wait. */
heed_parallel* heed_thread_pool_create(int32_t threads);

/* Ends the threads. No kernel may be running. NULL is allowed. */
void heed_thread_pool_destroy(heed_parallel* pool);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* HEED_PARALLEL_H_ */
