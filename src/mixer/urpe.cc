// Universal relative position encoding: softmax attention with a bias by distance, its weights
// multiplied by a learned factor by distance and not normalised again. Luo et al., "Your
// Transformer May Not be as Powerful as You Expect", arXiv 2205.13401 (eq. 8).
#include <ATen/ATen.h>

#include "mixer/common/attend_core.h"

namespace heed::mixer {
namespace {

NamedTensors core(const CoreCall& call) {
  const bool relu = call.settings.is("c_act", "relu");
  op::AttendOptions options;
  options.weight = kernel::Weight::kUrpe;
  options.causal = call.settings.flag("causal");
  options.scale = call.settings.number("scale");
  options.relative_bias = call.get("b");
  options.relative_scale = relu ? at::relu(call.get("c")) : call.get("c");
  if (const at::Tensor mask = call.get("key_mask"); mask.defined()) {
    const at::Tensor zero = at::zeros(mask.sizes(), mask.options().dtype(at::kFloat));
    options.key_bias = zero.masked_fill(mask.eq(0), -std::numeric_limits<double>::infinity())
                           .unsqueeze(2)
                           .expand({mask.size(0), mask.size(1), call.get("q").size(2)});
  }
  return {{"out", std::get<0>(run_attend(call, options))}};
}

}  // namespace

void register_urpe(Registry& registry) {
  Mechanism m;
  m.card.id = "urpe";
  m.card.equations =
      "p = softmax_j(scale q_i.k_j + b[h, P-1 + j - p_i])\n"
      "out_i = sum_j c_act(c[h, P-1 + j - p_i]) p_ij v_j";
  m.card.patterns = "causal self, noncausal self, causal cross, noncausal cross";
  m.card.state_size = "Hk (D+Dv) Tk";
  m.card.apply.inputs = {token("q", "B,Tq,Hq,D"),       token("k", "B,Tk,Hk,D"),
                         token("v", "B,Tk,Hk,Dv"),      gate("c", "Hq,2 P-1"),
                         gate("b", "Hq,2 P-1").maybe(), index("key_mask", "B,Tk", "2").maybe()};
  m.card.apply.settings = {word_setting("c_act", {"none", "relu"}), flag_setting("causal", false),
                           scale_setting("1/sqrt(D)")};
  m.card.apply.outputs = {output("out", "B,Tq,Hq,Dv")};
  m.card.apply.forms = {"parallel", "naive", {"recurrent", "causal=true"}};
  m.card.tests.queries = "Tq", m.card.tests.keys = "Tk";
  m.card.tests.heads = {"Hq", "Hk"};
  m.card.tests.sizes = {{"Hq", 4}, {"Hk", 2}, {"D", 9}, {"Dv", 6}, {"P", 200}};
  m.card.tests.large = {{"D", 64}, {"Dv", 64}, {"P", 4096}};
  m.core = core;
  registry.add(std::move(m));
}

}  // namespace heed::mixer
