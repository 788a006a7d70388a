// Training with all six engines from C++: outputs, and gradients of every input, compared with
// differences of the outputs. Tensors come in and go out as DLPack's, which PyTorch, NumPy, JAX and
// others share without a copy.
#include <heed/attend.h>
#include <heed/dlpack.h>
#include <heed/ewscan.h>
#include <heed/learn.h>
#include <heed/mix.h>
#include <heed/parallel.h>
#include <heed/pool.h>
#include <heed/scan.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int64_t kTokens = 30, kHeads = 2, kDim = 8, kChannels = 12;

void check(heed_status status, const char* message) {
  if (status != HEED_OK) throw std::runtime_error(message);
}

struct Deleter {
  void operator()(heed_dl_managed* tensor) const { tensor->deleter(tensor); }
};
using DlTensor = std::unique_ptr<heed_dl_managed, Deleter>;

// A contiguous float32 tensor that owns its numbers.
class Tensor {
 public:
  Tensor(const std::vector<int64_t>& sizes, float from, float to) {
    static std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(from, to);
    size_t count = 1;
    for (int64_t size : sizes) count *= static_cast<size_t>(size);
    numbers_ = std::make_shared<std::vector<float>>(count);
    for (float& x : *numbers_) x = uniform(random);
    view_.data = numbers_->data();
    view_.rank = static_cast<int32_t>(sizes.size());
    int64_t stride = 1;
    for (int i = view_.rank - 1; i >= 0; --i) {
      view_.sizes[i] = sizes[static_cast<size_t>(i)];
      view_.strides[i] = stride;
      stride *= view_.sizes[i];
    }
  }
  Tensor like() const {
    Tensor copy = *this;
    copy.numbers_ = std::make_shared<std::vector<float>>(numbers_->size());
    copy.view_.data = copy.numbers_->data();
    return copy;
  }
  // Out: whoever gets the tensor keeps the numbers alive until its deleter has run.
  DlTensor give() const {
    heed_dl_managed* tensor;
    char message[256];
    auto owner = std::make_unique<std::shared_ptr<std::vector<float>>>(numbers_);
    const auto release = [](void* p) {
      delete static_cast<std::shared_ptr<std::vector<float>>*>(p);
    };
    check(heed_view_to_dlpack(&view_, release, owner.get(), &tensor, message, sizeof message),
          message);
    owner.release();
    return DlTensor(tensor);
  }
  std::vector<float>& numbers() const { return *numbers_; }

 private:
  std::shared_ptr<std::vector<float>> numbers_;
  heed_view view_ = {};
};

// In: a view borrows what the tensor owns.
heed_view borrow(const DlTensor& tensor) {
  heed_view view;
  char message[256];
  check(heed_view_from_dlpack(tensor.get(), &view, message, sizeof message), message);
  return view;
}

// One engine: its inputs, its output, and its passes on views of them; `grads` holds a view for
// every input.
struct Engine {
  std::string name;
  std::vector<Tensor> inputs;
  std::vector<int64_t> out;
  std::function<void(const std::vector<heed_view>& inputs, heed_view out)> forward;
  std::function<void(const std::vector<heed_view>& inputs, heed_view out, heed_view grad_out,
                     const std::vector<heed_view>& grads)>
      backward;
};

heed_run run_of(heed_pass pass, char (&message)[256]) {
  heed_run run = {};
  run.struct_size = sizeof run;
  run.pass = pass;
  run.message = message;
  run.message_size = sizeof message;
  return run;
}

