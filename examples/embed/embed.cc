// A recurrence from C++: the gated delta rule over a sequence, once in one pass and once cut in two
// with the state handed over, compared with the equation written as loops in double precision:
//   S' = exp(g_t) S_{t-1},  S_t = S' + beta_t k_t^T (v_t - k_t S'),  out_t = q_t S_t
#include <heed/parallel.h>
#include <heed/scan.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

namespace {

constexpr int64_t kTokens = 150, kHeads = 3, kKey = 32, kValue = 48;

// A contiguous float32 tensor.
struct Tensor {
  explicit Tensor(std::vector<int64_t> shape) : sizes(std::move(shape)) {
    int64_t n = 1;
    for (int64_t size : sizes) n *= size;
    values.resize(n);
  }
  // Tokens [first, last) of a tensor [1, T, ...].
  heed_view view(int64_t first = 0, int64_t last = -1) {
    heed_view view{};
    view.dtype = HEED_FLOAT32;
    view.rank = static_cast<int32_t>(sizes.size());
    int64_t stride = 1;
    for (int i = view.rank - 1; i >= 0; --i) {
      view.sizes[i] = sizes[i];
      view.strides[i] = stride;
      stride *= sizes[i];
    }
    if (last >= 0) view.sizes[1] = last - first;
    view.data = values.data() + first * view.strides[1];
    return view;
  }
  std::vector<int64_t> sizes;
  std::vector<float> values;
};

struct Problem {
  Tensor q{{1, kTokens, kHeads, kKey}}, k{{1, kTokens, kHeads, kKey}},
      v{{1, kTokens, kHeads, kValue}}, out{{1, kTokens, kHeads, kValue}};
  Tensor beta{{1, kTokens, kHeads}}, log_decay{{1, kTokens, kHeads}},
      state{{1, kHeads, kKey, kValue}};
};

void run(Problem& p, int64_t first, int64_t last, bool continues, const heed_parallel* pool) {
  heed_scan_tensors tensors{};
  tensors.q = p.q.view(first, last);
  tensors.k = p.k.view(first, last);
  tensors.v = p.v.view(first, last);
  tensors.beta = p.beta.view(first, last);  // makes it a delta rule
  tensors.log_decay = p.log_decay.view(first, last);
  tensors.out = p.out.view(first, last);
  if (continues) tensors.initial_state = p.state.view();
  tensors.final_state = p.state.view();
  char message[256];
  heed_run run{};
  run.struct_size = sizeof run;
  run.pass = HEED_FORWARD;
  run.parallel = pool;
  run.message = message;
  run.message_size = sizeof message;
  if (heed_scan(&tensors, nullptr, nullptr, &run) != HEED_OK) throw std::runtime_error(message);
}

std::vector<double> reference(const Problem& p) {
  std::vector<double> out(p.out.values.size());
  for (int64_t h = 0; h < kHeads; ++h) {
    std::vector<double> state(kKey * kValue, 0.0);
    for (int64_t t = 0; t < kTokens; ++t) {
      const int64_t row = t * kHeads + h;
      const float *q = &p.q.values[row * kKey], *k = &p.k.values[row * kKey],
                  *v = &p.v.values[row * kValue];
      for (double& s : state) s *= std::exp(static_cast<double>(p.log_decay.values[row]));
      for (int64_t j = 0; j < kValue; ++j) {
        double read = 0;
        for (int64_t i = 0; i < kKey; ++i) read += k[i] * state[i * kValue + j];
        const double write = p.beta.values[row] * (v[j] - read);
        double sum = 0;
        for (int64_t i = 0; i < kKey; ++i) {
          state[i * kValue + j] += k[i] * write;
          sum += q[i] * state[i * kValue + j];
        }
        out[row * kValue + j] = sum;
      }
    }
  }
  return out;
}

double relative_error(const std::vector<float>& got, const std::vector<double>& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace

int main() try {
  Problem p;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  for (Tensor* tensor : {&p.q, &p.k, &p.v}) {
    for (float& x : tensor->values) x = normal(random) / std::sqrt(static_cast<float>(kKey));
  }
  for (float& x : p.beta.values) x = uniform(random);
  for (float& x : p.log_decay.values) x = -0.1f * uniform(random);

  const std::unique_ptr<heed_parallel, decltype(&heed_thread_pool_destroy)> pool(
      heed_thread_pool_create(2), heed_thread_pool_destroy);
  const std::vector<double> expected = reference(p);
  run(p, 0, kTokens, false, pool.get());
  const double whole = relative_error(p.out.values, expected);
  run(p, 0, 77, false, pool.get());
  run(p, 77, kTokens, true, pool.get());
  const double parts = relative_error(p.out.values, expected);
  std::printf("embed_cc: relative error in one pass %.1e, in two parts %.1e\n", whole, parts);
  return whole < 1e-5 && parts < 1e-5 ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "embed_cc: %s\n", e.what());
  return 1;
}
