// short_conv on blocks of channels and segments of tokens: rows as floats with those that the taps
// reach before and behind them, a token's sum over the taps in registers, one vector of channels
// after the other. Backward gathers the gradient of the inputs of a segment likewise, and those of
// the weights over all tokens of a block of channels.
#include <algorithm>
#include <cmath>

#include "kernel/call/scratch.h"
#include "kernel/mix/mix.h"
#include "kernel/parallel.h"
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/mix/short_conv.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernel/simd/tile-inl.h"

#ifndef HEED_KERNEL_MIX_SHORT_CONV_H_
#define HEED_KERNEL_MIX_SHORT_CONV_H_
namespace heed::kernel {
namespace {

constexpr int64_t kConvWidth = 64;    // channels of a task
constexpr int64_t kConvSegment = 64;  // tokens at once

struct ConvProblem {
  const ShortConvCall& call;
  int64_t time, channels, taps, sequences, heads, ahead;
  bool generated;

  ConvProblem(const ShortConvCall& call, const CallSizes& size)
      : call(call),
        time(size["T"]),
        channels(size["C"]),
        taps(size["L"]),
        sequences(size["N"]),
        heads(call.in.weight.rank == 4 ? size["H"] : 1),
        ahead(call.options.ahead),
        generated(call.in.weight.rank == 4) {}

