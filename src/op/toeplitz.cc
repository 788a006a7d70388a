#include "op/toeplitz.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include <torch/csrc/autograd/custom_function.h>

#include "io/error.h"
#include "op/describe.h"

namespace heed::op {
namespace {

// The next length that has no prime factor above 5: such transforms are fast.
int64_t fast_length(int64_t n) {
  for (int64_t length = std::max<int64_t>(n, 1);; ++length) {
    int64_t rest = length;
    for (const int64_t p : {2, 3, 5}) {
      while (rest % p == 0) rest /= p;
    }
    if (rest == 1 && length % 2 == 0) return length;
  }
}

constexpr int64_t kRun = 128;            // queries computed together
constexpr int64_t kKeys = 512;           // keys of a block
constexpr int64_t kTile = 1024 * 1024;   // numbers of all heads of a run, where one head has fewer
constexpr int64_t kFftBytes = 32 << 20;  // columns that are transformed at once

// A run of queries of some heads, in reversed order: then the factors of query r and key j are
// c[r + j], which is a view of c.
struct Run {
  int64_t head, heads, first, rows, keys;

  at::Tensor of_heads(const at::Tensor& x) const { return x.narrow(0, head, heads); }
  at::Tensor queries(const at::Tensor& x) const { return of_heads(x).narrow(1, first, rows); }
  at::Tensor seen(const at::Tensor& x) const { return of_heads(x).narrow(1, 0, keys); }
  at::Tensor factors(const at::Tensor& c) const {
    const at::Tensor own = of_heads(c);
    return own.as_strided({heads, rows, keys}, {c.stride(0), 1, 1}, own.storage_offset() + first);
  }
};

template <class Visit>
void for_runs(const at::Tensor& f, const at::Tensor& g, bool causal, Visit&& visit) {
  const int64_t all = f.size(0), queries = f.size(1), keys = g.size(1);
  const int64_t tile = std::max<int64_t>(1, std::min(kRun, queries) * keys);
  const int64_t heads = std::clamp<int64_t>(kTile / tile, 1, std::max<int64_t>(1, all));
  for (int64_t h = 0; h < all; h += heads) {
    for (int64_t r = 0; r < queries; r += kRun) {
      const int64_t seen = causal ? std::max<int64_t>(0, keys - r) : keys;
      visit(Run{h, std::min(heads, all - h), r, std::min(kRun, queries - r), seen});
    }
  }
}

// Sums over the entries (r, j) of [heads,R,S] with equal r + j: [heads,R+S-1].
at::Tensor sums_of_distances(const at::Tensor& x) {
  const int64_t heads = x.size(0), rows = x.size(1), width = rows + x.size(2);
  // Rows of one number fewer: each begins one place later than the one before.
  const at::Tensor padded = at::constant_pad_nd(x, {0, rows}).view({heads, rows * width});
  return padded.narrow(1, 0, rows * (width - 1)).view({heads, rows, width - 1}).sum(1);
}

// f, g, x [N,T or S,...], c [N,T+S-1], N = B H; f and the result in reversed order of queries.
struct WeightedToeplitz : torch::autograd::Function<WeightedToeplitz> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& f,
                            const at::Tensor& g, const at::Tensor& x, const at::Tensor& c,
                            bool causal) {
    ctx->save_for_backward({f, g, x, c});
    ctx->saved_data["causal"] = causal;
    at::Tensor y = at::zeros({f.size(0), f.size(1), x.size(2)}, x.options());
    const int64_t runs = (f.size(1) + kRun - 1) / kRun;
    // A thread takes one run of one head with a block of keys at a time: the weights stay in its
    // second cache.
    at::parallel_for(0, f.size(0) * runs, 1, [&](int64_t first, int64_t last) {
      const at::AutoDispatchBelowADInplaceOrView below_autograd;
      for (int64_t task = first; task < last; ++task) {
        const int64_t n = task / runs, r = task % runs * kRun;
        const int64_t rows = std::min(kRun, f.size(1) - r);
        const int64_t seen = causal ? std::max<int64_t>(0, g.size(1) - r) : g.size(1);
        const at::Tensor own = f[n].narrow(0, r, rows), out = y[n].narrow(0, r, rows);
        for (int64_t k = 0; k < seen; k += kKeys) {
          const int64_t keys = std::min(kKeys, seen - k);
          const at::Tensor factors =
              c.as_strided({rows, keys}, {1, 1}, c.storage_offset() + n * c.stride(0) + r + k);
          const at::Tensor weights = at::mm(own, g[n].narrow(0, k, keys).t()).mul_(factors);
          out.addmm_(weights, x[n].narrow(0, k, keys));
        }
      }
    });
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &f = saved[0], &g = saved[1], &x = saved[2], &c = saved[3], &dy = grads[0];
    const at::Tensor df = at::zeros_like(f), dg = at::zeros_like(g), dx = at::zeros_like(x);
    const at::Tensor dc = at::zeros_like(c);
    for_runs(f, g, ctx->saved_data["causal"].toBool(), [&](const Run& run) {
      const at::Tensor own = run.queries(dy), factors = run.factors(c);
      const at::Tensor products = at::bmm(run.queries(f), run.seen(g).transpose(1, 2));
      run.seen(dx).add_(at::bmm(products.mul(factors).transpose(1, 2), own));
      const at::Tensor by = at::bmm(own, run.seen(x).transpose(1, 2));
      run.of_heads(dc)
          .narrow(1, run.first, run.rows + run.keys - 1)
          .add_(sums_of_distances(products.mul_(by)));
      by.mul_(factors);
      run.queries(df).copy_(at::bmm(by, run.seen(g)));
      run.seen(dg).add_(at::bmm(by.transpose(1, 2), run.queries(f)));
    });
    return {df, dg, dx, dc, at::Tensor()};
  }
};

}  // namespace

