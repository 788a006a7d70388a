// Neighborhood attention on grids of one to three axes: what fna and gna share.
#pragma once

#include "mixer/registry.h"

namespace heed::mixer {

// Row, patterns and test card; `strided`: with the setting stride (gna).
void set_neighborhood_row(Card& card, bool strided);

// The core of that row.
NamedTensors neighborhood(const CoreCall& call);

// Causal in the order of the tokens where every axis is causal.
Causality neighborhood_causality(const Settings& settings);

}  // namespace heed::mixer
