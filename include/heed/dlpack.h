/* DLPack in and out: tensors of PyTorch, NumPy, JAX and others as heed_view, and views as tensors
 * of theirs, without a copy (https://dmlc.github.io/dlpack; the ABI of DLManagedTensor, which has
 * been the same since version 0.2, and which capsules named "dltensor" hold).
 *
 * Ownership. heed_view_from_dlpack() borrows: the view is valid until the tensor's owner calls its
 * deleter, which stays the owner's to do, once. heed_view_to_dlpack() gives away: whoever gets the
 * tensor calls its deleter, once, which calls `release(owner)`; until then the data must stay. */
#ifndef HEED_DLPACK_H_
#define HEED_DLPACK_H_

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "heed/view.h"

#ifdef __cplusplus
extern "C" {
#endif

/* DLPack's structs, field for field, under names of our own, so that dlpack.h may be included too.
 */
typedef struct heed_dl_device {
  int32_t type; /* 1 CPU, 2 CUDA, 3 CPU memory pinned for CUDA, 13 CUDA managed */
  int32_t id;
} heed_dl_device;

typedef struct heed_dl_dtype {
  uint8_t code; /* 0 int, 1 uint, 2 float, 4 bfloat */
  uint8_t bits;
  uint16_t lanes;
} heed_dl_dtype;

typedef struct heed_dl_tensor {
  void* data;
  heed_dl_device device;
  int32_t rank;
  heed_dl_dtype dtype;
  int64_t* sizes;
  int64_t* strides; /* in elements; NULL: row by row without gaps */
  uint64_t byte_offset;
} heed_dl_tensor;

typedef struct heed_dl_managed {
  heed_dl_tensor tensor;
  void* context;
  void (*deleter)(struct heed_dl_managed* self);
} heed_dl_managed;

static inline heed_status heed_dl_refuse(heed_status status, char* message, size_t message_size,
                                         const char* format, int64_t value) {
  if (message != NULL && message_size > 0) {
    snprintf(message, message_size, format, (long long)value);
  }
  return status;
}

/* The view of a tensor: DLManagedTensor* and DLTensor* alike (the first begins with the second).
 * HEED_INVALID_ARGUMENT for a rank above HEED_MAX_RANK, sizes below 0, and no data for a tensor
 * that is not empty; HEED_UNSUPPORTED for dtypes and devices that heed_view has no word for, and
 * for CUDA devices but the first. `message` as in heed/attend.h: NULL for none, else at most
 * message_size bytes with the closing zero. *out is written only where HEED_OK comes back. */
static inline heed_status heed_view_from_dlpack(const void* dlpack, heed_view* out, char* message,
                                                size_t message_size) {
  const heed_dl_tensor* from = (const heed_dl_tensor*)dlpack;
  heed_view view;
  int64_t stride = 1;
  int empty = 0;
  int32_t i;
  if (from == NULL || out == NULL) {
    return heed_dl_refuse(HEED_INVALID_ARGUMENT, message, message_size,
                          "dlpack: no tensor or no view was given (%lld)", 0);
  }
  memset(&view, 0, sizeof view);
  if (from->rank < 0 || from->rank > HEED_MAX_RANK) {
    return heed_dl_refuse(HEED_INVALID_ARGUMENT, message, message_size,
                          "dlpack: rank %lld; views have 0 to 5 dimensions", from->rank);
  }
  if (from->dtype.lanes != 1) {
    return heed_dl_refuse(HEED_UNSUPPORTED, message, message_size,
                          "dlpack: elements of %lld lanes; only single numbers are taken",
                          from->dtype.lanes);
  }
  switch (from->dtype.code * 256 + from->dtype.bits) {
    case 2 * 256 + 32:
      view.dtype = HEED_FLOAT32;
      break;
    case 4 * 256 + 16:
      view.dtype = HEED_BFLOAT16;
      break;
    case 2 * 256 + 16:
      view.dtype = HEED_FLOAT16;
      break;
    case 2 * 256 + 64:
      view.dtype = HEED_FLOAT64;
      break;
    case 0 * 256 + 64:
      view.dtype = HEED_INT64;
      break;
    case 0 * 256 + 32:
      view.dtype = HEED_INT32;
      break;
    case 1 * 256 + 8:
      view.dtype = HEED_UINT8;
      break;
    default:
      return heed_dl_refuse(
          HEED_UNSUPPORTED, message, message_size,
          "dlpack: dtype of code and bits %lld (256 code + bits); taken are float "
          "16, 32, 64, bfloat 16, int 32, 64 and uint 8",
          from->dtype.code * 256 + from->dtype.bits);
  }
  switch (from->device.type) {
    case 1:
    case 3:
      view.device = HEED_CPU;
      break;
    case 2:
    case 13:
      view.device = HEED_CUDA;
      break;
    default:
      return heed_dl_refuse(HEED_UNSUPPORTED, message, message_size,
                            "dlpack: device type %lld; taken are CPU (1, 3) and CUDA (2, 13)",
                            from->device.type);
  }
  if (view.device == HEED_CUDA && from->device.id != 0) {
    return heed_dl_refuse(HEED_UNSUPPORTED, message, message_size,
                          "dlpack: CUDA device %lld; views are of the first", from->device.id);
  }
  view.rank = from->rank;
  for (i = view.rank - 1; i >= 0; --i) {
    view.sizes[i] = from->sizes[i];
    if (view.sizes[i] < 0) {
      return heed_dl_refuse(HEED_INVALID_ARGUMENT, message, message_size,
                            "dlpack: a size is %lld; sizes are not negative", view.sizes[i]);
    }
    view.strides[i] = from->strides != NULL ? from->strides[i] : stride;
    if (view.sizes[i] == 0) empty = 1;
    if (view.sizes[i] > 0 && stride > INT64_MAX / view.sizes[i]) {
      return heed_dl_refuse(HEED_INVALID_ARGUMENT, message, message_size,
                            "dlpack: more than 2^63 elements at a size of %lld", view.sizes[i]);
    }
    stride *= view.sizes[i] > 0 ? view.sizes[i] : 1;
  }
  if (from->data == NULL && !empty) {
    return heed_dl_refuse(HEED_INVALID_ARGUMENT, message, message_size,
                          "dlpack: no data for a tensor of %lld elements", stride);
  }
  view.data = from->data != NULL ? (char*)from->data + from->byte_offset : NULL;
  *out = view;
  return HEED_OK;
}

/* What a tensor made of a view owns. */
typedef struct heed_dl_block {
  heed_dl_managed managed; /* first, so that a pointer to it is one to the block */
  int64_t sizes[HEED_MAX_RANK];
  int64_t strides[HEED_MAX_RANK];
  void (*release)(void* owner);
  void* owner;
} heed_dl_block;

static inline void heed_dl_delete(heed_dl_managed* self) {
  heed_dl_block* block = (heed_dl_block*)self;
  if (block == NULL) return;
  if (block->release != NULL) block->release(block->owner);
  free(block);
}

/* *out is a DLManagedTensor over the view's data. `release` (NULL: nothing to do) is called with
 * `owner` when its deleter runs. HEED_INVALID_ARGUMENT for a rank, dtype or device that no view
 * has, HEED_OUT_OF_MEMORY; then *out is NULL and `release` is not called. */
static inline heed_status heed_view_to_dlpack(const heed_view* view, void (*release)(void* owner),
                                              void* owner, heed_dl_managed** out, char* message,
                                              size_t message_size) {
  static const heed_dl_dtype kTypes[] = {{2, 32, 1}, {4, 16, 1}, {2, 16, 1}, {2, 64, 1},
                                         {0, 64, 1}, {0, 32, 1}, {1, 8, 1}};
  heed_dl_block* block;
  if (out != NULL) *out = NULL;
  if (view == NULL || out == NULL) {
    return heed_dl_refuse(HEED_INVALID_ARGUMENT, message, message_size,
                          "dlpack: no view or no place for the tensor was given (%lld)", 0);
  }
  if (view->rank < 0 || view->rank > HEED_MAX_RANK) {
    return heed_dl_refuse(HEED_INVALID_ARGUMENT, message, message_size,
                          "dlpack: rank %lld; views have 0 to 5 dimensions", view->rank);
  }
  if (view->dtype < HEED_FLOAT32 || view->dtype > HEED_UINT8) {
    return heed_dl_refuse(HEED_INVALID_ARGUMENT, message, message_size,
                          "dlpack: dtype %lld is no heed_dtype", view->dtype);
  }
  if (view->device != HEED_CPU && view->device != HEED_CUDA) {
    return heed_dl_refuse(HEED_INVALID_ARGUMENT, message, message_size,
                          "dlpack: device %lld is no heed_device", view->device);
  }
  block = (heed_dl_block*)calloc(1, sizeof *block);
  if (block == NULL) {
    return heed_dl_refuse(HEED_OUT_OF_MEMORY, message, message_size,
                          "dlpack: no memory for %lld bytes", (int64_t)sizeof *block);
  }
  memcpy(block->sizes, view->sizes, sizeof block->sizes);
  memcpy(block->strides, view->strides, sizeof block->strides);
  block->release = release;
  block->owner = owner;
  block->managed.tensor.data = view->data;
  block->managed.tensor.device.type = view->device == HEED_CUDA ? 2 : 1;
  block->managed.tensor.rank = view->rank;
  block->managed.tensor.dtype = kTypes[view->dtype];
  block->managed.tensor.sizes = block->sizes;
  block->managed.tensor.strides = block->strides;
  block->managed.deleter = heed_dl_delete;
  *out = &block->managed;
  return HEED_OK;
}

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* HEED_DLPACK_H_ */
