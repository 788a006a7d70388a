// The C interface of attend: equal to the reference, clear errors.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "heed/attend.h"
#include "heed/parallel.h"
#include "kernel/attend_case.h"

namespace heed::kernel {
namespace {

heed_view view(std::vector<float>& data, std::initializer_list<int64_t> sizes) {
  heed_view v{};
  v.data = data.data();
  v.dtype = HEED_FLOAT32;
  v.device = HEED_CPU;
  v.rank = static_cast<int32_t>(sizes.size());
  int i = 0;
  for (int64_t size : sizes) v.sizes[i++] = size;
  int64_t stride = 1;
  for (i = v.rank - 1; i >= 0; --i) v.strides[i] = stride, stride *= v.sizes[i];
  return v;
}

struct Tensors {
  std::vector<float> q, k, v, out, lse, bias, slopes;
  heed_attend_tensors views{};
  heed_attend_options options{};

  Tensors(int64_t b, int64_t tq, int64_t tk, int64_t hq, int64_t hk, int64_t d, int64_t dv) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, int64_t n) {
      x.resize(n);
      for (float& y : x) y = normal(random);
    };
    fill(q, b * tq * hq * d), fill(k, b * tk * hk * d), fill(v, b * tk * hk * dv);
    fill(bias, b * tk * hq), fill(slopes, hq);
    out.resize(b * tq * hq * dv), lse.resize(b * tq * hq);
    views.q = view(q, {b, tq, hq, d});
    views.k = view(k, {b, tk, hk, d});
    views.v = view(v, {b, tk, hk, dv});
    views.out = view(out, {b, tq, hq, dv});
    views.lse = view(lse, {b, tq, hq});
    heed_attend_options_init(&options);
  }

  heed_status forward(std::string* message = nullptr, const heed_parallel* parallel = nullptr) {
    char text[200];
    const heed_status status = heed_attend_forward(&views, &options, parallel, text, sizeof(text));
    if (message) *message = text;
    return status;
  }
};

// out of query i and head h by the formula, keys [0, keys) of one sequence.
std::vector<double> expected(const Tensors& t, int64_t b, int64_t i, int64_t h, int64_t keys,
                             int64_t position) {
  const heed_attend_tensors& x = t.views;
  const int64_t hq = x.q.sizes[2], hk = x.k.sizes[2], d = x.q.sizes[3], dv = x.v.sizes[3];
  const int64_t kv = h / (hq / hk), tk = x.k.sizes[1];
  std::vector<double> out(dv);
  double sum = 0;
  for (int64_t j = 0; j < keys; ++j) {
    if (t.options.causal && j > position) break;
    double s = 0;
    for (int64_t n = 0; n < d; ++n) {
      s += static_cast<double>(t.q[((b * x.q.sizes[1] + i) * hq + h) * d + n]) *
           static_cast<double>(t.k[((b * tk + j) * hk + kv) * d + n]);
    }
    s /= std::sqrt(static_cast<double>(d));
    if (x.key_bias.data) s += static_cast<double>(t.bias[(b * tk + j) * hq + h]);
    if (x.alibi_slopes.data) {
      s -= static_cast<double>(t.slopes[h]) * static_cast<double>(std::abs(position - j));
    }
    sum += std::exp(s);
    for (int64_t n = 0; n < dv; ++n) {
      out[n] += std::exp(s) * static_cast<double>(t.v[((b * tk + j) * hk + kv) * dv + n]);
    }
  }
  for (double& y : out) y = sum > 0 ? y / sum : 0;
  return out;
}

void expect_equal(const Tensors& t, const std::vector<int64_t>& lengths) {
  const heed_attend_tensors& x = t.views;
  const int64_t tq = x.q.sizes[1], hq = x.q.sizes[2], dv = x.v.sizes[3];
  for (int64_t b = 0; b < x.q.sizes[0]; ++b) {
    for (int64_t i = 0; i < tq; ++i) {
      for (int64_t h = 0; h < hq; ++h) {
        const auto want = expected(t, b, i, h, lengths[b], lengths[b] - tq + i);
        for (int64_t n = 0; n < dv; ++n) {
          ASSERT_NEAR(t.out[((b * tq + i) * hq + h) * dv + n], want[n], 2e-5);
        }
      }
    }
  }
}

