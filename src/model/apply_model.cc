// See apply_model.h.
#include "model/apply_model.h"

#include <ATen/ATen.h>

#include "io/progress.h"

namespace heed {
namespace {

// The likeliest id of float32 scores [B, V]; the lowest on a tie.
std::vector<int64_t> likeliest(const at::Tensor& scores) {
  const at::Tensor best = scores == std::get<0>(scores.max(-1, true));
  const at::Tensor first = best.to(at::kByte).argmax(-1).to(at::kCPU);
  return {first.const_data_ptr<int64_t>(), first.const_data_ptr<int64_t>() + first.numel()};
}

}  // namespace

NamedTensors apply_model(const Decoder& model, const at::Tensor& ids,
                         const ApplyModelOptions& options) {
  const at::NoGradGuard no_grad;
  if (ids.scalar_type() != at::kLong || ids.dim() != 2 || ids.size(0) < 1 || ids.size(1) < 1) {
    throw UsageError("input_ids must be int64 [B, T] with B and T at least 1");
  }
  const int64_t batch = ids.size(0), length = ids.size(1);
  if (options.greedy < 0) throw UsageError("greedy is {}, 0 or more was expected", options.greedy);
  const int64_t prefill = options.prefill > 0 ? options.prefill : std::max<int64_t>(length / 2, 1);
  if (prefill > length) {
    throw UsageError("prefill is {}, but there are {} tokens", prefill, length);
  }
  StateOptions state_options;
  state_options.kv_dtype = model.options().dtype;
  state_options.programs = options.programs;
  std::vector<std::unique_ptr<DecoderState>> states;
  std::vector<DecoderState*> pointers;
  if (options.cache || options.greedy > 0) {
    for (int64_t b = 0; b < batch; ++b) {
      states.push_back(model.make_state(state_options));
      pointers.push_back(states.back().get());
    }
  }
  const auto with_states = [&](const at::Tensor& part) {
    Pass pass;
    pass.states = pointers;
    return model.forward(part, pass).to(at::kCPU, at::kFloat);
  };

  NamedTensors out;
  if (options.cache) {
    std::vector<at::Tensor> parts = {with_states(ids.narrow(1, 0, prefill))};
    for (int64_t t = prefill; t < length; ++t) {
      check_interrupted();
      parts.push_back(with_states(ids.narrow(1, t, 1)));
    }
    out["logits"] = at::cat(parts, 1);
  } else if (options.greedy > 0) {
    out["logits"] = with_states(ids);
  } else {
    Pass pass;
    pass.programs = options.programs;
    out["logits"] = model.forward(ids, pass).to(at::kCPU, at::kFloat);
  }
  if (options.greedy > 0) {
    at::Tensor tokens = at::empty({batch, options.greedy}, at::kLong);
    at::Tensor scores = out["logits"].select(1, length - 1);
    for (int64_t n = 0; n < options.greedy; ++n) {
      check_interrupted();
      const at::Tensor next = at::tensor(likeliest(scores), at::kLong).unsqueeze(1);
      tokens.narrow(1, n, 1).copy_(next);
      if (n + 1 < options.greedy) scores = with_states(next).select(1, 0);
    }
    out["tokens"] = tokens;
  }
  return out;
}

}  // namespace heed
