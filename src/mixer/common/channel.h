// Channel layers that mixers bring along: they stand in the place of a model's MLP behind their
// mixer.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "mixer/layer.h"

namespace heed::mixer {

// Makes the channel layer for a mixer's options; null where they do not ask for one.
using MakeChannel = std::function<std::unique_ptr<Layer>(const LayerConfig&)>;

// Called where the mixer of this id is registered.
void add_channel(const std::string& id, MakeChannel make);
// Null: the mixer has no channel layer, or its options do not ask for it.
std::unique_ptr<Layer> make_channel(const std::string& id, const LayerConfig& config);

}  // namespace heed::mixer
