// The operators of the engine `ewscan` through op/dispatch: kernels against the naive forms in
// float64, gradients, packs, steps, the dispatcher, Meta, and what a call that no backend takes
// says.
#include "op/ewscan.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "io/error.h"

namespace heed::op {
namespace ewscan_test {

using at::Tensor;

double error(const Tensor& y, const Tensor& reference) {
  if (y.numel() == 0) return 0;
  // A maximum over nothing is -inf on both sides.
  const Tensor finite = reference.isfinite();
  if (!y.isfinite().equal(finite)) return std::numeric_limits<double>::infinity();
  const Tensor a = y.to(at::kDouble).masked_select(finite);
  const Tensor b = reference.to(at::kDouble).masked_select(finite);
  const double norm = b.norm().item<double>(), e = a.sub(b).norm().item<double>();
  return std::isnan(e) ? std::numeric_limits<double>::infinity() : e / (norm > 0 ? norm : 1);
}

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Case {
  std::string name;
  const Engine* engine;
  std::vector<Tensor> x;  // in the order of the list
  int64_t option = 0;     // each engine has at most one
};

Tensor decays(at::IntArrayRef shape) {
  const Tensor pick = at::rand(shape);
  return at::rand(shape).mul(-0.3).masked_fill(pick.gt(0.95), -kInf).masked_fill(pick.lt(0.1), 0);
}

std::vector<Case> cases(int64_t batch, int64_t tokens, int64_t states) {
  const int64_t c = 12, k = 5, h = 3, v = 7;
  at::manual_seed(3);
  std::vector<Case> list;
  EwscanTensors plain = {
      decays({batch, tokens, c}), at::randn({batch, tokens, c}), {}, at::randn({states, c})};
  EwscanTensors pair = {at::rand({c}).mul(-0.3), at::randn({batch, tokens, c, 2}),
                        at::randn({batch, tokens, c, 2}).div(2), at::randn({states, c, 2})};
  SelectiveTensors selective = {at::randn({batch, tokens, c}),    at::randn({batch, tokens, c}),
                                at::randn({c, k}).exp().neg(),    at::randn({batch, tokens, 2, k}),
                                at::randn({batch, tokens, 2, k}), at::randn({c}),
                                at::randn({batch, tokens, c}),    at::randn({c}),
                                at::randn({states, c, k})};
  SelectiveTensors bare = {selective.x, selective.dt.abs().mul(0.1), selective.A,
                           selective.B.slice(2, 0, 1), selective.C.slice(2, 0, 1)};
  LseTensors lse = {at::randn({batch, tokens, h}).mul(3),
                    at::randn({batch, tokens, h, v}),
                    decays({batch, tokens, h}),
                    at::randn({states, h}),
                    at::randn({states, h, v}),
                    at::rand({states, h}).add(1)};
  LseTensors empty = {lse.score, lse.v};
  const auto add = [&](const char* name, const Engine& engine, auto& tensors, int64_t option) {
    const auto span = tensor_list(tensors);
    list.push_back({name, &engine, {span.begin(), span.end()}, option});
  };
  add("plain", ewscan_engine(), plain, 0);
  add("pairs", ewscan_engine(), pair, 0);
  add("selective", selective_scan_engine(), selective, 1);
  add("selective bare", selective_scan_engine(), bare, 0);
  add("lse", lse_scan_engine(), lse, 0);
  add("lse from nothing", lse_scan_engine(), empty, 0);
  return list;
}

size_t inputs_of(const Case& c) {
  size_t n = 0;
  for (const auto& field : c.engine->fields().tensors) n += kernel::is_input(field.role);
  return n;
}

std::vector<Tensor> as(const Case& c, at::ScalarType type, bool grad = false) {
  std::vector<Tensor> x = c.x;
  for (Tensor& t : x) {
    if (t.defined()) t = t.to(type).requires_grad_(grad);
  }
  return x;
}

// Gradients of all inputs for fixed random gradients of all outputs.
std::vector<Tensor> gradients(const Case& c, std::vector<Tensor> x, const std::vector<Tensor>& y) {
  std::vector<Tensor> wanted, outputs, incoming;
  at::manual_seed(8);
  for (size_t i = 0; i < x.size(); ++i) {
    if (i < inputs_of(c)) {
      if (x[i].defined()) wanted.push_back(x[i]);
    } else if (y[i].defined()) {
      incoming.push_back(at::randn(y[i].sizes()).to(y[i].scalar_type()));
      outputs.push_back(y[i]);
    }
  }
  return torch::autograd::grad(outputs, wanted, incoming, std::nullopt, false, true);
}

void expect_equal(const Case& c, const Tensor& offsets) {
  SCOPED_TRACE(c.name);
  std::vector<Tensor> fast = as(c, at::kFloat, true), wide = as(c, at::kDouble, true);
  std::vector<Tensor> y = fast, reference = wide;
  c.engine->forward(y, &c.option, offsets);
  c.engine->run_naive(reference, &c.option, offsets);
  for (size_t i = inputs_of(c); i < y.size(); ++i) {
    ASSERT_EQ(y[i].sizes(), reference[i].sizes());
    EXPECT_LE(error(y[i], reference[i]), 2e-6) << c.engine->fields().tensors[i].name;
  }
  const auto g = gradients(c, fast, y), g64 = gradients(c, wide, reference);
  for (size_t i = 0; i < g.size(); ++i) EXPECT_LE(error(g[i], g64[i]), 1e-5) << "gradient " << i;
}

TEST(EwscanOp, KernelsEqualTheNaiveFormsAndTheirGradients) {
  for (const int64_t tokens : {1, 2, 70}) {
    for (const Case& c : cases(2, tokens, 2)) expect_equal(c, {});
  }
}

TEST(EwscanOp, Packs) {
  const Tensor offsets = at::tensor({0, 5, 5, 40}, at::kLong);
  for (const Case& c : cases(1, 40, 3)) expect_equal(c, offsets);
}

TEST(EwscanOp, HalfPrecision) {
  for (const auto& [type, bound] : {std::pair(at::kBFloat16, 6e-3), std::pair(at::kHalf, 1e-3)}) {
    for (const Case& c : cases(2, 30, 2)) {
      SCOPED_TRACE(c.name);
      std::vector<Tensor> y = c.x;
      for (size_t i = 0; i < y.size(); ++i) {
        const bool token = c.engine->fields().tensors[i].role == kernel::Role::kToken;
        if (token && y[i].defined()) y[i] = y[i].to(type);
      }
      std::vector<Tensor> reference = y;
      for (Tensor& t : reference) {
        if (t.defined()) t = t.to(at::kDouble);
      }
      c.engine->forward(y, &c.option, {});
      c.engine->run_naive(reference, &c.option, {});
      const size_t out = inputs_of(c);
      EXPECT_EQ(y[out].scalar_type(), type);
      EXPECT_EQ(y[out + 1].scalar_type(), at::kFloat);
      EXPECT_LE(error(y[out], reference[out]), bound);
    }
  }
}

TEST(EwscanOp, StepsEqualOnePass) {
  for (const Case& c : cases(2, 9, 2)) {
    SCOPED_TRACE(c.name);
    if (c.name == "selective bare" || c.name == "lse from nothing") continue;  // no state is given
    const auto& fields = c.engine->fields();
    std::vector<Tensor> whole = c.x, state(c.x.size());
    c.engine->forward(whole, &c.option, {});
    std::vector<Tensor> outs;
    for (int64_t t = 0; t < 9; ++t) {
      std::vector<Tensor> one = c.x;
      for (size_t i = 0; i < one.size(); ++i) {
        if (!one[i].defined()) continue;
        if (fields.tensors[i].role == kernel::Role::kState) {
          if (t == 0) state[i] = one[i].clone();
          one[i] = state[i];
        } else if (std::string_view(fields.tensors[i].shape).starts_with("B,T") &&
                   one[i].dim() > 2) {
          one[i] = one[i].slice(1, t, t + 1);
        }
      }
      c.engine->step(one, &c.option);
      outs.push_back(one[inputs_of(c)]);
    }
    EXPECT_LE(error(at::cat(outs, 1), whole[inputs_of(c)]), 1e-6);
    size_t final = inputs_of(c) + 1;
    for (const Tensor& s : state) {
      if (!s.defined()) continue;
      EXPECT_LE(error(s, whole[final++]), 1e-6);
    }
  }
}

TEST(EwscanOp, ThroughTheDispatcher) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("heed::selective_scan", "");
  for (const auto device : {at::kCPU, at::kMeta}) {
    std::vector<c10::IValue> stack;
    const Case c = cases(2, 6, 2)[2];
    SelectiveTensors y;
    std::copy(c.x.begin(), c.x.end(), tensor_list(y).begin());
    for (const auto& argument : op.schema().arguments()) {
      const int i = kernel::kSelectiveScan.find(argument.name());
      if (i >= 0) {
        stack.emplace_back(c.x[i].to(device));
      } else {
        stack.push_back(argument.name() == "dt_softplus" ? c10::IValue(true)
                                                         : *argument.default_value());
      }
    }
    op.callBoxed(stack);
    y = selective_scan(y, {1});
    ASSERT_EQ(stack.size(), 2u);
    EXPECT_EQ(stack[0].toTensor().sizes(), y.out.sizes());
    EXPECT_EQ(stack[1].toTensor().sizes(), y.final_state.sizes());
    if (device != at::kCPU) continue;
    EXPECT_TRUE(stack[0].toTensor().equal(y.out));
  }
}

// A backend that refuses leaves the call to the next; the reason is there to be shown.
TEST(EwscanOp, BackendsByPriorityAndReason) {
  static int runs = 0;
  const heed_backend& cpu = kernel::ewscan_backends()[0];
  static heed_backend picky;
  picky = cpu;
  picky.name = "picky";
  picky.priority = 200;
  picky.refuses = [](const void* call, int32_t) -> const char* {
    return static_cast<const kernel::EwscanCall*>(call)->in.x.rank == 4 ? "no pairs" : nullptr;
  };
  picky.run = [](const void* call, int32_t pass, void* workspace, void* stream,
                 const heed_parallel* parallel, heed_message* message) {
    ++runs;
    return kernel::ewscan_backends()[0].run(call, pass, workspace, stream, parallel, message);
  };
  Engine engine(kernel::kEwscan, naive_of<kernel::EwscanCall, naive::ewscan>,
                kernel::ewscan_backends());
  engine.add(picky);
  EXPECT_STREQ(engine.backends()[0]->name, "picky");
  const auto list = cases(2, 6, 2);
  std::vector<Tensor> real = list[0].x, pair = list[1].x;
  engine.forward(real, &list[0].option, {});
  EXPECT_EQ(runs, 1);
  engine.forward(pair, &list[1].option, {});
  EXPECT_EQ(runs, 1);
  EXPECT_TRUE(pair[4].defined());
}

int recorded = 0;
void counted(EwscanTensors& x, const kernel::NoOptions& options) {
  ++recorded;
  naive::ewscan(x, options);
}
const char* no_backward(const void*, int32_t pass) {
  return pass == HEED_BACKWARD ? "it has no backward pass" : nullptr;
}

// A row made of PyTorch's operators runs before those of lower priority, and autograd records it:
// no backward pass of the table is asked for.
TEST(Engines, RowOfTensorOperators) {
  const Engine::TensorBackend row = {
      {sizeof(heed_backend), "ewscan", "tensors", HEED_CPU, 200, no_backward,
       [](const void*, int32_t, int32_t) -> int64_t { return 0; }, nullptr, nullptr},
      naive_of<kernel::EwscanCall, counted>};
  Engine engine(kernel::kEwscan, naive_of<kernel::EwscanCall, naive::ewscan>,
                kernel::ewscan_backends(), {&row, 1});
  EXPECT_STREQ(engine.backends()[0]->name, "tensors");
  const Tensor decay = at::rand({2, 9, 5}).neg(), x = at::randn({2, 9, 5});
  const auto run = [&](const Engine& by, Tensor a, Tensor b) {
    EwscanTensors t;
    t.log_decay = std::move(a), t.x = std::move(b);
    by.forward(tensor_list(t), nullptr, {});
    return t;
  };
  const Tensor plain = run(engine, decay, x).out;
  EXPECT_EQ(recorded, 1);
  EXPECT_LE(error(plain, run(ewscan_engine(), decay, x).out), 2e-6);
  const Tensor a = decay.clone().requires_grad_(), b = x.clone().requires_grad_();
  run(engine, a, b).out.square().sum().backward();
  EXPECT_EQ(recorded, 2);  // once more: the backward pass runs nothing again
  const Tensor c = decay.clone().requires_grad_(), d = x.clone().requires_grad_();
  run(ewscan_engine(), c, d).out.square().sum().backward();
  EXPECT_LE(error(a.grad(), c.grad()), 1e-5);
  EXPECT_LE(error(b.grad(), d.grad()), 1e-5);
  // A pack is taken apart for it.
  const Tensor offsets = at::tensor({0, 4, 4, 9}, at::kLong);
  EwscanTensors pack, whole;
  pack.log_decay = whole.log_decay = decay.slice(0, 0, 1);
  pack.x = whole.x = x.slice(0, 0, 1);
  engine.forward(tensor_list(pack), nullptr, offsets);
  ewscan_engine().forward(tensor_list(whole), nullptr, offsets);
  EXPECT_LE(error(pack.out, whole.out), 2e-6);
  EXPECT_LE(error(pack.final_state, whole.final_state), 2e-6);
}

TEST(EwscanOp, SaysWhatDoesNotFit) {
  const Case c = cases(2, 6, 2)[2];
  const auto message = [&](const std::function<void(SelectiveTensors&)>& change) {
    SelectiveTensors x;
    std::copy(c.x.begin(), c.x.end(), tensor_list(x).begin());
    change(x);
    try {
      selective_scan(x);
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string("nothing");
  };
  EXPECT_EQ(message([](auto& x) { x.C = x.C.slice(3, 0, 4); }),
            "selective_scan: C has shape [2,6,2,4], expected [B,T,G,K] = [2,6,2,5]");
  EXPECT_EQ(message([](auto& x) { x.A = Tensor(); }), "selective_scan: A [C,K] is missing");
  EXPECT_EQ(message([](auto& x) { x.z = x.z.to(at::kHalf); }),
            "selective_scan: z is float16, but x is float32");
  EXPECT_EQ(message([](auto& x) {
              x.B = x.C = at::randn({2, 6, 5, 5});
            }),
            "selective_scan: B has 5 groups, expected a divisor of the 12 channels of x");
}

}  // namespace ewscan_test
}  // namespace heed::op