  // Channels of one head where each has its own kernel a token.
  int64_t a_head() const { return channels / heads; }
  int64_t blocks() const { return heads * ((a_head() + kConvWidth - 1) / kConvWidth); }
};

struct ConvBlock {
  int64_t head, begin, width;
};
ConvBlock conv_block(const ConvProblem& p, int64_t i) {
  const int64_t a_head = p.a_head(), blocks = (a_head + kConvWidth - 1) / kConvWidth;
  const int64_t first = i % blocks * kConvWidth;
  return {i / blocks, i / blocks * a_head + first, std::min(kConvWidth, a_head - first)};
}

}  // namespace
}  // namespace heed::kernel
#endif

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {
namespace {

constexpr int64_t kRow = kConvWidth;

// Inputs [first, first + count) of a sequence as rows; before it the state's, beyond it zeros.
void load_inputs(const ConvProblem& p, const CallSpan& s, int64_t n, ConvBlock ch, int64_t first,
                 int64_t count, float* to) {
  const auto& in = p.call.in;
  const auto rows = [&](const heed_view& v, int64_t i, int64_t j, int64_t length, float* at_row) {
    load_rows(at(v, i, j, ch.begin), v.strides[1] * dtype_size(v.dtype), v.dtype, length, ch.width,
              1, nullptr, at_row, kRow);
  };
  int64_t t = first;
  const int64_t end = first + count;
  if (t < 0) {
    const int64_t length = std::min<int64_t>(-t, count), from = t + p.taps - 1;
    if (given(in.initial_state) && from >= 0) {
      rows(in.initial_state, n, from, length, to);
    } else {
      std::fill_n(to, length * kRow, 0.0f);
    }
    t += length;
  }
  if (t < std::min(end, s.length)) {
    const int64_t length = std::min(end, s.length) - t;
    rows(in.x, s.b, s.begin + t, length, to + (t - first) * kRow);
    t += length;
  }
  if (t < end) std::fill_n(to + (t - first) * kRow, (end - t) * kRow, 0.0f);
}

// Weights: [taps][kRow] for all tokens, or [segment][taps] of the head.
struct Weights {
  float *rows, *bias;
};
void load_fixed(const ConvProblem& p, ConvBlock ch, const Weights& w) {
  const heed_view &weight = p.call.in.weight, &bias = p.call.in.bias;
  std::fill_n(w.bias, kRow, 0.0f);
  for (int64_t c = 0; given(bias) && c < ch.width; ++c) {
    w.bias[c] = static_cast<float>(load(bias, ch.begin + c));
  }
  if (p.generated) return;
  std::fill_n(w.rows, p.taps * kRow, 0.0f);
  for (int64_t c = 0; c < ch.width; ++c) {
    for (int64_t i = 0; i < p.taps; ++i) {
      w.rows[i * kRow + c] = static_cast<float>(load(weight, ch.begin + c, i));
    }
  }
}
void load_generated(const ConvProblem& p, const CallSpan& s, ConvBlock ch, int64_t t,
                    int64_t length, const Weights& w) {
  const heed_view& weight = p.call.in.weight;
  for (int64_t j = 0; p.generated && j < length; ++j) {
    const auto* from = reinterpret_cast<const float*>(at(weight, s.b, s.begin + t + j, ch.head));
    std::copy_n(from, p.taps, w.rows + j * p.taps);
  }
}

// y = bias + the taps over rows x (the first belongs to the first tap of token 0).
void convolve(const ConvProblem& p, const Weights& w, int64_t length, const float* x, float* y) {
  const DF d;
  for (int64_t t = 0; t < length; ++t) {
    for (int64_t v = 0; v < kRow; v += kLanes) {
      VF sum = hn::LoadU(d, w.bias + v);
      const float* row = x + t * kRow + v;
      for (int64_t i = 0; i < p.taps; ++i, row += kRow) {
        const VF weight =
            p.generated ? hn::Set(d, w.rows[t * p.taps + i]) : hn::LoadU(d, w.rows + i * kRow + v);
        sum = hn::MulAdd(weight, hn::LoadU(d, row), sum);
      }
      hn::StoreU(sum, d, y + t * kRow + v);
    }
  }
}

void silu_rows(int64_t count, float* y) {
  const DF d;
  for (int64_t i = 0; i < count; i += kLanes) {
    const VF x = hn::LoadU(d, y + i);
    hn::StoreU(hn::Mul(x, sigmoid_of(x)), d, y + i);
  }
}
// dy times the slope of silu at y.
void silu_back(int64_t count, const float* y, float* dy) {
  const DF d;
  const VF one = hn::Set(d, 1.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const VF x = hn::LoadU(d, y + i), sig = sigmoid_of(x);
    const VF slope = hn::Mul(sig, hn::MulAdd(x, hn::Sub(one, sig), one));
    hn::StoreU(hn::Mul(hn::LoadU(d, dy + i), slope), d, dy + i);
  }
}

void store_tokens(const float* from, const heed_view& v, const CallSpan& s, int64_t t,
                  int64_t length, ConvBlock ch) {
  if (v.data == nullptr) return;
  store_rows(from, kRow, length, ch.width, at(v, s.b, s.begin + t, ch.begin),
             v.strides[1] * dtype_size(v.dtype), v.dtype);
}

Weights take_weights(const ConvProblem& p, Arena& arena) {
  Weights w;
  w.rows = arena.take(p.taps * std::max(kRow, kConvSegment));
  w.bias = arena.take(kRow);
  return w;
}

int64_t forward_task(const ConvProblem& p, int64_t n, int64_t block, float* scratch) {
  Arena arena(scratch);
  const int64_t reach = p.taps - 1;
  float *x = arena.take((kConvSegment + reach) * kRow), *y = arena.take(kConvSegment * kRow);
  float* last = arena.take(std::max<int64_t>(1, reach) * kRow);
  const Weights w = take_weights(p, arena);
  if (scratch == nullptr) return arena.used();
  std::fill_n(scratch, arena.used(), 0.0f);
  const ConvBlock ch = conv_block(p, block);
  const CallSpan s = call_span(p.call.head, p.time, n);
  load_fixed(p, ch, w);
  // Before anything is written: the final state may be the memory of the initial one.
  const heed_view& final = p.call.in.final_state;
  const bool keeps = final.data != nullptr && reach > 0;
  if (keeps) load_inputs(p, s, n, ch, s.length - reach, reach, last);
  for (int64_t t = 0; t < s.length; t += kConvSegment) {
    const int64_t l = std::min(kConvSegment, s.length - t);
    load_inputs(p, s, n, ch, t - reach + p.ahead, l + reach, x);
    load_generated(p, s, ch, t, l, w);
    convolve(p, w, l, x, y);
    if (p.call.options.silu) silu_rows(l * kRow, y);
    store_tokens(y, p.call.in.out, s, t, l, ch);
  }
  if (keeps) {
    store_rows(last, kRow, reach, ch.width, at(final, n, 0, ch.begin), final.strides[1] * 4,
               HEED_FLOAT32);
  }
  return arena.used();
}

// ---- backward
// ---------------------------------------------------------

struct ConvBack {
  float *x, *y, *dy, *dx, *dw, *dbias, *edge;  // dx: rows as x, carried from segment to segment

  ConvBack(const ConvProblem& p, Arena& arena) {
    const int64_t rows = kConvSegment + p.taps - 1;
    x = arena.take(rows * kRow);
    y = arena.take(kConvSegment * kRow);
    dy = arena.take(kConvSegment * kRow);
    dx = arena.take(rows * kRow);
    dw = arena.take(p.taps * kRow);
    dbias = arena.take(kRow);
    edge = arena.take(p.taps * kRow);
  }
};

// dx += taps of dy, dw += dy x; generated weights take their gradients at once.
void convolve_back(const ConvProblem& p, const Weights& w, const ConvBack& b, const CallSpan& s,
                   int64_t t0, int64_t length, bool first_of_head, ConvBlock ch) {
  const DF d;
  const heed_view& grad = p.call.grad.weight;
  for (int64_t t = 0; t < length; ++t) {
    float* own = p.generated && grad.data != nullptr
                     ? reinterpret_cast<float*>(at(grad, s.b, s.begin + t0 + t, ch.head))
                     : nullptr;
    for (int64_t i = 0; i < p.taps; ++i) {
      VF sum = hn::Zero(d);
      const int64_t row = (t + i) * kRow;
      for (int64_t v = 0; v < kRow; v += kLanes) {
        const VF dy = hn::LoadU(d, b.dy + t * kRow + v), x = hn::LoadU(d, b.x + row + v);
        const VF weight =
            p.generated ? hn::Set(d, w.rows[t * p.taps + i]) : hn::LoadU(d, w.rows + i * kRow + v);
        float* dx = b.dx + row + v;
        hn::StoreU(hn::MulAdd(weight, dy, hn::LoadU(d, dx)), d, dx);
        if (p.generated) {
          sum = hn::MulAdd(dy, x, sum);
        } else {
          float* dw = b.dw + i * kRow + v;
          hn::StoreU(hn::MulAdd(dy, x, hn::LoadU(d, dw)), d, dw);
        }
      }
      if (own != nullptr) {
        const float total = hn::GetLane(hn::SumOfLanes(d, sum));
        own[i] = first_of_head ? total : own[i] + total;
      }
    }
    for (int64_t v = 0; v < kRow; v += kLanes) {
      float* dbias = b.dbias + v;
      hn::StoreU(hn::Add(hn::LoadU(d, dbias), hn::LoadU(d, b.dy + t * kRow + v)), d, dbias);
    }
  }
}

// Rows [0, count) of dx are complete: those of inputs [first, first + count) go where they belong.
void store_inputs(const ConvProblem& p, const CallSpan& s, int64_t n, ConvBlock ch, int64_t first,
                  int64_t count, const float* dx) {
  const heed_view &gx = p.call.grad.x, &gs = p.call.grad.initial_state;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t t = first + j;
    if (t < 0 && gs.data != nullptr && t + p.taps - 1 >= 0) {
      store_row(dx + j * kRow, ch.width, at(gs, n, t + p.taps - 1, ch.begin), HEED_FLOAT32);
    } else if (t >= 0 && t < s.length && gx.data != nullptr) {
      store_row(dx + j * kRow, ch.width, at(gx, s.b, s.begin + t, ch.begin), HEED_FLOAT32);
    }
  }
}

void backward_sequence(const ConvProblem& p, const Weights& w, const ConvBack& b, int64_t n,
                       bool first_of_head, ConvBlock ch) {
  const CallSpan s = call_span(p.call.head, p.time, n);
  const auto& g = p.call.grad;
  const int64_t reach = p.taps - 1;
  std::fill_n(b.dx, (kConvSegment + reach) * kRow, 0.0f);
  int64_t first = -reach + p.ahead;  // the input that row 0 of dx belongs to
  const auto flush = [&](int64_t count) {
    // What the final state's gradient adds to these inputs.
    for (int64_t j = 0; j < count && g.final_state.data != nullptr; ++j) {
      const int64_t i = first + j - (s.length - reach);
      if (i < 0 || i >= reach) continue;
      load_rows(at(g.final_state, n, i, ch.begin), 0, HEED_FLOAT32, 1, ch.width, 1, nullptr, b.edge,
                kRow);
      for (int64_t c = 0; c < ch.width; ++c) b.dx[j * kRow + c] += b.edge[c];
    }
    store_inputs(p, s, n, ch, first, count, b.dx);
    first += count;
  };
  for (int64_t t = 0; t < s.length; t += kConvSegment) {
    const int64_t l = std::min(kConvSegment, s.length - t);
    load_inputs(p, s, n, ch, t - reach + p.ahead, l + reach, b.x);
    load_generated(p, s, ch, t, l, w);
    std::fill_n(b.dy, kConvSegment * kRow, 0.0f);
    if (g.out.data != nullptr) {
      load_rows(at(g.out, s.b, s.begin + t, ch.begin), g.out.strides[1] * dtype_size(g.out.dtype),
                g.out.dtype, l, ch.width, 1, nullptr, b.dy, kRow);
    }
    if (p.call.options.silu) {
      convolve(p, w, l, b.x, b.y);
      silu_back(l * kRow, b.y, b.dy);
    }
    convolve_back(p, w, b, s, t, l, first_of_head, ch);
    flush(l);
    std::copy(b.dx + l * kRow, b.dx + (l + reach) * kRow, b.dx);
    std::fill_n(b.dx + reach * kRow, kConvSegment * kRow, 0.0f);
  }
  flush(reach);
}

// Fixed weights: a block of channels. Generated ones: all blocks of a head, one after the other.
int64_t backward_task(const ConvProblem& p, int64_t first, int64_t last, float* scratch) {
  Arena arena(scratch);
  const ConvBack b(p, arena);
  const Weights w = take_weights(p, arena);
  if (scratch == nullptr) return arena.used();
  std::fill_n(scratch, arena.used(), 0.0f);
  const auto& g = p.call.grad;
  for (int64_t block = first; block < last; ++block) {
    const ConvBlock ch = conv_block(p, block);
    load_fixed(p, ch, w);
    std::fill_n(b.dw, p.taps * kRow, 0.0f);
    std::fill_n(b.dbias, kRow, 0.0f);
    for (int64_t n = 0; n < p.sequences; ++n) backward_sequence(p, w, b, n, block == first, ch);
    for (int64_t c = 0; c < ch.width; ++c) {
      if (g.bias.data != nullptr) store(g.bias, b.dbias[c], ch.begin + c);
      for (int64_t i = 0; i < p.taps && !p.generated && g.weight.data != nullptr; ++i) {
        store(g.weight, b.dw[i * kRow + c], ch.begin + c, i);
      }
    }
  }
  return arena.used();
}

}  // namespace
}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {

HWY_EXPORT(forward_task);
HWY_EXPORT(backward_task);

namespace {

const ShortConvCall& call_of(const void* call) { return *static_cast<const ShortConvCall*>(call); }

Scratch scratch_of(const ConvProblem& p, int32_t pass) {
  if (pass != HEED_BACKWARD) return {0, HWY_DYNAMIC_DISPATCH(forward_task)(p, 0, 0, nullptr)};
  return {0, HWY_DYNAMIC_DISPATCH(backward_task)(p, 0, 0, nullptr)};
}

int64_t workspace(const void* c, int32_t pass, int32_t threads) {
  CallSizes size;
  if (check_short_conv(call_of(c), pass, CallDtypes::kKernel, &size, nullptr) != HEED_OK) return 0;
  return scratch_of(ConvProblem(call_of(c), size), pass).bytes(threads);
}

heed_status run(const void* c, int32_t pass, void* workspace, void* /*stream*/,
                const heed_parallel* parallel, heed_message* message) {
  CallSizes size;
  const heed_status status =
      check_short_conv(call_of(c), pass, CallDtypes::kKernel, &size, message);
  if (status != HEED_OK) return status;
  const ConvProblem p(call_of(c), size);
  const Scratch scratch = scratch_of(p, pass);
  const int64_t blocks = p.blocks();
  if (pass != HEED_BACKWARD) {
    const auto task = HWY_DYNAMIC_DISPATCH(forward_task);
    parallel_for(parallel, p.sequences * blocks, [&](int64_t i, int32_t worker) {
      task(p, i / blocks, i % blocks, scratch.of(workspace, worker));
    });
    return HEED_OK;
  }
  const auto task = HWY_DYNAMIC_DISPATCH(backward_task);
  const int64_t a_task = p.generated ? blocks / p.heads : 1;
  parallel_for(parallel, blocks / a_task, [&](int64_t i, int32_t worker) {
    task(p, i * a_task, (i + 1) * a_task, scratch.of(workspace, worker));
  });
  return HEED_OK;
}

}  // namespace

std::span<const heed_backend> short_conv_backends() {
  static const heed_backend rows[] = {
      {sizeof(heed_backend), "short_conv", "cpu", HEED_CPU, 100, nullptr, workspace, nullptr, run}};
  return rows;
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
