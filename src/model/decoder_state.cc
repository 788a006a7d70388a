// See decoder_state.h.
#include "model/decoder_state.h"

#include <fmt/format.h>

#include <string>

namespace heed {

template <typename F>
void DecoderState::each(F&& f) const {
  for (size_t l = 0; l < layers_.size(); ++l) {
    f(*layers_[l].mixer, fmt::format("layers.{}.", l));
    if (layers_[l].channel) f(*layers_[l].channel, fmt::format("layers.{}.channel.", l));
  }
}

std::unique_ptr<DecoderState> DecoderState::fork() const {
  std::vector<Layer> layers;
  for (const Layer& layer : layers_) {
    layers.push_back({layer.mixer->fork(), layer.channel ? layer.channel->fork() : nullptr});
  }
  return std::make_unique<DecoderState>(std::move(layers));
}

int64_t DecoderState::bytes() const {
  int64_t total = 0;
  each([&](const State& state, const std::string&) { total += state.bytes(); });
  return total;
}

bool DecoderState::can_truncate() const {
  bool can = true;
  each([&](const State& state, const std::string&) { can &= state.spec().can_truncate(); });
  return can;
}

bool DecoderState::dense_prefill() const {
  bool dense = false;
  each([&](const State& state, const std::string&) { dense |= state.spec().dense_prefill(); });
  return dense && length() == 0;
}

void DecoderState::truncate(int64_t length) {
  each([&](const State& state, const std::string&) { state.check_truncate(length); });
  each([&](State& state, const std::string&) { state.truncate(length); });
}

void DecoderState::save(NamedTensors& out) const {
  each([&](const State& state, const std::string& prefix) { state.save(out, prefix); });
}

void DecoderState::load(const NamedTensors& in) {
  each([&](State& state, const std::string& prefix) { state.load(in, prefix); });
}

}  // namespace heed