// An engine whose struct of tensors has the inputs named by `members`; call(tensors, grads, run).
template <class Tensors, class Call>
Engine engine(std::string name, std::vector<heed_view Tensors::*> members,
              std::vector<Tensor> inputs, std::vector<int64_t> out, Call call) {
  const auto fill = [members](const std::vector<heed_view>& views, heed_view result) {
    Tensors t = {};
    for (size_t i = 0; i < views.size(); ++i) t.*members[i] = views[i];
    t.out = result;
    return t;
  };
  Engine e{std::move(name), std::move(inputs), std::move(out), {}, {}};
  e.forward = [=](const std::vector<heed_view>& views, heed_view result) {
    char message[256] = "";
    const heed_run run = run_of(HEED_FORWARD, message);
    const Tensors t = fill(views, result);
    check(call(&t, static_cast<const Tensors*>(nullptr), &run), message);
  };
  e.backward = [=](const std::vector<heed_view>& views, heed_view result, heed_view grad_out,
                   const std::vector<heed_view>& grads) {
    char message[256] = "";
    const heed_run run = run_of(HEED_BACKWARD, message);
    const Tensors t = fill(views, result), g = fill(grads, grad_out);
    check(call(&t, &g, &run), message);
  };
  return e;
}

const std::vector<int64_t> kRows = {1, kTokens, kHeads, kDim}, kGate = {1, kTokens, kHeads};
const std::vector<int64_t> kInput = {1, kTokens, kChannels};

Engine attend() {
  Engine e{"attend", {{kRows, -1, 1}, {kRows, -1, 1}, {kRows, -1, 1}}, kRows, {}, {}};
  auto lse = std::make_shared<Tensor>(kGate, 0.0f, 0.0f);
  const auto tensors = [lse](const std::vector<heed_view>& x, heed_view out) {
    heed_attend_tensors t = {};
    t.q = x[0], t.k = x[1], t.v = x[2], t.out = out;
    t.lse = borrow(lse->give());
    return t;
  };
  heed_attend_options options;
  heed_attend_options_init(&options);
  e.forward = [=](const std::vector<heed_view>& x, heed_view out) {
    char message[256] = "";
    const heed_attend_tensors t = tensors(x, out);
    check(heed_attend_forward(&t, &options, nullptr, message, sizeof message), message);
  };
  e.backward = [=](const std::vector<heed_view>& x, heed_view out, heed_view grad_out,
                   const std::vector<heed_view>& grads) {
    char message[256] = "";
    const heed_attend_tensors t = tensors(x, out);
    heed_attend_gradients g = {};
    g.grad_out = grad_out, g.grad_q = grads[0], g.grad_k = grads[1], g.grad_v = grads[2];
    check(heed_attend_backward(&t, &g, &options, nullptr, message, sizeof message), message);
  };
  return e;
}

