// `heed apply`: checks of names, shapes and settings against the row, conversions, gradients.
#include "mixer/apply.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/autograd.h>

#include <set>

#include "io/error.h"

namespace heed::mixer {
namespace {

std::string sizes_of(const at::Tensor& t) { return fmt::format("[{}]", fmt::join(t.sizes(), ",")); }

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

const char* kind_of(SettingType type) {
  switch (type) {
    case SettingType::kBool:
      return "true or false";
    case SettingType::kInt:
      return "a whole number";
    default:
      return "a number";
  }
}

// Sizes by the names of the row's shapes.
class Sizes {
 public:
  void bind(const std::string& name, int64_t size) { sizes_.emplace(name, size); }

  // Checks one tensor; names that are new are fixed by it.
  void check(const std::string& id, const TensorSpec& spec, const std::string& name,
             const at::Tensor& t) {
    const std::vector<std::string> dims = split(spec.shape, ',');
    bool fits = t.dim() == static_cast<int64_t>(dims.size());
    for (size_t i = 0; fits && i < dims.size(); ++i) {
      const auto [it, fresh] = sizes_.emplace(dims[i], t.size(static_cast<int64_t>(i)));
      fits = it->second == t.size(static_cast<int64_t>(i));
    }
    if (fits) return;
    std::vector<std::string> expected;
    for (const std::string& dim : dims) {
      const auto it = sizes_.find(dim);
      expected.push_back(it == sizes_.end() ? dim : fmt::format("{}={}", dim, it->second));
    }
    throw UsageError("{}: tensor {} has shape {}, expected [{}]", id, name, sizes_of(t),
                     fmt::join(expected, ","));
  }