at::Tensor weighted_toeplitz(const at::Tensor& f, const at::Tensor& g, const at::Tensor& x,
                             const at::Tensor& c, bool causal) {
  const int64_t batch = f.size(0), heads = f.size(1), queries = f.size(2);
  const at::Tensor all = c.unsqueeze(0).expand({batch, heads, c.size(1)});
  const at::Tensor y =
      WeightedToeplitz::apply(f.flip(2).flatten(0, 1), g.flatten(0, 1).contiguous(),
                              x.flatten(0, 1).contiguous(), all.flatten(0, 1).contiguous(), causal);
  return y.view({batch, heads, queries, x.size(3)}).flip(2);
}

at::Tensor weighted_toeplitz_fft(const at::Tensor& f, const at::Tensor& g, const at::Tensor& x,
                                 const at::Tensor& c) {
  const int64_t queries = f.size(2), features = f.size(3);
  const int64_t column = (queries + x.size(2)) * x.element_size();
  const int64_t row = std::max<int64_t>(1, x.size(0) * x.size(1) * x.size(3) * column);
  const int64_t tile = std::clamp<int64_t>(kFftBytes / row, 1, features);
  const at::Tensor values = x.unsqueeze(3);
  at::Tensor sum;
  for (int64_t m = 0; m < features; m += tile) {
    const int64_t end = std::min(m + tile, features);
    const at::Tensor mixed = toeplitz(c, g.slice(3, m, end).unsqueeze(-1).mul(values), queries);
    const at::Tensor part = f.slice(3, m, end).unsqueeze(-1).mul(mixed).sum(3);
    sum = sum.defined() ? sum.add(part) : part;
  }
  return sum;
}

bool fft_is_faster(int64_t queries, int64_t keys, int64_t features, int64_t width, bool causal) {
  // Measured on a CPU: a number of a transform (float64, and log2 of its length times) takes as
  // long as 68 multiply-adds of products of matrices, a weight of a run as long as 16.
  const auto length = static_cast<double>(queries + keys);
  const double weights = static_cast<double>(queries) * static_cast<double>(keys);
  const auto columns = static_cast<double>(features * width);
  return 68 * length * std::log2(length) * columns <
         weights * (causal ? 0.5 : 1) * static_cast<double>(features + width + 16);
}

at::Tensor toeplitz(const at::Tensor& c, const at::Tensor& x, int64_t queries) {
  if (x.dim() < 3 || c.dim() != 2 || c.size(0) != x.size(1) ||
      c.size(1) != queries + x.size(2) - 1) {
    throw UsageError("toeplitz: c has shape {} and x {}, expected [H,T+S-1] and [B,H,S,...]",
                     sizes_of(c), sizes_of(x));
  }
  const int64_t keys = x.size(2), length = fast_length(queries + keys - 1);
  // y_i = sum_j w_{i-j} x_j with w_l = c[T - 1 - l]; negative lags at the end of the circle.
  const at::Tensor lags = c.flip(1);  // entry S - 1 + l
  const at::Tensor past = lags.slice(1, keys - 1), future = lags.slice(1, 0, keys - 1);
  const at::Tensor gap = at::zeros({c.size(0), length - c.size(1)}, c.options());
  const at::Tensor circle = at::fft_rfft(at::cat({past, gap, future}, 1), length, 1);
  const at::Tensor columns = x.flatten(3).transpose(2, 3);  // the transforms run over memory rows
  const at::Tensor product =
      at::fft_rfft(columns, length, -1).mul(circle.unsqueeze(1).unsqueeze(0));
  const at::Tensor y = at::fft_irfft(product, length, -1).slice(-1, 0, queries).transpose(2, 3);
  std::vector<int64_t> shape = x.sizes().vec();
  shape[2] = queries;
  return y.reshape(shape);
}

}  // namespace heed::op
