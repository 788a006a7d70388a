// See rows.h.
#include "nn/rows.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <cmath>

namespace heed {
namespace {

// Sixteen partial sums, so that the compiler may use vectors without changing the order of
// additions from one build to the next.
template <typename T>
float mean_square(const T* x, int64_t n) {
  float sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 16; ++j) {
      const float value = static_cast<float>(x[i + j]);
      sums[j] += value * value;
    }
  }
  float total = 0;
  for (; i < n; ++i) total += static_cast<float>(x[i]) * static_cast<float>(x[i]);
  for (float s : sums) total += s;
  return total / static_cast<float>(n);
}

template <typename T>
void norm_row(const T* x, const T* weight, T* out, int64_t n, float eps) {
  const float scale = 1.0f / std::sqrt(mean_square(x, n) + eps);
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<T>(static_cast<float>(weight[i]) *
                            static_cast<float>(static_cast<T>(static_cast<float>(x[i]) * scale)));
  }
}

template <typename T>
void rotate_head(T* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = static_cast<float>(x[i]), b = static_cast<float>(x[i + half]);
    x[i] = static_cast<T>(a * cos[i] - b * sin[i]);
    x[i + half] = static_cast<T>(b * cos[i] + a * sin[i]);
  }
}

}  // namespace

at::Tensor rms_norm_rows(const at::Tensor& x, const at::Tensor& weight, double eps) {
  at::Tensor out = at::empty(x.sizes(), x.options());
  const int64_t n = x.size(-1), rows = x.numel() / std::max<int64_t>(n, 1);
  AT_DISPATCH_SWITCH(x.scalar_type(), "rms_norm_rows", AT_DISPATCH_CASE(at::kFloat, [&] {
                       const float *from = x.const_data_ptr<float>(),
                                   *w = weight.const_data_ptr<float>();
                       float* to = out.mutable_data_ptr<float>();
                       at::parallel_for(0, rows, 32, [&](int64_t begin, int64_t end) {
                         for (int64_t r = begin; r < end; ++r) {
                           norm_row(from + r * n, w, to + r * n, n, static_cast<float>(eps));
                         }
                       });
                     }) AT_DISPATCH_CASE(at::kBFloat16, [&] {
                       const auto *from = x.const_data_ptr<at::BFloat16>(),
                                  *w = weight.const_data_ptr<at::BFloat16>();
                       auto* to = out.mutable_data_ptr<at::BFloat16>();
                       at::parallel_for(0, rows, 32, [&](int64_t begin, int64_t end) {
                         for (int64_t r = begin; r < end; ++r) {
                           norm_row(from + r * n, w, to + r * n, n, static_cast<float>(eps));
                         }
                       });
                     }));
  return out;
}

namespace {

template <typename T>
void normalise_and_rotate_as(const at::Tensor& qkv, int64_t heads, int64_t kv_heads,
                             int64_t head_dim, std::span<const int64_t> positions,
                             const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& q_norm,
                             const at::Tensor& k_norm, float eps) {
  T* data = qkv.mutable_data_ptr<T>();
  const int64_t row_size = qkv.stride(0), half = cos.defined() ? cos.size(-1) : 0;
  const T* qw = q_norm.defined() ? q_norm.const_data_ptr<T>() : nullptr;
  const T* kw = k_norm.defined() ? k_norm.const_data_ptr<T>() : nullptr;
  const float* c = cos.defined() ? cos.const_data_ptr<float>() : nullptr;
  const float* s = sin.defined() ? sin.const_data_ptr<float>() : nullptr;
  at::parallel_for(0, static_cast<int64_t>(positions.size()), 16, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t h = 0; h < heads + kv_heads; ++h) {
        T* x = data + n * row_size + h * head_dim;
        if (const T* w = h < heads ? qw : kw) norm_row(x, w, x, head_dim, eps);
        if (c) rotate_head(x, c + positions[n] * half, s + positions[n] * half, half);
      }
    }
  });
}

}  // namespace

void normalise_and_rotate(const at::Tensor& qkv, int64_t heads, int64_t kv_heads, int64_t head_dim,
                          std::span<const int64_t> positions, const at::Tensor& cos,
                          const at::Tensor& sin, const at::Tensor& q_norm, const at::Tensor& k_norm,
                          double eps) {
  const auto run = qkv.scalar_type() == at::kFloat ? normalise_and_rotate_as<float>
                                                   : normalise_and_rotate_as<at::BFloat16>;
  run(qkv, heads, kv_heads, head_dim, positions, cos, sin, q_norm, k_norm, static_cast<float>(eps));
}

}  // namespace heed
