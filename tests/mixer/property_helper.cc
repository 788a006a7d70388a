#include "mixer/property_helper.h"

#include <algorithm>

#include "io/error.h"

namespace heed::mixer::testing {
namespace {

// Bounds of storage in half precision; a card's bound widens them by its own ratio.
constexpr double kForwardBf16 = 6e-3, kBackwardBf16 = 1.5e-2, kGateBf16 = 3e-2;
constexpr double kForwardHalf = 1e-3;

double widened(const Mechanism& m, double bound) {
  return bound * std::max(1.0, m.card.tests.bound.forward / 2e-6);
}

template <typename F>
void for_tries(const Mechanism& m, Findings& found, F&& f) {
  for (const Try& one : tries(m)) {
    found.enter(m.card.id + " " + describe(one.settings));
    f(one);
  }
}

bool is_grad(const std::string& name) { return name.starts_with("grad_"); }

// The outputs before `grad_`, or those after.
NamedTensors select(const NamedTensors& all, bool grads) {
  NamedTensors some;
  for (const auto& [name, t] : all) {
    if (is_grad(name) == grads) some[name] = t;
  }
  return some;
}

const TensorSpec* output_spec(const Mechanism& m, const Try& one, const NamedTensors& in,
                              const std::string& name) {
  const Settings settings = read_settings(m.card, one.settings);
  for (const TensorSpec& spec : m.card.apply.outputs) {
    if (spec.name == name && holds(spec.when, settings, in)) return &spec;
  }
  return nullptr;
}

bool has_gradients(const Mechanism& m) {
  return std::any_of(m.card.apply.outputs.begin(), m.card.apply.outputs.end(),
                     [](const TensorSpec& spec) { return spec.grad; });
}

// Adds grad_out (and the gradients of final states) of the row's outputs.
NamedTensors with_grads(const Mechanism& m, const Try& one, NamedTensors inputs) {
  const NamedTensors given = inputs;
  at::manual_seed(5);
  for (const auto& [name, t] : run(m, given, "naive", one.settings)) {
    const TensorSpec* spec = output_spec(m, one, given, name);
    if (spec != nullptr && spec->grad) inputs["grad_" + name] = at::randn(t.sizes());
  }
  return inputs;
}

size_t alternatives(const Mechanism& m) {
  size_t most = 1;
  for (const TensorSpec& spec : m.card.apply.inputs) {
    most = std::max(most, parse_shape(spec.shape).size());
  }
  return most;
}

Names sizes_and_settings(const Mechanism& m, const Try& one, int64_t tokens) {
  return names_of(m, sizes_of(m, one, tokens), one.settings);
}

std::vector<std::string> token_axes(const Mechanism& m) {
  const TestCard& tests = m.card.tests;
  if (tests.queries == tests.keys) return {tests.queries};
  return {tests.queries, tests.keys};
}

void forms_agree(const Mechanism& m, Findings& found) {
  for_tries(m, found, [&](const Try& one) {
    for (const int64_t tokens : lengths_of(m, one, m.card.tests.lengths)) {
      for (size_t variant = 0; variant <= alternatives(m); ++variant) {
        SampleOptions options;
        options.optional = variant > 0;
        options.alternative = variant == 0 ? 0 : variant - 1;
        const auto seed = static_cast<uint64_t>(7 + tokens);
        const NamedTensors in = make_inputs(m, one, tokens, seed, options);
        const NamedTensors reference = run(m, in, "naive", one.settings, at::kDouble);
        for (const std::string& form : forms_of(m, one.settings, in)) {
          found.close(run(m, in, form, one.settings), reference, m.card.tests.bound.forward,
                      form + " with " + std::to_string(tokens) + " tokens");
        }
      }
    }
  });
}

void forms_agree_at_ordinary_sizes(const Mechanism& m, Findings& found) {
  for_tries(m, found, [&](const Try& one) {
    Sizes sizes = one.sizes;
    for (const auto& [name, size] : m.card.tests.large) sizes.emplace(name, size);
    if (!m.card.tests.batch.empty()) sizes.emplace(m.card.tests.batch, 1);
    const Try large = {one.settings, sizes, one.without};
    const NamedTensors in = make_inputs(m, large, lengths_of(m, large, {200}).front(), 3);
    const NamedTensors reference = run(m, in, "naive", one.settings, at::kDouble);
    for (const std::string& form : forms_of(m, one.settings, in)) {
      found.close(run(m, in, form, one.settings), reference, m.card.tests.bound.forward, form);
    }
  });
}

void outputs_are_as_declared(const Mechanism& m, Findings& found) {
  for_tries(m, found, [&](const Try& one) {
    const int64_t tokens = lengths_of(m, one, {12}).front();
    const NamedTensors in = make_inputs(m, one, tokens, 3);
    const Names names = sizes_and_settings(m, one, tokens);
    const Settings settings = read_settings(m.card, one.settings);
    for (const std::string& form : forms_of(m, one.settings, in)) {
      const NamedTensors out = run(m, in, form, one.settings);
      for (const auto& [name, t] : out) {
        found.expect(output_spec(m, one, in, name) != nullptr, form + ": surplus output " + name);
      }
      for (const TensorSpec& spec : m.card.apply.outputs) {
        if (!holds(spec.when, settings, in)) continue;
        const auto it = out.find(spec.name);
        if (it == out.end()) {
          found.add(form + ": output " + spec.name + " is missing");
          continue;
        }
        const at::Tensor& t = it->second;
        const at::ScalarType type = spec.dtype == Dtype::kInt64  ? at::kLong
                                    : spec.dtype == Dtype::kBool ? at::kBool
                                                                 : at::kFloat;
        found.expect(t.scalar_type() == type, form + ": type of output " + spec.name);
        const auto shapes = parse_shape(spec.shape);
        found.expect(
            std::any_of(shapes.begin(), shapes.end(),
                        [&](const auto& dimensions) {
                          Names copy = names;
                          return unify(dimensions, t.sizes().vec(), copy);
                        }),
            form + ": output " + spec.name + " is not [" + with_values(spec.shape, names) + "]");
      }
    }
  });
}

// No sequence at all: empty outputs, from every form.
void empty_batches_are_taken(const Mechanism& m, Findings& found) {
  for_tries(m, found, [&](const Try& one) {
    Try none = one;
    none.sizes[m.card.tests.batch] = 0;
    const int64_t tokens = lengths_of(m, one, {12}).front();
    const NamedTensors in = make_inputs(m, none, tokens, 3);
    for (const std::string& form : forms_of(m, one.settings, in)) {
      for (const auto& [name, t] : run(m, in, form, one.settings)) {
        const TensorSpec* spec = output_spec(m, none, in, name);
        const bool of_batch = spec != nullptr && spec->shape.starts_with(m.card.tests.batch + ",");
        if (of_batch) found.expect(t.numel() == 0, form + ": output " + name + " is not empty");
      }
    }
  });
}

void cross_lengths(const Mechanism& m, Findings& found) {
  const TestCard& tests = m.card.tests;
  if (tests.queries == tests.keys) return;
  for_tries(m, found, [&](const Try& one) {
    if (fixes_tokens(m, one)) return;
    const bool causal = causality(m, one.settings) != Causality::kNone;
    for (const auto& [tq, tk] :
         {std::pair<int64_t, int64_t>{5, 23}, {23, 5}, {1, 40}, {4, 0}, {0, 4}}) {
      Try sized = one;
      sized.sizes[tests.queries] = tq;
      sized.sizes[tests.keys] = tk;
      const NamedTensors in = make_inputs(m, sized, tq, 11);
      const std::string what = std::to_string(tq) + " queries of " + std::to_string(tk) + " keys";
      if (!m.card.has_pattern(causal ? "causal cross" : "noncausal cross")) {
        try {
          run(m, in, "naive", one.settings);
          found.add(what + ": the card has no such pattern, and there was no error");
        } catch (const UsageError&) {
        }
        continue;
      }
      const NamedTensors reference = run(m, in, "naive", one.settings, at::kDouble);
      for (const std::string& form : forms_of(m, one.settings, in)) {
        found.close(run(m, in, form, one.settings), reference, tests.bound.forward,
                    form + " " + what);
      }
    }
  });
}

void half_precision_storage(const Mechanism& m, Findings& found) {
  for_tries(m, found, [&](const Try& one) {
    for (const auto& [dtype, bound] :
         {std::pair{at::kBFloat16, kForwardBf16}, {at::kHalf, kForwardHalf}}) {
      SampleOptions options;
      options.dtype = dtype;
      const NamedTensors in = make_inputs(m, one, lengths_of(m, one, {70}).front(), 13, options);
      const NamedTensors reference = run(m, in, "naive", one.settings, at::kDouble);
      for (const std::string& form : forms_of(m, one.settings, in)) {
        found.close(run(m, in, form, one.settings, dtype), reference, widened(m, bound), form);
      }
    }
  });
}

void extreme_gates(const Mechanism& m, Findings& found) {
  if (!m.traits.resets) return;
  for_tries(m, found, [&](const Try& one) {
    SampleOptions options;
    options.extreme = true;
    const NamedTensors in = make_inputs(m, one, lengths_of(m, one, {90}).front(), 17, options);
    const NamedTensors reference = run(m, in, "naive", one.settings, at::kDouble);
    const NamedTensors with = with_grads(m, one, in);
    const NamedTensors reference_grads =
        select(run(m, with, "naive", one.settings, at::kDouble, true), true);
    for (const auto& [name, t] : reference_grads) {
      found.expect(t.isfinite().all().item<bool>(), name + " is not finite");
    }
    for (const std::string& form : forms_of(m, one.settings, in)) {
      found.close(run(m, in, form, one.settings), reference, m.card.tests.bound.forward, form);
      if (form == "recurrent") continue;
      const NamedTensors grads = select(run(m, with, form, one.settings, at::kFloat, true), true);
      found.close(grads, reference_grads, m.card.tests.bound.backward, form + " gradients");
      for (const TensorSpec& spec : m.card.apply.inputs) {
        if (spec.sample != Sample::kLogDecay || !in.count(spec.name)) continue;
        const at::Tensor reset = in.at(spec.name).isinf();
        const at::Tensor there = grads.at("grad_" + spec.name).masked_select(reset);
        found.expect(there.abs().sum().item<double>() == 0, form + ": gradient of a reset");
      }
    }
  });
}

// Initial states of the rest from the final ones of the first part.
NamedTensors carried_over(const NamedTensors& first, NamedTensors rest) {
  for (const auto& [name, t] : first) {
    if (name.starts_with("final_")) rest["initial_" + name.substr(6)] = t;
  }
  return rest;
}

bool has_final_state(const NamedTensors& outputs) {
  return std::any_of(outputs.begin(), outputs.end(),
                     [](const auto& output) { return output.first.starts_with("final_"); });
}

// The first tokens, then the rest from the state they leave, in every fast form.
void state_goes_on(const Mechanism& m, const Try& one, const NamedTensors& in, int64_t tokens,
                   int64_t at, const NamedTensors& whole, Findings& found) {
  const Names names = sizes_and_settings(m, one, tokens);
  const auto part = [&](int64_t begin, int64_t end) {
    std::vector<Range> ranges;
    for (const std::string& axis : token_axes(m)) ranges.push_back({axis, begin, end});
    return cut(m.card.apply.inputs, in, names, ranges);
  };
  const NamedTensors first = run(m, part(0, at), "", one.settings);
  const NamedTensors rest = carried_over(first, part(at, tokens));
  for (const std::string& form : forms_of(m, one.settings, in)) {
    if (form == "naive") continue;
    const NamedTensors second = run(m, rest, form, one.settings);
    for (const auto& [name, t] : whole) {
      const int64_t axis = axis_of(*output_spec(m, one, in, name), t, names, m.card.tests.queries);
      const at::Tensor y =
          axis < 0 ? second.at(name) : at::cat({first.at(name), second.at(name)}, axis);
      found.close(y, t, m.card.tests.bound.forward,
                  "cut at " + std::to_string(at) + " " + form + " " + name);
    }
  }
}

void prefill_and_steps_equal_one_pass(const Mechanism& m, Findings& found) {
  constexpr int64_t kTokens = 41;
  for_tries(m, found, [&](const Try& one) {
    if (causality(m, one.settings) == Causality::kNone || fixes_tokens(m, one)) return;
    const NamedTensors in = make_inputs(m, one, kTokens, 19);
    const NamedTensors whole = run(m, in, "naive", one.settings, at::kDouble);
    const std::vector<std::string> forms = forms_of(m, one.settings, in);
    const bool decodes = std::find(forms.begin(), forms.end(), "recurrent") != forms.end();
    for (const int64_t at : m.card.tests.cuts) {
      if (has_final_state(whole)) {
        state_goes_on(m, one, in, kTokens, at, whole, found);
      } else if (decodes && m.card.has_pattern("causal cross")) {
        // A key/value cache: the last queries against all keys, decoded.
        const Names names = sizes_and_settings(m, one, kTokens);
        const std::vector<Range> last = {{m.card.tests.queries, at, kTokens}};
        const NamedTensors rest = cut(m.card.apply.inputs, in, names, last);
        found.close(run(m, rest, "recurrent", one.settings),
                    cut(m.card.apply.outputs, whole, names, last), m.card.tests.bound.forward,
                    "cut at " + std::to_string(at));
      }
    }
  });
}

// What the first tokens give when the later ones change; what is looked at by `causality`.
void causality_is_as_declared(const Mechanism& m, Findings& found) {
  bool saw_later = false, should_see_later = false;
  const std::vector<std::string> axes = token_axes(m);
  for_tries(m, found, [&](const Try& one) {
    const int64_t tokens = lengths_of(m, one, {50}).front(), at = tokens * 23 / 50;
    const NamedTensors in = make_inputs(m, one, tokens, 23);
    const Names names = sizes_and_settings(m, one, tokens);
    const NamedTensors changed =
        replace_tail(m.card.apply.inputs, in, make_inputs(m, one, tokens, 24), names, axes, at);
    std::vector<Range> early;
    for (const std::string& axis : axes) early.push_back({axis, 0, at});
    const Causality declared = causality(m, one.settings);
    for (const std::string& form : forms_of(m, one.settings, in)) {
      const auto first = [&](const NamedTensors& x) {
        NamedTensors all = run(m, x, form, one.settings), some;
        for (const auto& [name, t] : all) {
          const TensorSpec* spec = output_spec(m, one, x, name);
          if (spec != nullptr && axis_of(*spec, t, names, axes[0]) >= 0) some[name] = t;
        }
        return cut(m.card.apply.outputs, some, names, early);
      };
      const NamedTensors a = first(in), b = first(changed);
      if (declared == Causality::kStrict) {
        found.close(b, a, 1e-7, form + ": an early output knows of later tokens:");
      } else if (declared != Causality::kSelectionLeaky) {
        should_see_later = true;
        for (const auto& [name, t] : a) saw_later |= relative_error(b.at(name), t) > 1e-4;
      }
    }
    if (declared != Causality::kSelectionLeaky) return;
    // Values and gradients flow from the past alone.
    NamedTensors with = with_grads(m, one, in);
    std::vector<TensorSpec> specs = m.card.apply.outputs;
    for (TensorSpec& spec : specs) spec.name = "grad_" + spec.name;
    NamedTensors zeros;
    for (const auto& [name, t] : with) zeros[name] = at::zeros_like(t);
    with = replace_tail(specs, with, zeros, names, axes, at);
    const NamedTensors grads = run(m, with, "naive", one.settings, at::kFloat, true);
    for (const TensorSpec& spec : m.card.apply.inputs) {
      const auto it = grads.find("grad_" + spec.name);
      if (it == grads.end() || axis_of(spec, it->second, names, axes[0]) < 0) continue;
      const NamedTensors late = cut({spec}, {{spec.name, it->second}}, names,
                                    {{axes[0], at, tokens}, {axes.back(), at, tokens}});
      found.expect(late.at(spec.name).abs().sum().item<double>() == 0,
                   "the gradient of an early output reaches later " + spec.name);
    }
  });
  found.enter(m.card.id);
  found.expect(!should_see_later || saw_later,
               "declared to see later tokens, but no early output ever changes with them");
}

void batches_and_heads_are_independent(const Mechanism& m, Findings& found) {
  const TestCard& tests = m.card.tests;
  for_tries(m, found, [&](const Try& one) {
    const int64_t tokens = lengths_of(m, one, {33}).front();
    const NamedTensors in = make_inputs(m, one, tokens, 29);
    const Names names = sizes_and_settings(m, one, tokens);
    // The second of the groups that the smallest number of heads makes.
    double least = std::numeric_limits<double>::infinity();
    for (const std::string& heads : tests.heads) least = std::min(least, names.at(heads));
    std::vector<Range> second_head;
    for (const std::string& heads : tests.heads) {
      const auto group = static_cast<int64_t>(names.at(heads) / least);
      second_head.push_back({heads, group, 2 * group});
    }
    for (const std::string& form : forms_of(m, one.settings, in)) {
      const NamedTensors whole = run(m, in, form, one.settings);
      const auto compare = [&](const std::vector<Range>& ranges, const std::string& what) {
        found.close(run(m, cut(m.card.apply.inputs, in, names, ranges), form, one.settings),
                    cut(m.card.apply.outputs, whole, names, ranges), tests.bound.forward,
                    form + " " + what);
      };
      if (!tests.batch.empty()) compare({{tests.batch, 1, 2}, {"Ns", 1, 2}}, "second batch alone");
      if (m.traits.heads_independent && !tests.heads.empty()) {
        compare(second_head, "second head alone");
      }
    }
  });
}

struct Pack {
  std::vector<int64_t> q = {0, 5, 5, 6, 30, 70}, k = q;
  std::vector<std::pair<std::string, at::Tensor>> tensors;
};

// The offsets that go with a try: one tensor for all axes, or one for queries and one for keys.
Pack pack_of(const Mechanism& m, const Try& one) {
  const Settings settings = read_settings(m.card, one.settings);
  Pack pack;
  std::vector<std::string> names, apart;
  for (const TensorSpec& spec : m.card.apply.inputs) {
    if (spec.sample != Sample::kOffsets || !holds(spec.when, settings, {})) continue;
    const bool own = spec.name.ends_with("_q") || spec.name.ends_with("_k");
    (own ? apart : names).push_back(spec.name);
  }
  if (!apart.empty()) pack.k = {0, 8, 9, 9, 33, 60};
  for (const std::string& name : apart.empty() ? names : apart) {
    pack.tensors.emplace_back(name, at::tensor(name.ends_with("_k") ? pack.k : pack.q, at::kLong));
  }
  return pack;
}

void packs_equal_separate_sequences(const Mechanism& m, Findings& found) {
  const TestCard& tests = m.card.tests;
  for_tries(m, found, [&](const Try& one) {
    const Pack offsets = pack_of(m, one);
    if (offsets.tensors.empty() || fixes_tokens(m, one)) return;
    Try sized = one;
    sized.sizes[tests.batch] = 1;
    sized.sizes["Ns"] = static_cast<int64_t>(offsets.q.size()) - 1;
    sized.sizes[tests.keys] = offsets.k.back();
    sized.sizes[tests.queries] = offsets.q.back();
    const NamedTensors in = make_inputs(m, sized, offsets.q.back(), 31);
    const Names names = sizes_and_settings(m, sized, offsets.q.back());
    NamedTensors pack = in;
    for (const auto& [name, t] : offsets.tensors) pack[name] = t;
    for (const std::string& form : forms_of(m, one.settings, in)) {
      const NamedTensors packed = run(m, pack, form, one.settings);
      for (size_t n = 0; n + 1 < offsets.q.size(); ++n) {
        const auto first = static_cast<int64_t>(n);
        std::vector<Range> own = {{"Ns", first, first + 1},
                                  {tests.queries, offsets.q[n], offsets.q[n + 1]}};
        if (tests.keys != tests.queries) {
          own.push_back({tests.keys, offsets.k[n], offsets.k[n + 1]});
        }
        found.close(
            cut(m.card.apply.outputs, packed, names, own),
            run(m, cut(m.card.apply.inputs, in, names, own), "naive", one.settings, at::kDouble),
            tests.bound.forward, form + " sequence " + std::to_string(n));
      }
    }
    if (!has_gradients(m)) return;
    // Gradients of a pack in one fast pass.
    const NamedTensors with = with_grads(m, one, pack);
    const std::string fast = forms_of(m, one.settings, in).front();
    found.close(select(run(m, with, fast, one.settings, at::kFloat, true), true),
                select(run(m, with, "naive", one.settings, at::kDouble, true), true),
                tests.bound.backward, "gradients of a pack");
  });
}

// sum over outputs of output . grad_output, in float64.
double loss_of(const Mechanism& m, const Try& one, const NamedTensors& x) {
  double sum = 0;
  for (const auto& [name, t] : run(m, select(x, false), "naive", one.settings, at::kDouble)) {
    const auto it = x.find("grad_" + name);
    if (it != x.end()) sum += t.mul(it->second.to(at::kDouble)).sum().item<double>();
  }
  return sum;
}

void naive_gradients_are_those_of_finite_differences(const Mechanism& m, Findings& found) {
  if (!has_gradients(m)) return;
  for_tries(m, found, [&](const Try& one) {
    const NamedTensors in =
        with_grads(m, one, make_inputs(m, one, lengths_of(m, one, {9}).front(), 37));
    const NamedTensors all = run(m, in, "naive", one.settings, at::kDouble, true);
    at::manual_seed(41);
    for (const auto& [name, grad] : select(all, true)) {
      const std::string input = name.substr(5);
      const TensorSpec* spec = m.card.apply.input(input);
      if (!spec->grad) {
        found.expect(grad.abs().sum().item<double>() == 0, name + " is declared to be zero");
        continue;
      }
      if (spec->given) continue;
      const at::Tensor x = in.at(input).to(at::kDouble);
      const at::Tensor direction = at::randn(x.sizes(), at::kDouble);
      const double h = 1e-6;
      NamedTensors plus = in, minus = in;
      plus[input] = x.add(direction, h);
      minus[input] = x.sub(direction, h);
      const double numeric = (loss_of(m, one, plus) - loss_of(m, one, minus)) / (2 * h);
      const double exact = grad.mul(direction).sum().item<double>();
      found.expect(std::abs(numeric - exact) <= 1e-5 * (1 + std::abs(exact)),
                   name + " is " + std::to_string(exact) + ", finite differences give " +
                       std::to_string(numeric));
    }
  });
}

void fast_gradients_are_those_of_the_naive_form(const Mechanism& m, Findings& found) {
  if (!has_gradients(m)) return;
  const double backward = m.card.tests.bound.backward;
  for_tries(m, found, [&](const Try& one) {
    for (const auto& [dtype, bound, gate_bound] :
         {std::tuple{at::kFloat, backward, backward},
          {at::kBFloat16, widened(m, kBackwardBf16), widened(m, kGateBf16)}}) {
      SampleOptions options;
      options.dtype = dtype;
      NamedTensors in =
          with_grads(m, one, make_inputs(m, one, lengths_of(m, one, {75}).front(), 43, options));
      if (in.count("grad_out")) in["grad_out"] = in["grad_out"].to(dtype).to(at::kFloat);
      const NamedTensors reference =
          select(run(m, in, "naive", one.settings, at::kDouble, true), true);
      for (const std::string& form : forms_of(m, one.settings, in)) {
        if (form == "recurrent") continue;
        const NamedTensors grads = select(run(m, in, form, one.settings, dtype, true), true);
        for (const auto& [name, t] : reference) {
          const bool gate = !m.card.apply.input(name.substr(5))->token;
          found.close({{name, grads.at(name)}}, {{name, t}}, gate ? gate_bound : bound,
                      form + (dtype == at::kFloat ? "" : " bfloat16"));
        }
      }
    }
  });
}

void strided_inputs(const Mechanism& m, Findings& found) {
  for_tries(m, found, [&](const Try& one) {
    const NamedTensors in = make_inputs(m, one, lengths_of(m, one, {21}).front(), 47);
    NamedTensors strided;
    for (const auto& [name, t] : in) {
      // The same values as every second row of a tensor laid out back to front.
      std::vector<int64_t> order(t.dim());
      for (int64_t i = 0; i < t.dim(); ++i) order[i] = t.dim() - 1 - i;
      const at::Tensor wide = at::repeat_interleave(t, 2, -1).permute(order).contiguous();
      strided[name] = wide.permute(order).slice(-1, 0, std::nullopt, 2);
    }
    for (const std::string& form : forms_of(m, one.settings, in)) {
      found.close(run(m, strided, form, one.settings), run(m, in, form, one.settings), 3e-7, form);
    }
  });
}

// Numbers kept a sequence: those of final_*, and the expression of the card.
void state_size_is_as_declared(const Mechanism& m, Findings& found) {
  for_tries(m, found, [&](const Try& one) {
    if (causality(m, one.settings) == Causality::kNone) return;
    const std::vector<int64_t> lengths = lengths_of(m, one, {6, 13, 100000, 200000});
    std::vector<double> declared;
    for (const int64_t tokens : lengths) {
      Names names = sizes_and_settings(m, one, tokens);
      const std::optional<double> size = evaluate(m.card.state_size, names);
      if (!size) return found.add("state_size uses a name that no tensor has");
      declared.push_back(*size);
      if (tokens > 1000) continue;
      const NamedTensors in = make_inputs(m, one, tokens, 3);
      double kept = 0;
      for (const auto& [name, t] : run(m, in, "", one.settings)) {
        if (name.starts_with("final_")) kept += static_cast<double>(t.numel()) / names.at("Ns");
      }
      if (kept == 0) continue;
      found.expect(kept == *size, "the final state has " + std::to_string(kept) +
                                      " numbers a sequence, the card says " +
                                      std::to_string(*size));
    }
    if (declared.size() < 4) return;
    const bool grows = declared[0] < declared[1] && declared[2] < declared[3];
    const StateGrowth growth = m.traits.state;
    found.expect(growth == StateGrowth::kGrows   ? grows
                 : growth == StateGrowth::kFixed ? declared[0] == declared[3]
                                                 : declared[2] == declared[3],
                 "state_size does not grow as the traits say");
  });
}

std::string message_of(const Mechanism& m, const NamedTensors& inputs, const std::string& form,
                       const SettingList& settings, bool grad = false) {
  try {
    run(m, inputs, form, settings, at::kFloat, grad);
  } catch (const UsageError& e) {
    return e.what();
  }
  return "no error";
}

void wrong_inputs_are_named(const Mechanism& m, Findings& found) {
  for_tries(m, found, [&](const Try& one) {
    const NamedTensors in = make_inputs(m, one, lengths_of(m, one, {4}).front(), 53);
    const auto names = [&](const std::string& message, const std::string& what) {
      found.expect(message.find(what) != std::string::npos,
                   "expected an error that names " + what + ", got: " + message);
    };
    for (const auto& [name, t] : in) {
      NamedTensors wrong = in;
      wrong[name] = t.unsqueeze(0);
      names(message_of(m, wrong, "", one.settings), "tensor " + name);
      wrong[name] = t.is_floating_point() ? t.to(at::kLong) : t.to(at::kFloat);
      names(message_of(m, wrong, "", one.settings), "tensor " + name);
      const TensorSpec* spec = m.card.apply.input(name);
      if (spec->optional && spec->group.empty()) continue;
      wrong.erase(name);
      const std::string message = message_of(m, wrong, "", one.settings);
      if (!spec->optional || message != "no error") names(message, "tensor " + name);
    }
    NamedTensors more = in;
    more["nonsense"] = at::zeros({1});
    names(message_of(m, more, "", one.settings), "nonsense");
    names(message_of(m, in, "sideways", one.settings), "sideways");
    SettingList unknown = one.settings;
    unknown.emplace_back("colour", "1");
    names(message_of(m, in, "", unknown), "colour");
    names(message_of(m, in, "recurrent", one.settings, true), "recurrent");
    for (const SettingSpec& spec : m.card.apply.settings) {
      SettingList wrong = one.settings;
      wrong.emplace_back(spec.name, "no;such");
      names(message_of(m, in, "", wrong), "setting " + spec.name);
      if (!spec.required) continue;
      std::erase_if(wrong, [&](const auto& setting) { return setting.first == spec.name; });
      names(message_of(m, in, "", wrong), "setting " + spec.name);
    }
  });
}

}  // namespace

void Findings::close(const at::Tensor& y, const at::Tensor& reference, double bound,
                     const std::string& what) {
  const double error = relative_error(y, reference);
  if (!(error <= bound))
    add(fmt::format("{} differs by {:.3g}, allowed {:.3g}", what, error, bound));
}

void Findings::close(const NamedTensors& y, const NamedTensors& reference, double bound,
                     const std::string& what) {
  expect(y.size() == reference.size(), what + ": other outputs");
  for (const auto& [name, tensor] : reference) {
    const auto it = y.find(name);
    if (it == y.end()) {
      add(what + ": " + name + " is missing");
    } else {
      close(it->second, tensor, bound, what + ": " + name);
    }
  }
}

std::string Findings::text() const {
  std::string all;
  for (size_t i = 0; i < std::min<size_t>(list_.size(), 10); ++i) all += list_[i] + "\n";
  if (list_.size() > 10) all += fmt::format("and {} more\n", list_.size() - 10);
  return all;
}

const std::vector<Property>& properties() {
  static const std::vector<Property> all = {
      {"FormsAgree", forms_agree},
      {"FormsAgreeAtOrdinarySizes", forms_agree_at_ordinary_sizes},
      {"OutputsAreAsDeclared", outputs_are_as_declared},
      {"EmptyBatchesAreTaken", empty_batches_are_taken},
      {"CrossLengths", cross_lengths},
      {"HalfPrecisionStorage", half_precision_storage},
      {"ExtremeGates", extreme_gates},
      {"PrefillAndStepsEqualOnePass", prefill_and_steps_equal_one_pass},
      {"CausalityIsAsDeclared", causality_is_as_declared},
      {"BatchesAndHeadsAreIndependent", batches_and_heads_are_independent},
      {"PacksEqualSeparateSequences", packs_equal_separate_sequences},
      {"NaiveGradientsAreThoseOfFiniteDifferences",
       naive_gradients_are_those_of_finite_differences},
      {"FastGradientsAreThoseOfTheNaiveForm", fast_gradients_are_those_of_the_naive_form},
      {"StridedInputs", strided_inputs},
      {"StateSizeIsAsDeclared", state_size_is_as_declared},
      {"WrongInputsAreNamed", wrong_inputs_are_named}};
  return all;
}

}  // namespace heed::mixer::testing
