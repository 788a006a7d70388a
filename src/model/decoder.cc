// The decoder as a composition; see decoder.h. Reading of weights is in decoder_io.cc, writing in
// save.cc.
#include "model/decoder.h"

#include <ATen/ATen.h>

#include <optional>

#include "io/progress.h"
#include "nn/few_rows.h"

namespace heed {

using mixer::Taps;

int64_t Decoder::state_bytes(int64_t tokens, const StateOptions& options) const {
  return trunk_.state_bytes(tokens, options);
}

std::unique_ptr<DecoderState> Decoder::make_state(const StateOptions& options) const {
  return trunk_.make_state(options);
}

at::Tensor Decoder::hidden(const at::Tensor& ids, Pass& pass) const {
  embedding_.check(ids);
  // Caches are written in place: with states there is nothing to differentiate.
  const at::AutoGradMode mode(at::GradMode::is_enabled() && pass.states.empty());
  std::vector<int64_t> past;
  for (const DecoderState* state : pass.states) past.push_back(state->length());
  mixer::Layout layout = mixer::Layout::of(ids, pass.cu_seqlens, past);
  if (layout.end > context_) {
    throw UsageError("a sequence of {} tokens is longer than the model's context of {}", layout.end,
                     context_);
  }
  const at::Tensor x = tapped(pass.taps, -1, "embed", embedding_.forward(ids, layout));
  return trunk_.forward(x, layout, pass);
}

at::Tensor Decoder::scores(std::span<const int64_t> ids,
                           std::span<DecoderState* const> states) const {
  std::optional<FewRowsScope> several;
  if (ids.size() > 1) several.emplace();
  return logits(step(ids, states))[0];
}

at::Tensor Decoder::logits(const at::Tensor& hidden, Taps* taps) const {
  return tapped(taps, -1, "logits", head_.forward(hidden, embedding_));
}

at::Tensor Decoder::forward(const at::Tensor& ids, Pass& pass) const {
  return logits(hidden(ids, pass), pass.taps);
}

at::Tensor Decoder::prefill(std::span<const int64_t> ids, DecoderState& state, int64_t chunk,
                            Taps* taps) const {
  if (ids.empty()) throw UsageError("there is no token to feed to the model");
  // A dense prefill sees the whole prompt in one pass.
  const bool whole = state.dense_prefill();
  const int64_t size = whole ? static_cast<int64_t>(ids.size()) : std::max<int64_t>(chunk, 1);
  at::Tensor last;
  for (int64_t begin = 0; begin < static_cast<int64_t>(ids.size()); begin += size) {
    check_interrupted();
    const int64_t count = std::min<int64_t>(size, static_cast<int64_t>(ids.size()) - begin);
    const at::Tensor part =
        at::tensor(at::ArrayRef<int64_t>(ids.data() + begin, static_cast<size_t>(count)), at::kLong)
            .unsqueeze(0);
    Pass pass;
    pass.states = {&state};
    pass.taps = taps;
    last = hidden(part, pass).narrow(1, count - 1, 1);
  }
  return last;
}

at::Tensor Decoder::step(std::span<const int64_t> ids,
                         std::span<DecoderState* const> states) const {
  Pass pass;
  pass.states.assign(states.begin(), states.end());
  pass.cu_seqlens.resize(ids.size() + 1);
  for (size_t i = 0; i <= ids.size(); ++i) pass.cu_seqlens[i] = static_cast<int64_t>(i);
  return hidden(at::tensor(at::ArrayRef<int64_t>(ids.data(), ids.size()), at::kLong).unsqueeze(0),
                pass);
}

}  // namespace heed
