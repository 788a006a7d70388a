// Neighborhood attention on grids of one to three axes: what fna and gna share.
#pragma once

#include "kernel/attend/attend.h"
#include "mixer/registry.h"

namespace heed::mixer {

// Row, patterns and test card; `strided`: with the setting stride (gna).
void set_neighborhood_row(Card& card, bool strided);

// The core of that row.
NamedTensors neighborhood(const CoreCall& call);

// Causal in the order of the tokens where every axis is causal.
Causality neighborhood_causality(const Settings& settings);

// How many times fewer tiles of keys a tile of queries visits than all of them, where tiles begin
// at multiples of their sizes on every axis: by the tile of queries that visits most, and on
// average.
struct TileSpeedup {
  double worst, mean;
};
TileSpeedup tile_speedup(const std::vector<kernel::Axis>& axes, const std::vector<int64_t>& q_tile,
                         const std::vector<int64_t>& k_tile);

// The layer: options window (needed), dilation, causal and, strided, stride, by axis; Call::grid,
// or else the tokens as one axis. As causal self attention over one axis without dilation and
// strides it decodes from a ring of `window` rows.
std::unique_ptr<Layer> make_neighborhood_layer(const std::string& id, bool strided,
                                               const LayerConfig& config);

}  // namespace heed::mixer