std::vector<Engine> engines() {
  using Scan = heed_scan_tensors;
  using Selective = heed_selective_scan_tensors;
  using Pool = heed_pool_tensors;
  using Learn = heed_learn_tensors;
  using Conv = heed_short_conv_tensors;
  const auto tensor = [](std::vector<int64_t> sizes, float from, float to) {
    return Tensor(sizes, from, to);
  };
  std::vector<Engine> all = {attend()};
  all.push_back(
      engine<Scan>("scan", {&Scan::q, &Scan::k, &Scan::v, &Scan::beta, &Scan::log_decay},
                   {tensor(kRows, -1, 1), tensor(kRows, -0.3f, 0.3f), tensor(kRows, -1, 1),
                    tensor(kGate, 0, 1), tensor(kGate, -0.2f, -0.01f)},
                   kRows, [](const Scan* t, const Scan* g, const heed_run* run) {
                     return heed_scan(t, g, nullptr, run);
                   }));
  all.push_back(engine<Selective>(
      "selective_scan",
      {&Selective::x, &Selective::dt, &Selective::A, &Selective::B, &Selective::C},
      {tensor(kInput, -1, 1), tensor(kInput, 0.01f, 0.2f), tensor({kChannels, kDim}, -2, -0.1f),
       tensor({1, kTokens, 1, kDim}, -1, 1), tensor({1, kTokens, 1, kDim}, -1, 1)},
      kInput, [](const Selective* t, const Selective* g, const heed_run* run) {
        return heed_selective_scan(t, g, nullptr, run);
      }));
  all.push_back(engine<Pool>("pool", {&Pool::q, &Pool::k, &Pool::v},
                             {tensor(kRows, 0.1f, 1), tensor(kRows, 0.1f, 1), tensor(kRows, -1, 1)},
                             kRows, [](const Pool* t, const Pool* g, const heed_run* run) {
                               heed_pool_options options;
                               heed_pool_options_init(&options);
                               options.a0 = 0, options.a1 = 1;
                               return heed_pool(t, g, &options, run);
                             }));
  all.push_back(engine<Learn>(
      "learn", {&Learn::q, &Learn::k, &Learn::v, &Learn::alpha, &Learn::eta, &Learn::theta},
      {tensor(kRows, -1, 1), tensor(kRows, -0.3f, 0.3f), tensor(kRows, -1, 1),
       tensor(kGate, 0.01f, 0.2f), tensor(kGate, 0.1f, 0.9f), tensor(kGate, 0.01f, 0.1f)},
      kRows, [](const Learn* t, const Learn* g, const heed_run* run) {
        heed_learn_options options;
        heed_learn_options_init(&options);
        options.chunk = 8;
        return heed_learn(t, g, &options, run);
      }));
  all.push_back(engine<Conv>(
      "short_conv", {&Conv::x, &Conv::weight, &Conv::bias},
      {tensor(kInput, -1, 1), tensor({kChannels, 4}, -1, 1), tensor({kChannels}, -1, 1)}, kInput,
      [](const Conv* t, const Conv* g, const heed_run* run) {
        const heed_short_conv_options silu = {0, 1};
        return heed_short_conv(t, g, &silu, run);
      }));
  return all;
}

double dot(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (size_t i = 0; i < a.numbers().size(); ++i) sum += double{a.numbers()[i]} * b.numbers()[i];
  return sum;
}

// The relative error of the gradients' length, which is the slope of the loss along them.
double slope_error(Engine& e) {
  std::vector<DlTensor> held;
  const auto hold = [&](const Tensor& t) {
    held.push_back(t.give());
    return borrow(held.back());
  };
  std::vector<heed_view> inputs, grads;
  std::vector<Tensor> results;
  for (const Tensor& x : e.inputs) {
    inputs.push_back(hold(x));
    results.push_back(x.like());
    grads.push_back(hold(results.back()));
  }
  const Tensor out(e.out, 0, 0), weights(e.out, -1, 1);  // the loss: their product's sum
  const heed_view out_view = hold(out), weight_view = hold(weights);
  e.forward(inputs, out_view);
  e.backward(inputs, out_view, weight_view, grads);
  double squares = 0;
  for (const Tensor& g : results) squares += dot(g, g);
  const double length = std::sqrt(squares);
  const auto loss_at = [&](double step) {
    std::vector<std::vector<float>> kept;
    for (size_t i = 0; i < e.inputs.size(); ++i) {
      std::vector<float>& x = e.inputs[i].numbers();
      kept.push_back(x);
      for (size_t j = 0; j < x.size(); ++j) {
        x[j] += static_cast<float>(step / length * results[i].numbers()[j]);
      }
    }
    e.forward(inputs, out_view);
    for (size_t i = 0; i < e.inputs.size(); ++i) e.inputs[i].numbers() = kept[i];
    return dot(out, weights);
  };
  const double step = 5e-3, difference = (loss_at(step) - loss_at(-step)) / (2 * step);
  return std::abs(length - difference) / difference;
}

}  // namespace

int main() try {
  bool right = true;
  for (Engine& e : engines()) {
    const double error = slope_error(e);
    std::printf("embed_cc: %-14s slope of the gradients, relative error %.1e\n", e.name.c_str(),
                error);
    right = right && error < 1e-4;
  }
  heed_attend_release();
  return right ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "embed_cc: %s\n", e.what());
  return 1;
}
