// What the lists of fields cannot say about the three calls.
#include "kernel/ewscan/ewscan.h"

namespace heed::kernel {

heed_status check_ewscan(const EwscanCall& call, int32_t pass, CallDtypes dtypes, CallSizes* sizes,
                         heed_message* message) {
  const heed_status status = check_call(kEwscan, &call, pass, dtypes, sizes, message);
  if (status != HEED_OK) return status;
  const auto& x = call.in;
  const bool pair = x.x.rank == 4;
  if (given(x.turn) && !pair) {
    return call_fail(kEwscan, HEED_INVALID_ARGUMENT, message,
                     "turn makes the state complex, x must be [B,T,C,2] then");
  }
  for (const heed_view* v : {&x.initial_state, &x.final_state}) {
    if (!given(*v) || (v->rank == 3) == pair) continue;
    return call_fail(kEwscan, HEED_INVALID_ARGUMENT, message, "x is %s, but a state has rank %d",
                     pair ? "complex ([B,T,C,2])" : "real ([B,T,C])", v->rank);
  }
  if (given(x.out) && x.out.rank != x.x.rank) {
    return call_fail(kEwscan, HEED_INVALID_ARGUMENT, message, "out has rank %d, x has %d",
                     x.out.rank, x.x.rank);
  }
  return HEED_OK;
}

heed_status check_selective_scan(const SelectiveCall& call, int32_t pass, CallDtypes dtypes,
                                 CallSizes* sizes, heed_message* message) {
  const heed_status status = check_call(kSelectiveScan, &call, pass, dtypes, sizes, message);
  if (status != HEED_OK) return status;
  const int64_t channels = (*sizes)["C"], groups = (*sizes)["G"];
  if (groups < 1 || channels % groups != 0) {
    return call_fail(kSelectiveScan, HEED_INVALID_ARGUMENT, message,
                     "B has %lld groups, expected a divisor of the %lld channels of x",
                     static_cast<long long>(groups), static_cast<long long>(channels));
  }
  return HEED_OK;
}

heed_status check_lse_scan(const LseCall& call, int32_t pass, CallDtypes dtypes, CallSizes* sizes,
                           heed_message* message) {
  const heed_status status = check_call(kLseScan, &call, pass, dtypes, sizes, message);
  if (status != HEED_OK) return status;
  const auto& x = call.in;
  if (given(x.initial_m) != given(x.initial_u) || given(x.initial_m) != given(x.initial_w) ||
      (pass != HEED_BACKWARD &&
       (given(x.final_m) != given(x.final_u) || given(x.final_m) != given(x.final_w)))) {
    return call_fail(kLseScan, HEED_INVALID_ARGUMENT, message,
                     "m, u and w of a state come together");
  }
  return HEED_OK;
}

}  // namespace heed::kernel
