// The C entry points of include/heed/scan.h over the engine.
#include <cstdio>

#include "heed/scan.h"
#include "kernel/scan/problem.h"

namespace {

using heed::kernel::ScanArgs;

heed_status report(heed_status status, char* message, size_t size) {
  if (message != nullptr && size > 0) {
    std::snprintf(message, size, "%s", status == HEED_OK ? "" : heed::kernel::scan_message());
  }
  return status;
}

heed_status arguments(const heed_scan_tensors* t, const heed_scan_options* o, ScanArgs* args) {
  if (t == nullptr || o == nullptr) {
    return heed::kernel::scan_fail(HEED_INVALID_ARGUMENT, "scan: tensors or options are NULL");
  }
  if (o->version != HEED_SCAN_VERSION) {
    return heed::kernel::scan_fail(HEED_INVALID_ARGUMENT,
                                   "scan: options of version %u, this library has %d", o->version,
                                   HEED_SCAN_VERSION);
  }
  args->q = t->q;
  args->k = t->k;
  args->v = t->v;
  args->p = t->p;
  args->r = t->r;
  args->beta = t->beta;
  args->log_decay = t->log_decay;
  args->bonus = t->bonus;
  args->initial_state = t->initial_state;
  args->out = t->out;
  args->final_state = t->final_state;
  args->cu_seqlens = t->cu_seqlens;
  args->sequences = t->sequences;
  args->decay = static_cast<heed::kernel::Decay>(o->decay);
  args->correction = static_cast<heed::kernel::Correction>(o->correction);
  args->read = static_cast<heed::kernel::Read>(o->read);
  args->scale = o->scale;
  args->chunk = o->chunk;
  return HEED_OK;
}

}  // namespace

extern "C" {

void heed_scan_options_init(heed_scan_options* options) {
  *options = {HEED_SCAN_VERSION, HEED_DECAY_NONE, HEED_CORRECTION_NONE, HEED_READ_AFTER, 1.0f, 64};
}

int64_t heed_scan_workspace(const heed_scan_tensors* tensors, const heed_scan_options* options,
                            int32_t threads, int32_t step, char* message, size_t message_size) {
  ScanArgs args;
  heed_status status = arguments(tensors, options, &args);
  int64_t bytes = -1;
  if (status == HEED_OK) {
    bytes = heed::kernel::scan_workspace_bytes(args, threads, step != 0);
    if (bytes < 0) status = HEED_INVALID_ARGUMENT;
  }
  report(status, message, message_size);
  return bytes;
}

heed_status heed_scan_forward(const heed_scan_tensors* tensors, const heed_scan_options* options,
                              const heed_parallel* parallel, void* workspace,
                              int64_t workspace_bytes, char* message, size_t message_size) {
  ScanArgs args;
  heed_status status = arguments(tensors, options, &args);
  args.workspace = workspace;
  args.workspace_bytes = workspace_bytes;
  if (status == HEED_OK) status = heed::kernel::scan_forward(args, parallel);
  return report(status, message, message_size);
}

heed_status heed_scan_step(const heed_scan_tensors* tensors, const heed_scan_options* options,
                           const heed_parallel* parallel, void* workspace, int64_t workspace_bytes,
                           char* message, size_t message_size) {
  ScanArgs args;
  heed_status status = arguments(tensors, options, &args);
  args.workspace = workspace;
  args.workspace_bytes = workspace_bytes;
  if (status == HEED_OK) status = heed::kernel::scan_step(args, parallel);
  return report(status, message, message_size);
}

}  // extern "C"
