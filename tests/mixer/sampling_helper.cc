#include "mixer/sampling_helper.h"

#include <ATen/CPUGeneratorImpl.h>

namespace heed::mixer::testing {

Sizes small_sizes(int64_t tokens) {
  return {{"B", 2}, {"T", tokens}, {"Tq", tokens}, {"Tk", tokens}, {"H", 3}, {"Hq", 4}, {"Hk", 2},
          {"K", 7}, {"V", 5},      {"D", 9},       {"Dv", 6},      {"G", 1}, {"S", 2}};
}

namespace {

std::vector<std::string> dims(const std::string& shape) {
  std::vector<std::string> names;
  size_t begin = 0;
  while (begin <= shape.size()) {
    const size_t end = std::min(shape.find(',', begin), shape.size());
    names.push_back(shape.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

at::Tensor sample(const TensorSpec& spec, at::IntArrayRef shape, at::Generator generator,
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
      if (options.extreme) {
        const at::Tensor pick = uniform();
        x = x.masked_fill(pick.lt(0.2), 0.0).masked_fill(pick.gt(0.8), -8.0);
        x = x.masked_fill(pick.gt(0.93), -std::numeric_limits<double>::infinity());
      }
      return x;
    }
    case Sample::kGate: {
      at::Tensor x = uniform();
      if (options.extreme) {
        const at::Tensor pick = uniform();
        x = x.masked_fill(pick.lt(0.2), 0.0).masked_fill(pick.gt(0.8), 1.0);
      }
      return x;
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

}  // namespace

NamedTensors make_inputs(const Mechanism& mechanism, const Sizes& sizes,
                         const SettingList& settings, uint64_t seed, const SampleOptions& options) {
  NamedTensors inputs;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  for (const TensorSpec& spec : mechanism.card.apply.inputs) {
    if (spec.integer() || (spec.optional && !options.optional)) continue;
    if (!spec.when.empty()) {
      const size_t equals = spec.when.find('=');
      const bool wanted = spec.when.substr(equals + 1) == "true";
      if (is_on(mechanism, settings, spec.when.substr(0, equals)) != wanted) continue;
    }
    std::vector<int64_t> shape;
    for (const std::string& dim : dims(spec.shape)) shape.push_back(sizes.at(dim));
    at::Tensor x = sample(spec, shape, generator, options);
    // What a bfloat16 run is given can then be given to the reference as well.
    if (spec.token) x = x.to(options.dtype).to(at::kFloat);
    inputs[spec.name] = x;
  }
  return inputs;
}

std::vector<SettingList> variants(const Mechanism& mechanism) {
  std::vector<SettingList> all = {{}};
  bool windows = false;
  for (const SettingSpec& spec : mechanism.card.apply.settings) {
    windows |= spec.name == "window";
    if (spec.type == SettingType::kBool) {
      all.push_back({{spec.name, spec.default_value == "true" ? "false" : "true"}});
    }
    if (spec.name == "chunk") all.push_back({{"chunk", "16"}});
    if (spec.name == "scale") all.push_back({{"scale", "0.3"}});
    if (spec.name == "bias") all.push_back({{"bias", "-1.5"}});
  }
  if (windows) {
    all.push_back({{"causal", "true"}, {"window", "6"}, {"sinks", "2"}, {"soft_cap", "2.5"}});
    all.push_back({{"causal", "false"}, {"window", "4"}, {"sinks", "1"}});
  }
  return all;
}

SettingList causal(const Mechanism& mechanism, SettingList settings) {
  for (const SettingSpec& spec : mechanism.card.apply.settings) {
    if (spec.name == "causal") settings.emplace_back("causal", "true");
  }
  return settings;
}

bool is_on(const Mechanism& mechanism, const SettingList& settings, const std::string& name) {
  for (auto it = settings.rbegin(); it != settings.rend(); ++it) {
    if (it->first == name) return it->second == "true";
  }
  for (const SettingSpec& spec : mechanism.card.apply.settings) {
    if (spec.name == name) return spec.default_value == "true";
  }
  return false;
}

std::vector<std::string> forms_of(const Mechanism& mechanism, const SettingList& settings) {
  if (!mechanism.forms) return mechanism.card.apply.forms;
  Settings parsed;
  for (const SettingSpec& spec : mechanism.card.apply.settings) {
    if (spec.type == SettingType::kBool) {
      parsed.set(spec, is_on(mechanism, settings, spec.name) ? "true" : "false");
    }
  }
  return mechanism.forms(parsed);
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

int64_t dim_of(const std::string& shape, const std::string& name) {
  const std::vector<std::string> names = dims(shape);
  const auto it = std::find(names.begin(), names.end(), name);
  return it == names.end() ? -1 : it - names.begin();
}

double relative_error(const at::Tensor& y_in, const at::Tensor& reference_in) {
  const double inf = std::numeric_limits<double>::infinity();
  if (y_in.sizes() != reference_in.sizes()) return inf;
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
