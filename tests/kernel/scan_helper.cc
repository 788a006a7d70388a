#include "kernel/scan_helper.h"

#include <cmath>
#include <limits>
#include <random>

#include "kernel/parallel.h"
#include "kernel/simd_dtype.h"

namespace heed::kernel::test {

const char* const kScanGradNames[9] = {
    "q", "k", "v", "p", "r", "beta", "log_decay", "bonus", "initial_state"};

std::string ScanCase::name() const {
  std::string s = "B" + std::to_string(batch) + " T" + std::to_string(time) + " H" +
                  std::to_string(heads) + " Dk" + std::to_string(dk) + " Dv" + std::to_string(dv) +
                  " decay" + std::to_string(static_cast<int>(decay)) + " correction" +
                  std::to_string(static_cast<int>(correction)) + " read" +
                  std::to_string(static_cast<int>(read)) + (bonus ? " bonus" : "") +
                  (initial ? " initial" : "") + " chunk" + std::to_string(chunk) + " dtype" +
                  std::to_string(dtype) + " size" + std::to_string(log_decay) + " extreme" +
                  std::to_string(extreme) + " pack" + std::to_string(cu_seqlens.size());
  return s;
}

Stored::Stored(int32_t dtype, std::vector<int64_t> sizes, int64_t padding)
    : dtype(dtype), sizes(std::move(sizes)), padding(padding) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < this->sizes.size(); ++i) rows *= this->sizes[i];
  const int64_t stored = rows * (this->sizes.back() + padding);
  bytes.assign(stored * dtype_size(dtype) + 8, 0);
  for (int64_t i = 0; i < stored; ++i) store_element(bytes.data(), dtype, i, NAN);
  for (int64_t i = 0; i < count(); ++i) set(i, 0);
}

int64_t Stored::count() const {
  int64_t n = sizes.empty() ? 0 : 1;
  for (int64_t size : sizes) n *= size;
  return n;
}

heed_view Stored::view() {
  heed_view view{};
  if (sizes.empty()) return view;
  view.data = bytes.data();
  view.dtype = dtype;
  view.rank = static_cast<int32_t>(sizes.size());
  int64_t stride = 1;
  for (int32_t i = view.rank - 1; i >= 0; --i) {
    view.sizes[i] = sizes[i];
    view.strides[i] = stride;
    stride *= sizes[i] + (i == view.rank - 1 ? padding : 0);
  }
  return view;
}

double Stored::at(int64_t i) const {
  const int64_t last = sizes.back();
  return load_element(bytes.data(), dtype, i / last * (last + padding) + i % last);
}
void Stored::set(int64_t i, double value) {
  const int64_t last = sizes.back();
  store_element(bytes.data(), dtype, i / last * (last + padding) + i % last, value);
}
std::vector<double> Stored::values() const {
  std::vector<double> out(count());
  for (int64_t i = 0; i < count(); ++i) out[i] = at(i);
  return out;
}

