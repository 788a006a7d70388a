// Checks of the engine's calls, and its row in the table of backends.
#include "kernel/learn/problem.h"

#include <algorithm>

#include "kernel/parallel.h"

namespace heed::kernel {
namespace {

const char* wrong_options(const LearnCall& call, int32_t pass) {
  const auto& x = call.in;
  const LearnOptions& o = call.options;
  if (o.chunk < 1) return "chunk must be at least 1";
  if (given(x.gain) && (given(x.alpha) || given(x.eta))) {
    return "gain does not go with alpha or eta";
  }
  if (o.bias && given(x.eta)) return "bias does not go with eta";
  if (o.norm && (!given(x.norm_weight) || !given(x.norm_bias))) {
    return "norm needs norm_weight and norm_bias";
  }
  if (!o.norm && (given(x.norm_weight) || given(x.norm_bias))) {
    return "norm_weight and norm_bias need norm";
  }
  if (given(x.initial_momentum) && !given(x.eta)) return "initial_momentum needs eta";
  if ((given(x.initial_bias) || given(x.initial_running_bias)) && !o.bias) {
    return "initial_bias needs bias";
  }
  const bool open = given(x.initial_position);
  if (open != given(x.initial_running) || (open && o.bias) != given(x.initial_running_bias)) {
    return "initial_position, initial_running and, with bias, initial_running_bias go together";
  }
  if (pass == HEED_STEP) {
    if (!given(x.initial_state)) return "a step needs initial_state";
    if (given(x.eta) && !given(x.initial_momentum)) return "a step with eta needs initial_momentum";
    if (o.bias && !given(x.initial_bias)) return "a step with bias needs initial_bias";
    const heed_view *initial = &x.initial_state, *final = &x.final_state;
    for (int i = 0; i < 6; ++i) {  // the lists of both have one order
      if (given(final[i]) && final[i].data != initial[i].data) {
        return "a step updates the initial states: the final ones are the same memory, or absent";
      }
    }
    // Without a gain a chunk of one token leaves what is running.
    if (!open && (o.chunk > 1 || given(x.gain))) {
      return "a step inside chunks, or with a gain, needs initial_position";
    }
  }
  if (open && !given(x.initial_state)) return "initial_position needs initial_state";
  return nullptr;
}

}  // namespace

heed_status check_learn(const LearnCall& call, int32_t pass, CallDtypes dtypes,
                        LearnProblem* problem, heed_message* message) {
  CallSizes sizes;
  const heed_status status = check_call(kLearn, &call, pass, dtypes, &sizes, message);
  if (status != HEED_OK) return status;
  if (const char* wrong = wrong_options(call, pass)) {
    return call_fail(kLearn, HEED_INVALID_ARGUMENT, message, "%s", wrong);
  }
  LearnProblem p;
  const heed_view* views = call_views(kLearn, static_cast<const void*>(&call));
  const heed_view* grads = call_grads(kLearn, static_cast<const void*>(&call));
  for (size_t i = 0; i < std::size(kLearnTensors); ++i) {
    reinterpret_cast<Strided*>(&p.in)[i] = Strided(views[i]);
    reinterpret_cast<Strided*>(&p.grad)[i] = Strided(grads[i]);
  }
  p.time = sizes["T"], p.heads = sizes["H"], p.dk = sizes["K"], p.dv = sizes["V"];
  p.sequences = sizes["N"];
  p.cu_seqlens = call.head.cu_seqlens;
  p.norm = call.options.norm != 0, p.bias = call.options.bias != 0;
  p.momentum = given(call.in.eta), p.open = given(call.in.initial_position) && p.sequences > 0;
  p.scale = static_cast<float>(call.options.scale), p.eps = call.options.eps;
  p.chunk = call.options.chunk;
  for (int64_t n = 0; n < p.sequences; ++n) {
    p.longest = std::max(p.longest, p.span(n).length);
    const int64_t position = p.position(n);
    if (position < 0 || position >= p.chunk) {
      return call_fail(kLearn, HEED_INVALID_ARGUMENT, message,
                       "initial_position of sequence %lld is %lld, outside a chunk of %lld",
                       static_cast<long long>(n), static_cast<long long>(position),
                       static_cast<long long>(p.chunk));
    }
  }
  p.tile = std::clamp<int64_t>(p.longest, 1, p.chunk);
  *problem = p;
  return HEED_OK;
}

namespace {

int64_t floats_of(const LearnProblem& s, int32_t pass) {
  if (pass == HEED_BACKWARD) return learn_backward_floats(s);
  return pass == HEED_STEP ? learn_step_floats(s) : learn_forward_floats(s);
}

const char* refuses(const void* call, int32_t pass) {
  const auto& learn = *static_cast<const LearnCall*>(call);
  if (pass == HEED_BACKWARD && given(learn.in.initial_position)) {
    return "it has no gradient from inside a chunk";
  }
  if (given(learn.grad.final_running) || given(learn.grad.final_running_bias)) {
    return "it takes the gradient of final_state alone";
  }
  return nullptr;
}

int64_t workspace(const void* call, int32_t pass, int32_t threads) {
  LearnProblem s;
  const auto& learn = *static_cast<const LearnCall*>(call);
  const heed_status status = check_learn(learn, pass, CallDtypes::kKernel, &s, nullptr);
  return status == HEED_OK ? Scratch{0, floats_of(s, pass)}.bytes(threads) : 0;
}

heed_status run(const void* call, int32_t pass, void* memory, void* /*stream*/,
                const heed_parallel* parallel, heed_message* message) {
  LearnProblem s;
  const auto& learn = *static_cast<const LearnCall*>(call);
  const heed_status status = check_learn(learn, pass, CallDtypes::kKernel, &s, message);
  if (status != HEED_OK) return status;
  const auto pass_of = pass == HEED_BACKWARD ? learn_backward
                       : pass == HEED_STEP   ? learn_step
                                             : learn_forward;
  pass_of(s, {{0, floats_of(s, pass)}, memory}, parallel);
  return HEED_OK;
}

}  // namespace

const heed_backend kLearnBackend = {
    sizeof(heed_backend), "learn", "cpu", HEED_CPU, 0, refuses, workspace, nullptr, run};

}  // namespace heed::kernel
