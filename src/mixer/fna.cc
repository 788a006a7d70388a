// Neighborhood attention: every query sees a window around its place on a grid of one to three
// axes, shifted inward at borders; dilated, or causal by axis. Hassani et al., "Faster Neighborhood
// Attention", arXiv 2403.04690.
#include "mixer/common/neighborhood.h"

namespace heed::mixer {

void register_fna(Registry& registry) {
  Mechanism m;
  m.card.id = "fna";
  m.card.equations =
      "on each axis, among places of one group i mod dilation: start = clamp(u - w div 2, 0, "
      "n-w),\n"
      "keys start .. start+w-1; causal axis: keys max(u-w+1, 0) .. u\n"
      "out_i = softmax over keys seen on every axis, and extra keys";
  set_neighborhood_row(m.card, false);
  m.card.try_line =
      "heed apply fna --in IN.safetensors --out OUT.safetensors --set grid=6x6 --set window=3x4";
  m.core = neighborhood;
  m.causality = neighborhood_causality;
  m.layer = [](const LayerConfig& config) { return make_neighborhood_layer("fna", false, config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
