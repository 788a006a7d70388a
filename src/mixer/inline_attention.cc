// InLine: linear attention whose rows are made to sum to 1 by taking off their mean in place of
// dividing by their sum, so that collinear queries keep different rows; with a predicted 3x3
// residual. Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", arXiv
// 2412.06590 (eqs. 7-9; the factor c/S is that of the released code).
#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/pool_core.h"
#include "mixer/common/rows.h"

namespace heed::mixer {
namespace {

constexpr op::PoolOptions kRead = {
    .scale = 1, .a0 = 1, .a1 = 0, .b0 = 1, .b1 = -1, .eps = 0, .by_count = 1, .clamp = 0};

at::Tensor feature(const std::string& phi, const at::Tensor& x) {
  if (phi == "relu") return at::relu(x);
  if (phi == "leaky_relu") return at::leaky_relu(x, 0.01);
  return phi == "exp" ? x.mul(0.2).exp() : x;
}

NamedTensors inline_attention_core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), v = call.get("v");
  const std::string& phi = call.settings.word("phi");
  PoolRead read{{}, kRead};
  read.x.q = feature(phi, q);
  read.x.k = feature(phi, call.get("k"));
  read.x.v = v;
  const double width = static_cast<double>(std::max<int64_t>(1, q.size(-1)));
  read.options.scale = call.settings.number("scale", 1 / std::sqrt(width));
  if (call.settings.flag("causal")) return pool_scan(call, read);
  at::Tensor out = pool_read(call, read);
  if (const at::Tensor kernel = call.get("kernel"); kernel.defined()) {
    if (v.size(1) != q.size(1)) {
      throw UsageError("inline-attention: kernel needs as many keys as queries, not S = {}, T = {}",
                       v.size(1), q.size(1));
    }
    out = out.add(grid_convolution(call, v, kernel));
  }
  return {{"out", out}};
}

}  // namespace

void register_inline_attention(Registry& registry) {
  Mechanism m;
  m.card.id = "inline-attention";
  m.card.equations =
      "f = phi(q), g = phi(k), n keys seen, gbar and vbar their means\n"
      "out_i = (scale/n) sum_j (f_i.g_j) v_j + (1 - scale f_i.gbar) vbar  (+ 3x3 convolution of v)";
  m.card.patterns = "noncausal self, noncausal cross, causal self";
  m.card.state_size = "H (D V+D+V+1)";
  ApplyRow& row = m.card.apply;
  row.inputs = {token("q", "B,T,H,D"), token("k", "B,S,H,D"), token("v", "B,S,H,V"),
                gate("kernel", "B,H V,3,3").maybe().only("causal=false, grid")};
  row.settings = {word_setting("phi", {"identity", "relu", "leaky_relu", "exp"}),
                  scale_setting("1/sqrt(D)"), flag_setting("causal", false), ints_setting("grid"),
                  int_setting("cls", "0").at_least(0)};
  row.outputs = {output("out", "B,T,H,V")};
  add_pool_states(m.card, "D", kRead);
  row.forms = {{"chunked", "causal=true"},
               {"parallel", "causal=false"},
               "naive",
               {"recurrent", "causal=true"}};
  TestCard& tests = m.card.tests;
  tests.keys = "S";
  tests.sizes = {{"D", 5}, {"V", 4}};
  tests.large = {{"D", 32}, {"V", 64}};
  tests.tries = {{{{"grid", "5x7"}, {"cls", "2"}}, {{"T", 37}, {"S", 37}}, {}}};
  tests.bound = {4e-6, 1e-5, "the mean's part is taken off the read: a digit cancels"};
  m.traits = {.state = StateGrowth::kFixed, .linear_time = true};
  m.core = inline_attention_core;
  registry.add(std::move(m));
}

}  // namespace heed::mixer