 private:
  std::map<std::string, int64_t> sizes_;
};

bool belongs(const TensorSpec& spec, const Settings& settings) {
  if (spec.when.empty()) return true;
  const size_t equals = spec.when.find('=');
  return settings.flag(spec.when.substr(0, equals), false) ==
         (spec.when.substr(equals + 1) == "true");
}

std::string names_of(const std::vector<TensorSpec>& specs) {
  std::vector<std::string> names;
  for (const TensorSpec& spec : specs) {
    names.push_back(spec.name + (spec.optional ? " (optional)" : ""));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

Settings read_settings(const Card& card, const ApplyOptions& options) {
  Settings settings;
  for (const SettingSpec& spec : card.apply.settings) {
    if (spec.type == SettingType::kBool) settings.set(spec, spec.default_value);
  }
  for (const auto& [name, text] : options.settings) {
    const SettingSpec* found = nullptr;
    std::vector<std::string> known;
    for (const SettingSpec& spec : card.apply.settings) {
      if (spec.name == name) found = &spec;
      known.push_back(spec.name);
    }
    if (found == nullptr) {
      throw UsageError("{}: unknown setting {}, expected one of: {}", card.id, name,
                       known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", ")));
    }
    settings.set(*found, text);
  }
  return settings;
}

}  // namespace

NamedTensors apply(const Mechanism& mechanism, const NamedTensors& inputs,
                   const ApplyOptions& options) {
  const Card& card = mechanism.card;
  const ApplyRow& row = card.apply;
  CoreCall call;
  call.settings = read_settings(card, options);

  std::vector<std::string> forms = mechanism.forms ? mechanism.forms(call.settings) : row.forms;
  call.form = options.form;
  if (call.form.empty()) call.form = options.dtype == at::kDouble ? "naive" : forms.front();
  if (std::find(forms.begin(), forms.end(), call.form) == forms.end()) {
    throw UsageError("{}: there is no form {}{}, expected one of: {}", card.id, call.form,
                     row.has_form(call.form) ? " with these settings" : "", fmt::join(forms, ", "));
  }
  if (options.grad && call.form == "recurrent") {
    throw UsageError("{}: the form recurrent takes no --grad; use naive{}", card.id,
                     forms.front() == "recurrent" ? "" : " or " + forms.front());
  }
  const bool wide = options.dtype == at::kDouble;
  if (wide && call.form != "naive") {
    throw UsageError("{}: --dtype float64 goes with --form naive", card.id);
  }

  // Names and shapes.
  std::set<std::string> known;
  std::vector<const TensorSpec*> grad_specs;  // outputs that take a gradient
  const bool packed = inputs.count("cu_seqlens") + inputs.count("cu_seqlens_q") > 0;
  Sizes sizes;
  for (const TensorSpec& spec : row.inputs) {
    if (!belongs(spec, call.settings)) continue;
    known.insert(spec.name);
    const auto it = inputs.find(spec.name);
    if (it == inputs.end()) {
      if (spec.optional) continue;
      throw UsageError("{}: tensor {} [{}] is missing", card.id, spec.name, spec.shape);
    }
    const at::Tensor& t = it->second;
    if (spec.integer() ? t.scalar_type() != at::kLong : !t.is_floating_point()) {
      throw UsageError("{}: tensor {} has type {}, expected {}", card.id, spec.name,
                       c10::toString(t.scalar_type()), spec.integer() ? "int64" : "float32");
    }
    if (spec.integer()) {
      sizes.check(card.id, spec, spec.name, t);
      if (spec.name.starts_with("cu_seqlens")) sizes.bind("S", t.size(0) - 1);
    }
  }
  // Offsets come first: they say how many states a pack has.
  for (const TensorSpec& spec : row.inputs) {
    const auto it = inputs.find(spec.name);
    if (spec.integer() || it == inputs.end() || !known.count(spec.name)) continue;
    if (!packed && it->second.dim() > 0 && spec.shape.starts_with("B,")) {
      sizes.bind("S", it->second.size(0));
    }
    sizes.check(card.id, spec, spec.name, it->second);
  }
  if (options.grad) {
    for (const TensorSpec& spec : row.outputs) {
      if (!belongs(spec, call.settings) || !spec.grad) continue;
      const std::string name = "grad_" + spec.name;
      known.insert(name);
      grad_specs.push_back(&spec);
      const auto it = inputs.find(name);
      if (it == inputs.end()) {
        if (spec.name != "out") continue;
        throw UsageError("{}: --grad needs tensor {} [{}]", card.id, name, spec.shape);
      }
      if (!it->second.is_floating_point()) {
        throw UsageError("{}: tensor {} must be float32", card.id, name);
      }
      sizes.check(card.id, spec, name, it->second);
    }
  }
  for (const auto& [name, t] : inputs) {
    if (known.count(name)) continue;
    throw UsageError("{}: tensor {} is not an input{}, expected: {}", card.id, name,
                     row.input(name) != nullptr ? " with these settings" : "",
                     names_of(row.inputs));
  }

  // Conversion; gradients are those of the tensors as they were given.
  const at::ScalarType compute = wide ? at::kDouble : at::kFloat;
  std::vector<std::string> leaf_names;
  std::vector<at::Tensor> leaves;
  for (const TensorSpec& spec : row.inputs) {
    const auto it = inputs.find(spec.name);
    if (it == inputs.end()) continue;
    if (spec.integer()) {
      call.in[spec.name] = it->second.cpu();
      continue;
    }
    at::Tensor leaf = it->second.to(options.device, compute);
    if (options.grad) {
      leaf = leaf.detach().clone().requires_grad_();
      leaf_names.push_back(spec.name);
      leaves.push_back(leaf);
    }
    call.in[spec.name] = spec.token ? leaf.to(options.dtype) : leaf;
  }

  const at::AutoGradMode grad_mode(options.grad);
  NamedTensors outputs = mechanism.core(call);
  NamedTensors results;
  for (const auto& [name, t] : outputs) results[name] = t.detach().cpu().to(compute).contiguous();
  if (!options.grad) return results;

  std::vector<at::Tensor> roots, root_grads;
  for (const TensorSpec* spec : grad_specs) {
    const auto it = inputs.find("grad_" + spec->name);
    const auto output = outputs.find(spec->name);
    if (it == inputs.end() || output == outputs.end() || !output->second.requires_grad()) continue;
    roots.push_back(output->second);
    root_grads.push_back(it->second.to(options.device, output->second.scalar_type()));
  }
  std::vector<at::Tensor> grads(leaves.size());
  if (!roots.empty()) {
    grads = torch::autograd::grad(roots, leaves, root_grads, std::nullopt, false, true);
  }
  for (size_t i = 0; i < leaves.size(); ++i) {
    results["grad_" + leaf_names[i]] =
        grads[i].defined() ? grads[i].cpu().to(compute).contiguous()
                           : at::zeros(leaves[i].sizes(), at::TensorOptions().dtype(compute));
  }
  return results;
}

std::string describe(const ApplyRow& row) {
  std::string text;
  const auto tensors = [&](const char* title, const std::vector<TensorSpec>& specs) {
    text += fmt::format("{}\n", title);
    for (const TensorSpec& spec : specs) {
      text += fmt::format("  {} [{}]{}{}{}\n", spec.name, spec.shape,
                          spec.integer() ? " int64" : "", spec.optional ? " (optional)" : "",
                          spec.when.empty() ? "" : " with " + spec.when);
    }
  };
  tensors("inputs", row.inputs);
  text += "settings\n";
  if (row.settings.empty()) text += "  none\n";
  for (const SettingSpec& spec : row.settings) {
    text += fmt::format("  {} ({}): {}\n", spec.name, spec.default_value, kind_of(spec.type));
  }
  tensors("outputs", row.outputs);
  text += fmt::format("forms\n  {}\n", fmt::join(row.forms, ", "));
  return text;
}

}  // namespace heed::mixer
