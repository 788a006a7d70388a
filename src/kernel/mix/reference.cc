// The convolution tap by tap in double precision, its adjoint, and its check.
#include <cmath>
#include <vector>

#include "kernel/mix/mix.h"

namespace heed::kernel {
namespace {

struct Channel {
  const ShortConvCall& call;
  CallSpan s;
  int64_t n, c, head, taps;

  bool generated() const { return call.in.weight.rank == 4; }
  double weight(int64_t t, int64_t i) const {
    return generated() ? load(call.in.weight, s.b, s.begin + t, head, i)
                       : load(call.in.weight, c, i);
  }
  // Token t of the sequence; below 0 the state's, beyond either end zero.
  double input(int64_t t) const {
    if (t >= s.length) return 0;
    if (t >= 0) return load(call.in.x, s.b, s.begin + t, c);
    const heed_view& state = call.in.initial_state;
    return given(state) && t >= 1 - taps ? load(state, n, t + taps - 1, c) : 0;
  }
  int64_t source(int64_t t, int64_t i) const { return t + i - (taps - 1) + call.options.ahead; }
  double sum(int64_t t) const {
    double y = given(call.in.bias) ? load(call.in.bias, c) : 0;
    for (int64_t i = 0; i < taps; ++i) y += weight(t, i) * input(source(t, i));
    return y;
  }

  void forward() const {
    std::vector<double> y(s.length), last;
    for (int64_t t = 0; t < s.length; ++t) {
      y[t] = sum(t);
      if (call.options.silu) y[t] /= 1 + std::exp(-y[t]);
    }
    for (int64_t i = 0; i < taps - 1; ++i) last.push_back(input(s.length - (taps - 1) + i));
    for (int64_t t = 0; t < s.length; ++t) store(call.in.out, y[t], s.b, s.begin + t, c);
    for (int64_t i = 0; i < taps - 1 && call.in.final_state.data != nullptr; ++i) {
      store(call.in.final_state, last[i], n, i, c);
    }
  }

  static void add(const heed_view& v, double x, int64_t i, int64_t j = 0, int64_t k = 0,
                  int64_t l = 0) {
    if (v.data != nullptr) store(v, load(v, i, j, k, l) + x, i, j, k, l);
  }
  void add_input(int64_t t, double x) const {
    if (t >= s.length || t < 1 - taps) return;
    if (t >= 0) return add(call.grad.x, x, s.b, s.begin + t, c);
    add(call.grad.initial_state, x, n, t + taps - 1, c);
  }
  void backward() const {
    const auto& g = call.grad;
    for (int64_t t = 0; t < s.length; ++t) {
      double dy = g.out.data == nullptr ? 0 : load(g.out, s.b, s.begin + t, c);
      if (call.options.silu) {
        const double y = sum(t), sig = 1 / (1 + std::exp(-y));
        dy *= sig * (1 + y * (1 - sig));
      }
      add(g.bias, dy, c);
      for (int64_t i = 0; i < taps; ++i) {
        const double dw = dy * input(source(t, i));
        generated() ? add(g.weight, dw, s.b, s.begin + t, head, i) : add(g.weight, dw, c, i);
        add_input(source(t, i), dy * weight(t, i));
      }
    }
    for (int64_t i = 0; i < taps - 1 && g.final_state.data != nullptr; ++i) {
      add_input(s.length - (taps - 1) + i, load(g.final_state, n, i, c));
    }
  }
};

}  // namespace

heed_status check_short_conv(const ShortConvCall& call, int32_t pass, CallDtypes dtypes,
                             CallSizes* sizes, heed_message* message) {
  const heed_status status = check_call(kShortConv, &call, pass, dtypes, sizes, message);
  if (status != HEED_OK) return status;
  const int64_t taps = (*sizes)["L"], ahead = call.options.ahead;
  if (taps < 1 || ahead < 0 || ahead >= taps) {
    return call_fail(kShortConv, HEED_INVALID_ARGUMENT, message,
                     "ahead is %lld, expected 0 to L - 1 = %lld", static_cast<long long>(ahead),
                     static_cast<long long>(taps) - 1);
  }
  if (ahead > 0 && (given(call.in.initial_state) || pass == HEED_STEP)) {
    return call_fail(kShortConv, HEED_INVALID_ARGUMENT, message,
                     "ahead = %lld reads tokens to come: there is no state and no step",
                     static_cast<long long>(ahead));
  }
  const int64_t heads = call.in.weight.rank == 4 ? (*sizes)["H"] : 1;
  if (heads < 1 || (*sizes)["C"] % heads != 0) {
    return call_fail(kShortConv, HEED_INVALID_ARGUMENT, message,
                     "weight has %lld heads, expected a divisor of the %lld channels of x",
                     static_cast<long long>(heads), static_cast<long long>((*sizes)["C"]));
  }
  return HEED_OK;
}

heed_status short_conv_reference(const ShortConvCall& call, int32_t pass, heed_message* message) {
  CallSizes size;
  const auto status = check_short_conv(call, pass, CallDtypes::kReference, &size, message);
  if (status != HEED_OK) return status;
  if (pass == HEED_BACKWARD) {
    const heed_view* grads = call_grads(kShortConv, &call);
    for (size_t i = 0; i < std::size(kShortConvTensors); ++i) {
      int64_t count = grads[i].data != nullptr && is_input(kShortConvTensors[i].role) ? 1 : 0;
      for (int d = 0; d < grads[i].rank; ++d) count *= grads[i].sizes[d];
      for (int64_t j = 0; j < count; ++j) store_element(grads[i].data, grads[i].dtype, j, 0);
    }
  }
  const int64_t a_head = size["C"] / (call.in.weight.rank == 4 ? size["H"] : 1);
  for (int64_t n = 0; n < size["N"]; ++n) {
    for (int64_t c = 0; c < size["C"]; ++c) {
      const Channel one = {call, call_span(call.head, size["T"], n), n, c, c / a_head, size["L"]};
      pass == HEED_BACKWARD ? one.backward() : one.forward();
    }
  }
  return HEED_OK;
}

}  // namespace heed::kernel
