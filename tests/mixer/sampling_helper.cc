#include "mixer/sampling_helper.h"

#include <set>

namespace heed::mixer::testing {

std::vector<int64_t> lengths_of(const Mechanism& mechanism, const Try& one,
                                const std::vector<int64_t>& lengths) {
  if (!fixes_tokens(mechanism, one)) return lengths;
  return {sizes_of(mechanism, one, 0).at(mechanism.card.tests.queries)};
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
