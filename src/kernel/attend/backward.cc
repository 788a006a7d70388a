// The backward pass: runs the double reference.
#include "kernel/attend/attend.h"
#include "kernel/attend/validate.h"

namespace heed::kernel {

heed_status attend_backward(const AttendTable& table, const AttendGradJob* grads,
                            const heed_parallel*) {
  const heed_status status = attend::validate(table);
  if (status != HEED_OK) return status;
  return attend_backward_reference(table, grads);
}

}  // namespace heed::kernel
