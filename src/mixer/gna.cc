// Generalized neighborhood attention: windows that move in strides, so that the queries of a stride
// share one; stride 1 is sliding, stride = window blocked attention. Hassani et al., "Generalized
// Neighborhood Attention", arXiv 2504.16922.
#include "mixer/common/neighborhood.h"

namespace heed::mixer {

void register_gna(Registry& registry) {
  Mechanism m;
  m.card.id = "gna";
  m.card.equations =
      "leader e = min((u div s) s + s div 2, n-1), start = clamp(e - w div 2, 0, n-w), w keys;\n"
      "causal axis: e = min((u div s) s + s-1, n-1), keys max(e-w+1, 0) .. u\n"
      "out_i = softmax over keys seen on every axis, and extra keys";
  set_neighborhood_row(m.card, true);
  m.card.try_line =
      "heed apply gna --in IN.safetensors --out OUT.safetensors --set grid=6x6 --set window=4x3 "
      "--set stride=2x3";
  m.core = neighborhood;
  m.causality = neighborhood_causality;
  m.layer = [](const LayerConfig& config) { return make_neighborhood_layer("gna", true, config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
