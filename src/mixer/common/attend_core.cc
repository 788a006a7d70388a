#include "mixer/common/attend_core.h"

#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/scan_core.h"
#include "op/attend_shape.h"

namespace heed::mixer {

op::AttendOptions attend_options(const CoreCall& call, kernel::Weight weight) {
  op::AttendOptions options;
  options.weight = weight;
  options.causal = call.settings.flag("causal", false);
  options.scale = call.settings.number("scale");
  options.bias = call.settings.number("bias");
  options.window = call.settings.integer("window", 0);
  options.sinks = call.settings.integer("sinks", 0);
  options.soft_cap = call.settings.number("soft_cap", 0.0);
  options.key_bias = call.get("key_bias");
  options.alibi_slopes = call.get("alibi_slopes");
  options.cu_seqlens_q = call.get("cu_seqlens_q");
  options.cu_seqlens_k = call.get("cu_seqlens_k");
  if (options.cu_seqlens_q.defined() != options.cu_seqlens_k.defined()) {
    throw UsageError(
        "{}: cu_seqlens_q and cu_seqlens_k come together; cu_seqlens alone stands for both",
        options.cu_seqlens_q.defined() ? "cu_seqlens_k is missing" : "cu_seqlens_q is missing");
  }
  if (const at::Tensor both = call.get("cu_seqlens"); both.defined()) {
    if (options.cu_seqlens_q.defined()) {
      throw UsageError("cu_seqlens does not go with cu_seqlens_q and cu_seqlens_k");
    }
    options.cu_seqlens_q = options.cu_seqlens_k = both;
  }
  return options;
}

std::tuple<at::Tensor, at::Tensor> run_attend(const CoreCall& call,
                                              const op::AttendOptions& options) {
  const at::Tensor q = call.get("q"), k = call.get("k"), v = call.get("v");
  if (call.form == "naive") return op::attend_naive(q, k, v, options);
  if (call.form == "parallel") return op::attend(q, k, v, options);
  const op::AttendShape s = op::check_attend(q, k, v, options);
  at::Tensor out = at::zeros({s.batch, s.tq, s.heads, s.value_dim}, q.options());
  const bool softmax = kernel::normalised(options.weight);
  at::Tensor lse =
      at::full({s.batch, s.tq, s.heads}, softmax ? -std::numeric_limits<double>::infinity() : 0.0,
               q.options().dtype(at::kFloat));
  op::AttendOptions step = options;
  step.cu_seqlens_q = step.cu_seqlens_k = at::Tensor();
  const int64_t parts = s.packed ? s.sequences : 1;
  for (int64_t n = 0; n < parts; ++n) {
    const int64_t q0 = s.packed ? s.q_offset[n] : 0, k0 = s.packed ? s.k_offset[n] : 0;
    const int64_t tq = s.packed ? s.queries(n) : s.tq, tk = s.packed ? s.keys(n) : s.tk;
    // The default bias counts all keys of the sequence, not those in the cache so far.
    if (!softmax) step.bias = s.sigmoid_bias(options, n);
    for (int64_t i = std::max<int64_t>(tq - tk, 0); i < tq; ++i) {
      const int64_t cached = i + tk - tq + 1;
      const auto cache = [&](const at::Tensor& t) { return t.slice(1, k0, k0 + cached); };
      if (options.key_bias.defined()) step.key_bias = cache(options.key_bias);
      const auto [o, l] = op::attend(q.slice(1, q0 + i, q0 + i + 1), cache(k), cache(v), step);
      out.slice(1, q0 + i, q0 + i + 1).copy_(o);
      lse.slice(1, q0 + i, q0 + i + 1).copy_(l);
    }
  }
  return {out, lse};
}

void set_attend_row(Card& card) {
  card.patterns = "causal self, noncausal self, causal cross, noncausal cross";
  card.state_size = "Hk (D+Dv) Tk";
  ApplyRow& row = card.apply;
  row.inputs = {token("q", "B,Tq,Hq,D"),
                token("k", "B,Tk,Hk,D"),
                token("v", "B,Tk,Hk,Dv"),
                gate("key_bias", "B,Tk,Hq", Sample::kNormal, true),
                gate("alibi_slopes", "Hq", Sample::kSlope, true),
                offsets("cu_seqlens_q"),
                offsets("cu_seqlens_k"),
                offsets()};
  row.settings = {flag_setting("causal", false), scale_setting("1/sqrt(D)"),
                  int_setting("window", "0, off"), int_setting("sinks", "0"),
                  number_setting("soft_cap", "0, off")};
  row.outputs = {output("out", "B,Tq,Hq,Dv")};
  row.forms = {"parallel", "naive", {"recurrent", "causal=true"}};
  TestCard& tests = card.tests;
  tests.queries = "Tq";
  tests.keys = "Tk";
  tests.heads = {"Hq", "Hk"};
  tests.sizes = {{"Hq", 4}, {"Hk", 2}, {"D", 9}, {"Dv", 6}};
  tests.large = {{"D", 64}, {"Dv", 64}};
  tests.tries = {{{{"causal", "true"}, {"window", "6"}, {"sinks", "2"}, {"soft_cap", "2.5"}}},
                 {{{"causal", "false"}, {"window", "4"}, {"sinks", "1"}}}};
}

}  // namespace heed::mixer