TEST(AttendCApi, DenseForwardWithBiasAndSlopes) {
  Tensors t(2, 5, 9, 4, 2, 8, 6);
  t.views.key_bias = view(t.bias, {2, 9, 4});
  t.views.alibi_slopes = view(t.slopes, {4});
  heed_parallel* pool = heed_thread_pool_create(2);
  ASSERT_NE(pool, nullptr);
  ASSERT_EQ(t.forward(nullptr, pool), HEED_OK);
  heed_thread_pool_destroy(pool);
  expect_equal(t, {9, 9});
  heed_attend_release();
  ASSERT_EQ(t.forward(), HEED_OK);
  expect_equal(t, {9, 9});
}

TEST(AttendCApi, PartlyFilledCache) {
  Tensors t(3, 1, 300, 3, 1, 64, 64);
  const std::vector<int64_t> lengths = {300, 1, 77};
  t.views.kv_lengths = lengths.data();
  ASSERT_EQ(t.forward(), HEED_OK);
  expect_equal(t, lengths);
}

TEST(AttendCApi, Packs) {
  Tensors t(1, 7, 10, 2, 1, 8, 8);
  const std::vector<int64_t> q = {0, 3, 3, 7}, k = {0, 4, 6, 10};
  t.views.cu_seqlens_q = q.data(), t.views.cu_seqlens_k = k.data(), t.views.sequences = 3;
  ASSERT_EQ(t.forward(), HEED_OK);
  for (int s : {0, 2}) {
    Tensors one(1, q[s + 1] - q[s], k[s + 1] - k[s], 2, 1, 8, 8);
    std::copy_n(t.q.begin() + q[s] * 16, one.q.size(), one.q.begin());
    std::copy_n(t.k.begin() + k[s] * 8, one.k.size(), one.k.begin());
    std::copy_n(t.v.begin() + k[s] * 8, one.v.size(), one.v.begin());
    ASSERT_EQ(one.forward(), HEED_OK);
    for (size_t i = 0; i < one.out.size(); ++i) EXPECT_EQ(one.out[i], t.out[q[s] * 16 + i]);
  }
}

TEST(AttendCApi, BackwardAddsGradients) {
  Tensors t(1, 4, 6, 2, 1, 8, 8);
  ASSERT_EQ(t.forward(), HEED_OK);
  std::vector<float> grad_out(t.out.size(), 1.0f), gq(t.q.size(), 5.0f), gv(t.v.size());
  heed_attend_gradients g{};
  g.grad_out = view(grad_out, {1, 4, 2, 8});
  g.grad_q = view(gq, {1, 4, 2, 8});
  g.grad_v = view(gv, {1, 6, 1, 8});
  char text[200];
  ASSERT_EQ(heed_attend_backward(&t.views, &g, &t.options, nullptr, text, sizeof(text)), HEED_OK)
      << text;
  double sum = 0;
  for (float x : gv) sum += static_cast<double>(x);
  EXPECT_NEAR(sum, 4 * 2 * 8, 1e-3);  // weights of a query sum to one
  sum = 0;  // with a constant grad_out, q moves along differences of the sums of v only
  for (float x : gq) sum += static_cast<double>(std::abs(x - 5.0f));
  EXPECT_GT(sum, 0.01);
}

TEST(AttendCApi, ErrorsSayWhatIsWrong) {
  std::string message;
  Tensors t(1, 4, 6, 4, 2, 8, 8);
  t.views.out.sizes[1] = 5;
  EXPECT_EQ(t.forward(&message), HEED_INVALID_ARGUMENT);
  EXPECT_NE(message.find("out has shape [1,5,4,8], expected [B,Tq,Hq,Dv] = [1,4,4,8]"),
            std::string::npos)
      << message;
  Tensors heads(1, 4, 6, 3, 2, 8, 8);
  EXPECT_EQ(heads.forward(&message), HEED_INVALID_ARGUMENT);
  EXPECT_NE(message.find("q has 3 heads and k 2"), std::string::npos) << message;
  Tensors wide(1, 1, 1, 1, 1, 300, 8);  // no width is too large
  EXPECT_EQ(wide.forward(&message), HEED_OK) << message;
  Tensors nothing(1, 1, 1, 1, 1, 0, 8);
  EXPECT_EQ(nothing.forward(&message), HEED_INVALID_ARGUMENT);
  EXPECT_NE(message.find("D and Dv must be at least 1"), std::string::npos) << message;
  Tensors version(1, 1, 1, 1, 1, 8, 8);
  version.options.version = 99;
  EXPECT_EQ(version.forward(&message), HEED_INVALID_ARGUMENT);
  EXPECT_NE(message.find("version 99"), std::string::npos) << message;
  EXPECT_EQ(heed_attend_forward(nullptr, nullptr, nullptr, nullptr, 0), HEED_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace heed::kernel
