// Multi-head latent attention: keys and values of all heads come from one latent vector a token,
// beside a rotated key that the heads share. DeepSeek-AI, "DeepSeek-V2", arXiv 2405.04434
// (eqs. 9-19). Absorbed, the queries go to the latent space: one KV head of width Dc + Dr whose
// values are the latents themselves.
#include <ATen/ATen.h>

#include "mixer/common/attend_core.h"
#include "mixer/common/dense_attention.h"

namespace heed::mixer {
namespace {

// [B,T,Dc] through [H,N,Dc] -> [B,T,H,N]
at::Tensor expand(const at::Tensor& latent, const at::Tensor& weight) {
  return at::einsum("btc,hnc->bthn", {latent, weight});
}

NamedTensors core(const CoreCall& call) {
  const at::Tensor q_nope = call.get("q_nope"), q_rope = call.get("q_rope");
  const at::Tensor c = call.get("c"), k_rope = call.get("k_rope");
  const at::ScalarType type = q_nope.scalar_type(), wide = dense_type(q_nope);
  const at::Tensor w_uk = call.get("w_uk").to(wide), w_uv = call.get("w_uv").to(wide);
  const int64_t heads = q_nope.size(2), width = q_nope.size(3) + q_rope.size(3);
  op::AttendOptions options;
  options.causal = true;
  options.scale = call.settings.number("scale", 1 / std::sqrt(static_cast<double>(width)));
  const auto attend = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    if (call.form == "parallel") return std::get<0>(op::attend(q, k, v, options));
    const at::Tensor visible = dense_visible(q.size(1), k.size(1), true, q.device());
    return dense_values(dense_softmax(dense_logits(q, k, *options.scale), visible).first, v);
  };
  if (call.settings.flag("absorbed")) {
    const at::Tensor q = at::einsum("bthn,hnc->bthc", {q_nope.to(wide), w_uk});
    const at::Tensor keys = at::cat({c, k_rope}, 2).to(wide).unsqueeze(2);
    const at::Tensor mixed =
        attend(at::cat({q, q_rope.to(wide)}, 3), keys, c.to(wide).unsqueeze(2));
    return {{"out", at::einsum("bthc,hvc->bthv", {mixed, w_uv}).to(type)}};
  }
  const at::Tensor k_nope = expand(c.to(wide), w_uk).to(type);
  const at::Tensor shared =
      k_rope.unsqueeze(2).expand({k_rope.size(0), k_rope.size(1), heads, k_rope.size(2)});
  const at::Tensor v = expand(c.to(wide), w_uv).to(type);
  return {{"out", attend(at::cat({q_nope, q_rope}, 3), at::cat({k_nope, shared}, 3), v)}};
}

}  // namespace

void register_mla(Registry& registry) {
  Mechanism m;
  m.card.id = "mla";
  m.card.equations =
      "k_j = [w_uk c_j, k_rope_j],  v_j = w_uv c_j\n"
      "out_i = sum_{j<=i} softmax_j(scale [q_nope_i, q_rope_i].k_j) v_j";
  m.card.state_size = "(Dc+Dr) T";
  m.card.apply.inputs = {token("q_nope", "B,T,H,Dn"),
                         token("q_rope", "B,T,H,Dr"),
                         token("c", "B,T,Dc"),
                         token("k_rope", "B,T,Dr"),
                         gate("w_uk", "H,Dn,Dc", Sample::kKey),
                         gate("w_uv", "H,V,Dc", Sample::kKey)};
  m.card.apply.settings = {scale_setting("(Dn+Dr)^-0.5"), flag_setting("absorbed", false)};
  m.card.apply.outputs = {output("out", "B,T,H,V")};
  m.card.apply.forms = {"parallel", "naive"};
  m.card.tests.sizes = {{"H", 3}, {"Dn", 6}, {"Dr", 4}, {"Dc", 9}, {"V", 5}};
  m.card.tests.large = {{"Dn", 32}, {"Dr", 16}, {"Dc", 64}, {"V", 32}};
  m.core = core;
  registry.add(std::move(m));
}

}  // namespace heed::mixer
