// Multi-head latent attention: keys and values of all heads come from one latent vector a token,
// beside a rotated key that the heads share. DeepSeek-AI, "DeepSeek-V2", arXiv 2405.04434
// (eqs. 9-19). Absorbed, the queries go to the latent space: one KV head of width Dc + Dr whose
// values are the latents themselves.
#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/attend_core.h"
#include "mixer/common/attention_layer.h"
#include "mixer/common/dense_attention.h"
#include "nn/norm.h"

namespace heed::mixer {
namespace {

// [B,T,Dc] through [H,N,Dc] -> [B,T,H,N]
at::Tensor expand(const at::Tensor& latent, const at::Tensor& weight) {
  return at::einsum("btc,hnc->bthn", {latent, weight});
}

NamedTensors mla_core(const CoreCall& call) {
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

// Names of parameters as in DeepSeek-V2's released code. Passes without states expand the latents;
// decoding goes through them, and the cache holds the latents and the rotated key alone.
class MlaLayer final : public AttentionLayer {
 public:
  explicit MlaLayer(const LayerConfig& config)
      : AttentionLayer("mla", config, kWindow | kRotation | kKeySet | kProjections) {
    const int64_t d = view().head_dim, heads = view().heads, c = config.hidden;
    nope_ = options_.integer("nope_dim", d);
    turned_ = options_.integer("rope_dim", std::max<int64_t>(d / 4 * 2, 2));
    value_ = options_.integer("v_dim", d);
    latent_ = options_.integer("kv_rank", 4 * d);
    const int64_t q_rank = options_.integer("q_rank", 0, 0);  // 0: one projection
    RopeConfig rope;
    rope.base = options_.positive("rope_theta", 10000);
    options_.close();
    if (turned_ % 2 != 0 || !(rope.base > 0)) {
      throw UsageError(
          "mixer mla: rope_dim is {}, rope_theta {}; expected an even number, and one "
          "above 0",
          turned_, rope.base);
    }
    constexpr int64_t kContext = 4096;
    rope_ = std::make_shared<Rope>(rope_frequencies(rope, turned_, kContext, 0), kContext);
    const auto ones = [](int64_t n) { return at::ones({n}, init_options()); };
    const int64_t q_size = heads * (nope_ + turned_);
    if (q_rank > 0) {
      params_.matrix(q_down_, "q_a_proj.weight", q_rank, c);
      params_.tensor(q_norm_, "q_a_layernorm.weight", ones(q_rank));
    }
    params_.matrix(q_, q_rank > 0 ? "q_b_proj.weight" : "q_proj.weight", q_size,
                   q_rank > 0 ? q_rank : c);
    params_.matrix(kv_down_, "kv_a_proj_with_mqa.weight", latent_ + turned_, c);
    params_.tensor(kv_norm_, "kv_a_layernorm.weight", ones(latent_));
    params_.matrix(kv_up_, "kv_b_proj.weight", heads * (nope_ + value_), latent_);
    HeadsView view;
    view.heads = heads, view.kv_heads = 1;
    view.head_dim = latent_ + turned_, view.value_dim = latent_;
    set_heads(view, heads * value_, config);
  }
  bool takes(Pattern pattern) const override { return pattern == Pattern::kCausalSelf; }
  StateSpec state(const StateRequest& request) const override {
    StateSpec spec = AttentionLayer::state(request);
    std::get<RowsPart>(spec.parts[0]).v_in_k = true;
    return spec;
  }
  int64_t flops(int64_t tokens) const override {  // expanded
    const int64_t pairs = tokens * (tokens + 1) / 2;
    return params_.flops(tokens) + 2 * pairs * view().heads * (nope_ + turned_ + value_);
  }

 protected:
  Heads project(const at::Tensor& x, Call& call, const Layout& layout) override {
    const int64_t rows = layout.batch * layout.length;
    const at::Tensor low =
        q_down_.defined() ? normalise(linear(x, q_down_), {q_norm_, {}, eps_}) : x;
    const at::Tensor q = linear(low, q_).view({rows, view().heads, nope_ + turned_});
    const at::Tensor kv = linear(x, kv_down_).view({rows, latent_ + turned_});
    const at::Tensor c = normalise(kv.slice(1, 0, latent_).contiguous(), {kv_norm_, {}, eps_});
    const RopeTables& angles = layout.rotation(*rope_, x.device());
    const at::Tensor q_nope = q.slice(2, 0, nope_);
    const at::Tensor q_rope = rotate(q.slice(2, nope_), angles.cos, angles.sin);
    const at::Tensor k_rope =
        rotate(kv.slice(1, latent_).unsqueeze(1), angles.cos, angles.sin);  // [rows,1,Dr]
    if (call.states.empty()) {
      const at::Tensor up = linear(c, kv_up_).view({rows, view().heads, nope_ + value_});
      const at::Tensor k =
          at::cat({up.slice(2, 0, nope_), k_rope.expand({rows, view().heads, turned_})}, 2);
      return {at::cat({q_nope, q_rope}, 2), k, up.slice(2, nope_), {}, {}, layout, call};
    }
    const at::Tensor absorbed = at::einsum("rhn,hnc->rhc", {q_nope, up(0, nope_)});
    const at::Tensor k = at::cat({c.unsqueeze(1), k_rope}, 2);
    return {at::cat({absorbed, q_rope}, 2), k, k.narrow(2, 0, latent_), {}, {}, layout, call};
  }

  op::AttendOptions options(const at::Tensor& x, const Heads& h) const override {
    op::AttendOptions options;
    options.scale = 1 / std::sqrt(static_cast<double>(nope_ + turned_));
    return options;
  }

  at::Tensor after(const at::Tensor& x, const at::Tensor& o, const Heads& h) override {
    if (h.call.states.empty()) return o;
    return at::einsum("rhc,hvc->rhv", {o, up(nope_, value_)});
  }

 private:
  // Rows of kv_b_proj by head, [H,rows,Dc]: absorbed, they are no product with x.
  at::Tensor up(int64_t first, int64_t rows) const {
    return kv_up_.data.view({view().heads, nope_ + value_, latent_}).narrow(1, first, rows);
  }

  int64_t nope_, turned_, value_, latent_;
  Weight q_down_, q_, kv_down_, kv_up_;
  at::Tensor q_norm_, kv_norm_;
};

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
  m.core = mla_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<MlaLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
