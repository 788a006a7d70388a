#include "mixer/sample.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>

namespace heed::mixer {
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

}  // namespace heed::mixer
