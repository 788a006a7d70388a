#include "mixer/common/pool_core.h"

#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/rows.h"
#include "mixer/common/scan_core.h"
#include "op/attend_shape.h"

namespace heed::mixer {
namespace {

using at::Tensor;

bool counts(const op::PoolOptions& options) {
  return options.by_count != 0 || op::needs_mean(options);
}

// What a causal read carries from token to token.
struct Sums {
  Tensor state, z, u, n;

  Sums part(int64_t i) const {
    const auto cut = [i](const Tensor& t) { return t.defined() ? t.slice(0, i, i + 1) : t; };
    return {cut(state), cut(z), cut(u), cut(n)};
  }
};

// The means of the values seen and their number, token by token, of sequences of one length.
void running_means(const Tensor& v, Sums& sums, bool mean, Tensor* means, Tensor* count) {
  if (!sums.n.defined()) return;
  const int64_t tokens = v.size(1);
  const Tensor steps = at::arange(1, tokens + 1, v.options()).unsqueeze(-1);  // [T,1]
  *count = sums.n.unsqueeze(1).add(steps).unsqueeze(-1);                      // [B,T,H,1]
  sums.n = sums.n.add(static_cast<double>(tokens));
  if (!mean) return;
  *means = v.cumsum(1).add(sums.u.unsqueeze(1)).div(*count);
  sums.u = sums.u.add(v.sum(1));
}

// q.S and q.z of every token with a weight for every pair of tokens.
void naive_reads(const op::PoolTensors& x, const Tensor& weighted, Sums& sums, Tensor* read,
                 Tensor* sum) {
  const Tensor q = x.q.transpose(1, 2), k = x.k.transpose(1, 2);
  const Tensor weights = at::matmul(q, k.transpose(-1, -2)).tril();
  const Tensor values = weighted.transpose(1, 2);  // the column of ones, too
  const Tensor start =
      sums.z.defined() ? at::cat({sums.state, sums.z.unsqueeze(-1)}, -1) : sums.state;
  const Tensor y = at::matmul(weights, values).add(at::matmul(q, start)).transpose(1, 2);
  const Tensor end = start.add(at::matmul(k.transpose(-1, -2), values));
  const int64_t width = x.v.size(-1);
  *read = y.slice(-1, 0, width);
  sums.state = end.slice(-1, 0, width);
  if (!sums.z.defined()) return;
  *sum = y.slice(-1, width);
  sums.z = end.select(-1, width);
}

// Values times their keys' weights, with the weights as one more column where the row's sum is
// wanted.
Tensor weighted_values(const op::PoolTensors& x, bool sums) {
  Tensor v = x.v;
  Tensor weight = at::ones_like(v.slice(-1, 0, 1));
  if (x.key_weight.defined()) {
    weight = x.key_weight.unsqueeze(-1);
    v = v.mul(weight);
  }
  return sums ? at::cat({v, weight}, -1) : v;
}

Tensor one_pass(const CoreCall& call, const PoolRead& read, const op::PoolTensors& x, Sums& sums) {
  const op::PoolOptions& options = read.options;
  const bool divided = op::needs_sums(options);
  const Tensor weighted = weighted_values(x, divided);
  Tensor y, sum, mean, count;
  if (call.form == "naive") {
    naive_reads(x, weighted, sums, &y, &sum);
  } else {
    op::ScanInputs in;
    in.initial_state = divided ? at::cat({sums.state, sums.z.unsqueeze(-1)}, -1) : sums.state;
    op::ScanOptions scan;
    scan.chunk = call.settings.has("chunk") ? call.settings.integer("chunk") : 64;
    const auto [out, state] = run_scan(call.form, x.q, x.k, weighted, in, scan);
    const int64_t width = x.v.size(-1);
    y = out.slice(-1, 0, width);
    sums.state = state.slice(-1, 0, width);
    if (divided) {
      sum = out.slice(-1, width);
      sums.z = state.select(-1, width);
    }
  }
  running_means(x.v, sums, op::needs_mean(options), &mean, &count);
  y = op::pool_epilogue(y, sum, mean, count, options);
  return x.row_scale.defined() ? y.mul(x.row_scale.unsqueeze(-1)) : y;
}

}  // namespace

Tensor pool_read(const CoreCall& call, const PoolRead& read) {
  if (call.form == "naive") return op::pool_naive(read.x, read.options);
  return op::pool(read.x, read.options);
}

NamedTensors pool_scan(const CoreCall& call, const PoolRead& read) {
  op::PoolTensors x = read.x;
  if (x.k.size(1) != x.q.size(1)) {
    throw UsageError("causal=true needs as many keys as queries, not S = {}, T = {}", x.k.size(1),
                     x.q.size(1));
  }
  const at::ScalarType type = x.v.scalar_type();
  const auto compute = type == at::kDouble ? at::kDouble : at::kFloat;
  for (Tensor* t : {&x.q, &x.k, &x.v, &x.key_weight, &x.row_scale}) {
    if (t->defined()) *t = t->to(compute);  // a divisor must not be rounded to bfloat16
  }
  const Tensor pack = call.get("cu_seqlens");
  const std::vector<int64_t> offset =
      pack.defined() ? op::read_offsets(pack, x.q.size(1), "cu_seqlens") : std::vector<int64_t>();
  const int64_t sequences = pack.defined() ? static_cast<int64_t>(offset.size()) - 1 : x.q.size(0);
  const auto initial = [&](const char* name, bool wanted, std::vector<int64_t> sizes) {
    if (!wanted) return Tensor();
    const Tensor given = call.get(name);
    return given.defined() ? given.to(compute) : at::zeros(sizes, x.q.options());
  };
  const int64_t heads = x.q.size(2), features = x.q.size(3), width = x.v.size(3);
  Sums sums;
  sums.state = initial("initial_state", true, {sequences, heads, features, width});
  sums.z = initial("initial_z", op::needs_sums(read.options), {sequences, heads, features});
  sums.u = initial("initial_u", op::needs_mean(read.options), {sequences, heads, width});
  sums.n = initial("initial_n", counts(read.options), {sequences, heads});
  Tensor out;
  if (!pack.defined()) {
    out = one_pass(call, read, x, sums);
  } else {
    std::vector<Tensor> outs = {x.v.slice(1, 0, 0)};
    std::vector<Sums> ends;
    for (int64_t n = 0; n < sequences; ++n) {
      op::PoolTensors part = x;
      for (Tensor* t : {&part.q, &part.k, &part.v, &part.key_weight, &part.row_scale}) {
        if (t->defined()) *t = t->slice(1, offset[n], offset[n + 1]);
      }
      ends.push_back(sums.part(n));
      outs.push_back(one_pass(call, read, part, ends.back()));
    }
    out = at::cat(outs, 1);
    const auto join = [&](Tensor Sums::*member) {
      std::vector<Tensor> parts;
      for (const Sums& end : ends) parts.push_back(end.*member);
      if (!parts.empty() && parts[0].defined()) sums.*member = at::cat(parts, 0);
    };
    for (const auto member : {&Sums::state, &Sums::z, &Sums::u, &Sums::n}) join(member);
  }
  NamedTensors result = {{"out", out.to(type)}, {"final_state", sums.state}};
  if (sums.z.defined()) result["final_z"] = sums.z;
  if (sums.u.defined()) result["final_u"] = sums.u;
  if (sums.n.defined()) result["final_n"] = sums.n;
  return result;
}

void add_pool_states(Card& card, const std::string& features, const op::PoolOptions& options) {
  const auto add = [&](const std::string& name, const std::string& shape, Sample sample) {
    card.apply.inputs.push_back(
        gate("initial_" + name, shape, sample).together("initial").only("causal=true"));
    card.apply.outputs.push_back(output("final_" + name, shape).only("causal=true"));
  };
  add("state", "Ns,H," + features + ",V", Sample::kNormal);
  if (op::needs_sums(options)) add("z", "Ns,H," + features, Sample::kGate);
  if (op::needs_mean(options)) add("u", "Ns,H,V", Sample::kNormal);
  if (counts(options)) add("n", "Ns,H", Sample::kGate);
}

void set_pool_row(Card& card, const std::string& patterns, Sizes sizes, Sizes large) {
  card.patterns = patterns;
  card.apply.inputs = {token("q", "B,T,H,D"), token("k", "B,S,H,D"), token("v", "B,S,H,V")};
  card.apply.outputs = {output("out", "B,T,H,V")};
  card.apply.forms = {{"chunked", "causal=true"},
                      {"parallel", "causal=false"},
                      "naive",
                      {"recurrent", "causal=true"}};
  card.tests.keys = "S";
  card.tests.sizes = std::move(sizes);
  card.tests.large = std::move(large);
}

Tensor pool_pass(RecurrentPass& pass, const PoolParts& parts, const PoolRead& read) {
  if (!pass.causal()) {
    return pass.call().tap("o", op::pool(read.x, read.options, pass.call().cu_seqlens));
  }
  std::vector<std::pair<const char*, size_t>> carried = {{"state", parts.state}};
  if (op::needs_sums(read.options)) carried.emplace_back("z", parts.z);
  if (op::needs_mean(read.options)) carried.emplace_back("u", parts.u);
  if (counts(read.options)) carried.emplace_back("n", parts.n);
  const at::AutoGradMode mode(at::GradMode::is_enabled() && !pass.decodes());
  CoreCall call;
  call.form = pass.is_step() ? "recurrent" : "chunked";
  call.in["cu_seqlens"] = pass.call().cu_seqlens;
  if (pass.decodes()) {
    for (const auto& [name, part] : carried) {
      call.in[std::string("initial_") + name] = pass.state(part);
    }
  }
  const NamedTensors result = pool_scan(call, read);
  if (pass.decodes()) {
    for (const auto& [name, part] : carried) {
      pass.state(part).copy_(result.at(std::string("final_") + name));
    }
  }
  return pass.call().tap("o", result.at("out"));
}

Tensor grid_convolution(const Tensor& v, const Tensor& kernel, int64_t rows, int64_t columns,
                        int64_t outside) {
  const int64_t batch = v.size(0), tokens = v.size(1), channels = v.size(2) * v.size(3);
  if (outside + rows * columns != tokens) {
    throw UsageError("a grid of {}x{} and {} tokens before it do not make the {} tokens given",
                     rows, columns, outside, tokens);
  }
  const Tensor image = v.slice(1, outside).flatten(2).transpose(1, 2);  // [B,C,P]
  // One kernel a sample: the samples' channels side by side are the groups of one image.
  const Tensor kernels =
      kernel.dim() == 4 ? kernel : kernel.unsqueeze(0).expand({batch, -1, -1, -1});
  const int64_t side = kernel.size(-1);
  const Tensor result =
      at::conv2d(image.reshape({1, batch * channels, rows, columns}),
                 kernels.to(v.scalar_type()).reshape({batch * channels, 1, side, side}), {}, 1,
                 at::IntArrayRef{(side - 1) / 2, (side - 1) / 2}, 1, batch * channels)
          .reshape({batch, channels, rows * columns})
          .transpose(1, 2)
          .reshape({batch, rows * columns, v.size(2), v.size(3)});
  return outside == 0 ? result : at::cat({at::zeros_like(v.slice(1, 0, outside)), result}, 1);
}

}  // namespace heed::mixer