ScanRun::ScanRun(const ScanCase& c) : c(c) {
  std::mt19937_64 random(c.seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform(0, 1);
  const int64_t states =
      c.cu_seqlens.empty() ? c.batch : static_cast<int64_t>(c.cu_seqlens.size()) - 1;
  const std::vector<int64_t> keys{c.batch, c.time, c.heads, c.dk};
  const std::vector<int64_t> values{c.batch, c.time, c.heads, c.dv};
  const std::vector<int64_t> scalars{c.batch, c.time, c.heads};
  auto fill = [&](const std::vector<int64_t>& sizes, int32_t dtype, double size) {
    Stored x(dtype, sizes, sizes.size() == 4 ? c.padding : 0);
    for (int64_t i = 0; i < x.count(); ++i) x.set(i, size * normal(random));
    return x;
  };
  // Rows of length `size`.
  auto fill_unit = [&](double size) {
    Stored x = fill(keys, c.dtype, 1);
    for (int64_t i = 0; i < x.count(); i += c.dk) {
      double sum = 0;
      for (int64_t d = 0; d < c.dk; ++d) sum += x.at(i + d) * x.at(i + d);
      for (int64_t d = 0; d < c.dk; ++d) x.set(i + d, size * x.at(i + d) / std::sqrt(sum));
    }
    return x;
  };
  q = fill(keys, c.dtype, 1);
  v = fill(values, c.dtype, 1);
  k = c.correction == Correction::kNone ? fill(keys, c.dtype, 1) : fill_unit(1);
  if (c.correction == Correction::kGeneral) {
    r = fill_unit(1);
    p = Stored(c.dtype, keys, c.padding);  // near -r, so that the state shrinks along r
    const Stored noise = fill(keys, HEED_FLOAT32, 0.1 / std::sqrt(c.dk));
    for (int64_t i = 0; i < p.count(); ++i) p.set(i, -0.8 * r.at(i) + noise.at(i));
  }
  if (c.correction == Correction::kDelta) {
    beta = Stored(HEED_FLOAT32, scalars);
    for (int64_t i = 0; i < beta.count(); ++i) beta.set(i, c.beta * uniform(random));
  }
  if (c.decay != Decay::kNone) {
    log_decay = c.decay == Decay::kHead    ? Stored(HEED_FLOAT32, {c.heads})
                : c.decay == Decay::kToken ? Stored(HEED_FLOAT32, scalars)
                                           : Stored(HEED_FLOAT32, keys, c.padding);
    const int64_t n = log_decay.count(),
                  step = c.decay == Decay::kChannel ? c.heads * c.dk : c.heads;
    for (int64_t i = 0; i < n; ++i) log_decay.set(i, -2 * uniform(random) * c.log_decay);
    for (int64_t i = 0; i < n; ++i) {
      if (uniform(random) >= c.extreme) continue;
      const double kind = uniform(random);
      if (kind < 0.3) {
        log_decay.set(i, 0);
      } else if (kind < 0.7) {
        log_decay.set(i, -std::numeric_limits<double>::infinity());
      } else {
        for (int64_t j = i; j < n && j < i + 12 * step; j += step) log_decay.set(j, -8);
      }
    }
  }
  if (c.bonus) bonus = fill({c.heads, c.dk}, HEED_FLOAT32, 1);
  const std::vector<int64_t> state{states, c.heads, c.dk, c.dv};
  if (c.initial) {
    initial_state = Stored(HEED_FLOAT32, state);
    for (int64_t i = 0; i < initial_state.count(); ++i) initial_state.set(i, normal(random));
  }
  out = Stored(c.dtype, values, c.padding);
  final_state = Stored(HEED_FLOAT32, state);
  out64 = Stored(HEED_FLOAT64, values);
  final64 = Stored(HEED_FLOAT64, state);
}

ScanCall ScanRun::args() {
  ScanCall call;
  call.in = {q.view(),         k.view(),          v.view(),
             p.view(),         r.view(),          beta.view(),
             log_decay.view(), bonus.view(),      initial_state.view(),
             out.view(),       final_state.view()};
  if (!c.cu_seqlens.empty()) {
    call.head.cu_seqlens = c.cu_seqlens.data();
    call.head.sequences = static_cast<int64_t>(c.cu_seqlens.size()) - 1;
  }
  call.options = {1 / std::sqrt(static_cast<float>(c.dk)), c.read == Read::kBefore, c.chunk};
  return call;
}

ScanCall ScanRun::reference_args() {
  ScanCall reference = args();
  reference.in.out = out64.view();
  reference.in.final_state = final64.view();
  return reference;
}

ScanGradRun::ScanGradRun(ScanRun& run, bool with_final) {
  std::mt19937_64 random(run.c.seed + 1000);
  std::normal_distribution<double> normal;
  grad_out = Stored(run.c.dtype, run.out.sizes, run.c.padding);
  for (int64_t i = 0; i < grad_out.count(); ++i) grad_out.set(i, normal(random));
  if (with_final) {
    grad_final_state = Stored(HEED_FLOAT32, run.final_state.sizes);
    for (int64_t i = 0; i < grad_final_state.count(); ++i) {
      grad_final_state.set(i, 0.3 * normal(random));
    }
  }
  const Stored* inputs[9] = {&run.q,         &run.k,     &run.v,
                             &run.p,         &run.r,     &run.beta,
                             &run.log_decay, &run.bonus, &run.initial_state};
  for (const Stored* x : inputs) {
    results.push_back(x->sizes.empty() ? Stored() : Stored(HEED_FLOAT32, x->sizes));
    results64.push_back(x->sizes.empty() ? Stored() : Stored(HEED_FLOAT64, x->sizes));
  }
}

namespace {
ScanViews views_of(ScanGradRun& run, std::vector<Stored>& results) {
  ScanViews g = {};
  g.out = run.grad_out.view();
  g.final_state = run.grad_final_state.view();
  heed_view* views[9] = {
      &g.q, &g.k, &g.v, &g.p, &g.r, &g.beta, &g.log_decay, &g.bonus, &g.initial_state};
  for (int i = 0; i < 9; ++i) *views[i] = results[i].view();
  return g;
}
}  // namespace

ScanViews ScanGradRun::grads() { return views_of(*this, results); }
ScanViews ScanGradRun::reference_grads() { return views_of(*this, results64); }

namespace {

heed_message said = {};

heed_status run(const ScanCall& call, int32_t pass, const heed_parallel* parallel) {
  CallSizes sizes;
  const heed_status status = check_call(kScan, &call, pass, CallDtypes::kKernel, &sizes, &said);
  if (status != HEED_OK) return status;
  const heed_backend& row = scan_backends()[0];
  std::vector<char> workspace(row.workspace(&call, pass, parallel_threads(parallel)), 0x7f);
  return row.run(&call, pass, workspace.data(), nullptr, parallel, &said);
}

}  // namespace

heed_status scan_forward(const ScanCall& call, const heed_parallel* parallel) {
  return run(call, HEED_FORWARD, parallel);
}
heed_status scan_step(const ScanCall& call, const heed_parallel* parallel) {
  return run(call, HEED_STEP, parallel);
}
heed_status scan_backward(ScanCall call, const ScanViews& grads, const heed_parallel* parallel) {
  call.grad = grads;
  return run(call, HEED_BACKWARD, parallel);
}
heed_status scan_reference(const ScanCall& call) {
  return kernel::scan_reference(call, HEED_FORWARD, &said);
}
heed_status scan_backward_reference(ScanCall call, const ScanViews& grads) {
  call.grad = grads;
  return kernel::scan_reference(call, HEED_BACKWARD, &said);
}
const char* scan_message() { return said.text; }

double relative_error(const std::vector<double>& x, const std::vector<double>& y) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    difference += (x[i] - y[i]) * (x[i] - y[i]);
    size += y[i] * y[i];
  }
  if (!(difference < std::numeric_limits<double>::infinity())) {
    return std::numeric_limits<double>::infinity();
  }
  return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

}  // namespace heed::kernel::test
