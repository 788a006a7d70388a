#include "mixer/sampling_helper.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <set>

namespace heed::mixer::testing {
namespace {

bool gives(const SettingList& settings, const std::string& name) {
  return std::any_of(settings.begin(), settings.end(),
                     [&](const auto& setting) { return setting.first == name; });
}

at::Tensor extreme_values(const at::Tensor& x, at::Generator generator, double low, double high) {
  const at::Tensor pick = at::rand(x.sizes(), generator, at::kFloat);
  return x.masked_fill(pick.lt(0.2), low).masked_fill(pick.gt(0.8), high);
}

at::Tensor sample_float(const TensorSpec& spec, at::IntArrayRef shape, at::Generator generator,
                        const SampleOptions& options) {
  const auto normal = [&] { return at::randn(shape, generator, at::kFloat); };
  const auto uniform = [&] { return at::rand(shape, generator, at::kFloat); };
  const double width =
      shape.empty() ? 1.0 : std::max<double>(1.0, static_cast<double>(shape.back()));
  switch (spec.sample) {
    case Sample::kKey:
      return normal().div(std::sqrt(width));
    case Sample::kUnit: {
      const at::Tensor x = normal();
      return x.numel() == 0 ? x : x.div(x.norm(2, -1, true).add(1e-3));
    }
    case Sample::kCorrection:
      return normal().mul(-0.5 / std::sqrt(width));
    case Sample::kLogDecay: {
      at::Tensor x = uniform().square().mul(-0.5);
      if (!options.extreme) return x;
      const at::Tensor pick = uniform();
      x = x.masked_fill(pick.lt(0.2), 0.0).masked_fill(pick.gt(0.8), -8.0);
      return x.masked_fill(pick.gt(0.93), -std::numeric_limits<double>::infinity());
    }
    case Sample::kGate: {
      const at::Tensor x = uniform();
      return options.extreme ? extreme_values(x, generator, 0.0, 1.0) : x;
    }
    case Sample::kStep:
      return uniform().mul(0.2);
    case Sample::kNegative:
      return at::exp(normal().mul(0.5)).neg();
    case Sample::kSlope:
      return at::exp2(uniform().mul(-7.0).sub(1.0));
    default:
      return normal();
  }
}

at::Tensor sample(const TensorSpec& spec, at::IntArrayRef shape, const Names& names,
                  at::Generator generator, const SampleOptions& options) {
  if (spec.dtype == Dtype::kBool) return at::rand(shape, generator, at::kFloat).lt(0.5);
  if (spec.dtype == Dtype::kInt64) {
    const double below = spec.below.empty() ? 2.0 : *evaluate(spec.below, names);
    return at::randint(spec.least, std::max<int64_t>(static_cast<int64_t>(below), spec.least + 1),
                       shape, generator, at::kLong);
  }
  const at::Tensor x = sample_float(spec, shape, generator, options);
  // What a bfloat16 run is given can then be given to the reference as well.
  return spec.token ? x.to(options.dtype).to(at::kFloat) : x;
}

}  // namespace

std::vector<Try> tries(const Mechanism& mechanism) {
  const Card& card = mechanism.card;
  std::vector<Try> all(1);
  const auto add = [&](const std::string& name, const std::string& text) {
    all.push_back({{{name, text}}, {}, {}});
  };
  const Settings defaults = read_settings(card, card.tests.always);
  for (const SettingSpec& spec : card.apply.settings) {
    if (spec.type == SettingType::kBool) {
      const bool on = defaults.flag(spec.name, false);
      if (!gives(card.tests.always, spec.name)) add(spec.name, on ? "false" : "true");
    }
    if (spec.type == SettingType::kWord && !gives(card.tests.always, spec.name)) {
      for (const std::string& word : spec.words) {
        if (word != spec.default_value) add(spec.name, word);
      }
    }
    for (const std::string& text : spec.tries) add(spec.name, text);
  }
  // A card whose settings exclude each other says itself what goes together.
  all.insert(all.end(), card.tests.tries.begin(), card.tests.tries.end());
  for (Try& one : all) {
    for (const auto& setting : card.tests.always) {
      if (!gives(one.settings, setting.first)) one.settings.push_back(setting);
    }
  }
  return all;
}

Sizes sizes_of(const Mechanism& mechanism, const Try& one, int64_t tokens) {
  const TestCard& tests = mechanism.card.tests;
  Sizes sizes = one.sizes;
  for (const auto& [name, size] : tests.sizes) sizes.emplace(name, size);
  sizes.emplace(tests.queries, tokens);
  sizes.emplace(tests.keys, tokens);
  if (!tests.batch.empty()) {
    sizes.emplace(tests.batch, 2);
    sizes.emplace("Ns", sizes.at(tests.batch));
  }
  for (const std::string& heads : tests.heads) sizes.emplace(heads, 3);
  return sizes;
}

bool fixes_tokens(const Mechanism& mechanism, const Try& one) {
  const TestCard& tests = mechanism.card.tests;
  return one.sizes.count(tests.queries) + tests.sizes.count(tests.queries) > 0;
}

std::vector<int64_t> lengths_of(const Mechanism& mechanism, const Try& one,
                                const std::vector<int64_t>& lengths) {
  if (!fixes_tokens(mechanism, one)) return lengths;
  return {sizes_of(mechanism, one, 0).at(mechanism.card.tests.queries)};
}

Names names_of(const Mechanism& mechanism, const Sizes& sizes, const SettingList& settings) {
  Names names = read_settings(mechanism.card, settings).names();
  for (const auto& [name, size] : sizes) names[name] = static_cast<double>(size);
  for (const auto* specs : {&mechanism.card.apply.inputs, &mechanism.card.apply.outputs}) {
    for (const TensorSpec& spec : *specs) {
      for (const std::vector<std::string>& dimensions : parse_shape(spec.shape)) {
        for (const std::string& dimension : dimensions) {
          std::vector<std::string> unknown;
          evaluate(dimension, names, &unknown);
          for (const std::string& name : unknown) names.emplace(name, 3.0);
        }
      }
    }
  }
  return names;
}

NamedTensors make_inputs(const Mechanism& mechanism, const Sizes& sizes,
                         const SettingList& settings, uint64_t seed, const SampleOptions& options) {
  NamedTensors inputs;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const Settings read = read_settings(mechanism.card, settings);
  const Names names = names_of(mechanism, sizes, settings);
  for (const TensorSpec& spec : mechanism.card.apply.inputs) {
    if (spec.sample == Sample::kOffsets || (spec.optional && !options.optional)) continue;
    const auto& without = options.without;
    if (std::find(without.begin(), without.end(), spec.name) != without.end()) continue;
    if (!holds(spec.when, read, inputs)) continue;
    const auto alternatives = parse_shape(spec.shape);
    std::vector<int64_t> shape;
    for (const std::string& dimension : alternatives[options.alternative % alternatives.size()]) {
      shape.push_back(static_cast<int64_t>(*evaluate(dimension, names)));
    }
    inputs[spec.name] = sample(spec, shape, names, generator, options);
  }
  if (mechanism.fit_inputs) mechanism.fit_inputs(inputs, read);
  return inputs;
}

NamedTensors make_inputs(const Mechanism& mechanism, const Try& one, int64_t tokens, uint64_t seed,
                         SampleOptions options) {
  options.without.insert(options.without.end(), one.without.begin(), one.without.end());
  return make_inputs(mechanism, sizes_of(mechanism, one, tokens), one.settings, seed, options);
}

std::vector<std::string> forms_of(const Mechanism& mechanism, const SettingList& settings,
                                  const NamedTensors& inputs) {
  return mixer::forms_of(mechanism.card, read_settings(mechanism.card, settings), inputs);
}

Causality causality(const Mechanism& mechanism, const SettingList& settings) {
  return mixer::causality(mechanism, read_settings(mechanism.card, settings));
}

NamedTensors run(const Mechanism& mechanism, const NamedTensors& inputs, const std::string& form,
                 const SettingList& settings, at::ScalarType dtype, bool grad) {
  ApplyOptions options;
  options.form = form;
  options.dtype = dtype;
  options.settings = settings;
  options.grad = grad;
  return apply(mechanism, inputs, options);
}

namespace {

// The extent of a dimension when the name has another value; none if it does not use the name, or
// does not grow from nothing.
std::optional<int64_t> extent(const std::string& dimension, Names names, const std::string& axis,
                              int64_t value) {
  Names without = names;
  without.erase(axis);
  if (evaluate(dimension, without).has_value()) return std::nullopt;
  names[axis] = 0;
  if (evaluate(dimension, names) != 0.0) return std::nullopt;
  names[axis] = static_cast<double>(value);
  const std::optional<double> size = evaluate(dimension, names);
  return size ? std::optional<int64_t>(static_cast<int64_t>(*size)) : std::nullopt;
}

std::vector<std::string> dimensions_of(const TensorSpec& spec, const at::Tensor& t,
                                       const Names& names) {
  for (const std::vector<std::string>& dimensions : parse_shape(spec.shape)) {
    Names copy = names;
    if (unify(dimensions, t.sizes().vec(), copy)) return dimensions;
  }
  return {};
}

}  // namespace

int64_t axis_of(const TensorSpec& spec, const at::Tensor& t, const Names& names,
                const std::string& axis) {
  const std::vector<std::string> dimensions = dimensions_of(spec, t, names);
  for (size_t i = 0; i < dimensions.size(); ++i) {
    if (extent(dimensions[i], names, axis, 1)) return static_cast<int64_t>(i);
  }
  return -1;
}

NamedTensors cut(const std::vector<TensorSpec>& specs, NamedTensors tensors, const Names& names,
                 const std::vector<Range>& ranges) {
  std::set<std::string> done;  // two specs may share a name
  for (const TensorSpec& spec : specs) {
    const auto it = tensors.find(spec.name);
    if (it == tensors.end() || done.count(spec.name)) continue;
    const std::vector<std::string> dimensions = dimensions_of(spec, it->second, names);
    if (!dimensions.empty()) done.insert(spec.name);
    for (size_t i = 0; i < dimensions.size(); ++i) {
      for (const Range& range : ranges) {
        const auto begin = extent(dimensions[i], names, range.axis, range.begin);
        const auto end = extent(dimensions[i], names, range.axis, range.end);
        if (begin && end) it->second = it->second.slice(static_cast<int64_t>(i), *begin, *end);
      }
    }
  }
  return tensors;
}

NamedTensors replace_tail(const std::vector<TensorSpec>& specs, const NamedTensors& tensors,
                          const NamedTensors& others, const Names& names,
                          const std::vector<std::string>& axes, int64_t at) {
  NamedTensors changed = tensors;
  for (const TensorSpec& spec : specs) {
    const auto it = tensors.find(spec.name);
    if (it == tensors.end()) continue;
    const std::vector<std::string> dimensions = dimensions_of(spec, it->second, names);
    for (size_t i = 0; i < dimensions.size(); ++i) {
      for (const std::string& axis : axes) {
        const auto end = extent(dimensions[i], names, axis, at);
        if (!end) continue;
        const auto dim = static_cast<int64_t>(i);
        changed[spec.name] =
            at::cat({it->second.slice(dim, 0, *end), others.at(spec.name).slice(dim, *end)}, dim);
        break;
      }
    }
  }
  return changed;
}

double relative_error(const at::Tensor& y_in, const at::Tensor& reference_in) {
  const double inf = std::numeric_limits<double>::infinity();
  if (y_in.sizes() != reference_in.sizes()) return inf;
  if (!reference_in.is_floating_point()) return y_in.equal(reference_in) ? 0 : inf;
  const at::Tensor y = y_in.to(at::kDouble), reference = reference_in.to(at::kDouble);
  if (y.numel() == 0) return 0;
  const at::Tensor infinite = reference.isinf();
  if (!y.isinf().equal(infinite) ||
      !y.masked_select(infinite).equal(reference.masked_select(infinite))) {
    return inf;
  }
  const at::Tensor finite = infinite.logical_not();
  const at::Tensor a = y.masked_select(finite), b = reference.masked_select(finite);
  const double error = a.sub(b).norm().item<double>(), norm = b.norm().item<double>();
  if (std::isnan(error)) return inf;
  return norm > 0 ? error / norm : error;
}

std::string describe(const SettingList& settings) {
  std::string text;
  for (const auto& [name, value] : settings) text += name + "=" + value + " ";
  return text;
}

}  // namespace heed::mixer::testing
