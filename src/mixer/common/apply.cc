// `heed apply`: binds tensors to the row, converts them, runs the core, takes gradients.
#include "mixer/apply.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <set>

#include "io/error.h"
#include "mixer/common/shape.h"
#include "op/describe.h"
#include "op/parallel.h"

namespace heed::mixer {
namespace {

// The row of one call: what of it belongs to these settings and tensors, and the sizes they have.
class Binding {
 public:
  Binding(const Mechanism& mechanism, const NamedTensors& tensors, const ApplyOptions& options)
      : mechanism_(mechanism), card_(mechanism.card), tensors_(tensors) {
    settings = read_settings(card_, options.settings);
    names = settings.names();
    inputs = applicable(card_.apply.inputs);
    outputs = applicable(card_.apply.outputs);
    bind_form(options);
    check_presence();
    check_types();
    bind_sizes();
    for (const TensorSpec* spec : inputs) check_entries(*spec);
    check_pattern();
    if (options.grad) bind_gradients();
    check_superfluous();
  }

  Settings settings;
  Names names;
  std::string form;
  std::vector<const TensorSpec*> inputs, outputs;
  std::vector<const TensorSpec*> grads;  // outputs that take a gradient

 private:
  std::vector<const TensorSpec*> applicable(const std::vector<TensorSpec>& specs) const {
    std::vector<const TensorSpec*> some;
    for (const TensorSpec& spec : specs) {
      if (holds(spec.when, settings, tensors_)) some.push_back(&spec);
    }
    return some;
  }

  const at::Tensor* find(const std::string& name) const {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? nullptr : &it->second;
  }

  void bind_form(const ApplyOptions& options) {
    const std::vector<std::string> forms = forms_of(card_, settings, tensors_);
    const bool wide = options.dtype == at::kDouble;
    form = !options.form.empty() ? options.form : wide ? "naive" : forms.front();
    if (std::find(forms.begin(), forms.end(), form) == forms.end()) {
      throw UsageError("{}: there is no form {}{}, expected one of: {}", card_.id, form,
                       card_.apply.has_form(form) ? " with these settings" : "",
                       fmt::join(forms, ", "));
    }
    if (options.grad && form == "recurrent") {
      throw UsageError("{}: the form recurrent takes no --grad; use naive{}", card_.id,
                       forms.front() == "recurrent" ? "" : " or " + forms.front());
    }
    if (wide && form != "naive") {
      throw UsageError("{}: --dtype float64 goes with --form naive", card_.id);
    }
  }

  void check_presence() const {
    std::map<std::string, std::pair<std::string, std::string>> groups;  // one given, one missing
    for (const TensorSpec* spec : inputs) {
      const bool present = find(spec->name) != nullptr;
      if (!present && !spec->optional) {
        throw UsageError("{}: tensor {} [{}] is missing", card_.id, spec->name, spec->shape);
      }
      if (spec->group.empty()) continue;
      auto& [there, absent] = groups[spec->group];
      (present ? there : absent) = spec->name;
    }
    for (const auto& [group, names_of] : groups) {
      if (names_of.first.empty() || names_of.second.empty()) continue;
      throw UsageError("{}: tensor {} is missing; it comes together with {} or not at all",
                       card_.id, names_of.second, names_of.first);
    }
  }

  void check_types() const {
    for (const TensorSpec* spec : inputs) {
      const at::Tensor* t = find(spec->name);
      if (t == nullptr) continue;
      const bool fits = spec->dtype == Dtype::kFloat   ? t->is_floating_point()
                        : spec->dtype == Dtype::kInt64 ? t->scalar_type() == at::kLong
                                                       : t->scalar_type() == at::kBool;
      if (fits) continue;
      throw UsageError("{}: tensor {} has type {}, expected {}", card_.id, spec->name,
                       c10::toString(t->scalar_type()),
                       spec->dtype == Dtype::kFloat ? "float32" : dtype_name(spec->dtype));
    }
  }

  // One tensor against its shape; true when all its dimensions have values now.
  bool fit(const TensorSpec& spec, const std::string& name, const at::Tensor& t) {
    bool complete = true;
    for (const std::vector<std::string>& dimensions : parse_shape(spec.shape)) {
      Names tried = names;
      if (!unify(dimensions, t.sizes().vec(), tried, &complete)) continue;
      names = std::move(tried);
      return complete;
    }
    throw UsageError("{}: tensor {} has shape {}, expected [{}]", card_.id, name, op::sizes_of(t),
                     with_values(spec.shape, names));
  }

  // Offsets come first: they say how many sequences a pack has. Then the row's order: the first
  // tensor that has a name fixes it. A dimension of several unknowns waits for the others.
  void bind_sizes() {
    std::vector<const TensorSpec*> waiting;
    for (const TensorSpec* spec : inputs) {
      if (find(spec->name) == nullptr) continue;
      if (spec->sample == Sample::kOffsets) {
        packed_ = true;
        fit(*spec, spec->name, *find(spec->name));
      } else {
        waiting.push_back(spec);
      }
    }
    for (bool progress = true; progress && !waiting.empty();) {
      progress = false;
      std::vector<const TensorSpec*> still;
      for (const TensorSpec* spec : waiting) {
        const size_t before = names.size();
        if (!fit(*spec, spec->name, *find(spec->name))) still.push_back(spec);
        const auto batch = names.find("B");
        if (!packed_ && batch != names.end()) names.emplace("Ns", batch->second);
        progress |= names.size() > before;
      }
      progress |= still.size() < waiting.size();
      waiting = std::move(still);
    }
  }

  void check_entries(const TensorSpec& spec) const {
    const at::Tensor* t = find(spec.name);
    if (t == nullptr || spec.below.empty() || t->numel() == 0) return;
    const std::optional<double> below = evaluate(spec.below, names);
    if (!below.has_value()) return;
    const int64_t low = t->min().item<int64_t>(), high = t->max().item<int64_t>();
    if (low >= spec.least && static_cast<double>(high) < *below) return;
    throw UsageError("{}: tensor {} holds {}, expected whole numbers from {} to {}", card_.id,
                     spec.name, low < spec.least ? low : high, spec.least, *below - 1);
  }

  // Lengths that differ make the call a cross one.
  void check_pattern() const {
    const auto q = names.find(card_.tests.queries), k = names.find(card_.tests.keys);
    if (q == names.end() || k == names.end() || q->second == k->second) return;
    const bool causal = causality(mechanism_, settings) != Causality::kNone;
    const std::string pattern = causal ? "causal cross" : "noncausal cross";
    if (card_.has_pattern(pattern)) return;
    throw UsageError("{}: {}={} and {}={} make the pattern {}, expected one of: {}", card_.id,
                     q->first, q->second, k->first, k->second, pattern, card_.patterns);
  }

  void bind_gradients() {
    for (const TensorSpec* spec : outputs) {
      if (!spec->grad) continue;
      grads.push_back(spec);
      const std::string name = "grad_" + spec->name;
      const at::Tensor* t = find(name);
      if (t == nullptr) {
        if (spec->name != "out") continue;
        throw UsageError("{}: --grad needs tensor {} [{}]", card_.id, name, spec->shape);
      }
      if (!t->is_floating_point()) {
        throw UsageError("{}: tensor {} must be float32", card_.id, name);
      }
      fit(*spec, name, *t);
    }
    if (grads.empty()) throw UsageError("{}: no output takes a gradient", card_.id);
  }

  void check_superfluous() const {
    std::set<std::string> known;
    for (const TensorSpec* spec : inputs) known.insert(spec->name);
    for (const TensorSpec* spec : grads) known.insert("grad_" + spec->name);
    std::vector<std::string> all;
    for (const TensorSpec& spec : card_.apply.inputs) {
      all.push_back(spec.name + (spec.optional ? " (optional)" : ""));
    }
    for (const auto& [name, t] : tensors_) {
      if (known.count(name)) continue;
      throw UsageError("{}: tensor {} is not an input{}, expected: {}", card_.id, name,
                       card_.apply.input(name) != nullptr ? " with these settings" : "",
                       fmt::join(all, ", "));
    }
  }

  const Mechanism& mechanism_;
  const Card& card_;
  const NamedTensors& tensors_;
  bool packed_ = false;
};

// Tensors in the types that the core computes with. `leaves`: those that gradients are taken of,
// as they were given; empty without gradients.
CoreCall convert(const Binding& binding, const NamedTensors& tensors, const ApplyOptions& options,
                 std::map<std::string, at::Tensor>& leaves) {
  CoreCall call;
  call.settings = binding.settings;
  call.form = binding.form;
  call.names = binding.names;
  const at::ScalarType compute = options.dtype == at::kDouble ? at::kDouble : at::kFloat;
  for (const TensorSpec* spec : binding.inputs) {
    const auto it = tensors.find(spec->name);
    if (it == tensors.end()) continue;
    if (spec->dtype != Dtype::kFloat) {
      const bool offsets = spec->sample == Sample::kOffsets;
      call.in[spec->name] = it->second.to(offsets ? at::Device(at::kCPU) : options.device);
      continue;
    }
    at::Tensor leaf = it->second.to(options.device, compute);
    if (options.grad) {
      leaf = leaf.detach().clone().requires_grad_();
      leaves[spec->name] = leaf;
    }
    call.in[spec->name] = spec->token ? leaf.to(options.dtype) : leaf;
  }
  return call;
}

// The dimension of sequences in a tensor of this shape; -1 where it has none.
int64_t sequence_dimension(const TensorSpec& spec, const at::Tensor& t) {
  for (const std::vector<std::string>& dimensions : parse_shape(spec.shape)) {
    if (static_cast<int64_t>(dimensions.size()) != t.dim()) continue;
    for (size_t i = 0; i < dimensions.size(); ++i) {
      if (dimensions[i] == "B" || dimensions[i] == "Ns") return static_cast<int64_t>(i);
    }
  }
  return -1;
}

// A batch of no sequences: what one sequence of zeros gives, without it. No core need know of it.
NamedTensors run_empty(const Mechanism& mechanism, const Binding& binding, CoreCall call) {
  const auto resized = [](const TensorSpec* spec, const at::Tensor& t, int64_t size) {
    const int64_t dimension = spec == nullptr ? -1 : sequence_dimension(*spec, t);
    if (dimension < 0 || t.size(dimension) == size) return t;
    std::vector<int64_t> sizes = t.sizes().vec();
    sizes[static_cast<size_t>(dimension)] = size;
    return at::zeros(sizes, t.options());
  };
  for (const TensorSpec* spec : binding.inputs) {
    const auto it = call.in.find(spec->name);
    if (it != call.in.end()) it->second = resized(spec, it->second.detach(), 1);
  }
  for (const char* name : {"B", "Ns"}) {
    if (const auto it = call.names.find(name); it != call.names.end()) it->second = 1;
  }
  NamedTensors outputs = mechanism.core(call);
  for (auto& [name, t] : outputs) {
    for (const TensorSpec* spec : binding.outputs) {
      if (spec->name == name) t = resized(spec, t, 0);
    }
  }
  return outputs;
}

// grad_NAME of every leaf; zero where nothing reaches it.
void differentiate(const Binding& binding, const NamedTensors& tensors, const NamedTensors& outputs,
                   const std::map<std::string, at::Tensor>& leaves, NamedTensors& results) {
  std::vector<at::Tensor> roots, root_grads, inputs;
  for (const TensorSpec* spec : binding.grads) {
    const auto grad = tensors.find("grad_" + spec->name);
    const auto output = outputs.find(spec->name);
    if (grad == tensors.end() || output == outputs.end() || !output->second.requires_grad())
      continue;
    roots.push_back(output->second);
    root_grads.push_back(grad->second.to(output->second.device(), output->second.scalar_type()));
  }
  for (const auto& [name, leaf] : leaves) inputs.push_back(leaf);
  std::vector<at::Tensor> grads(inputs.size());
  if (!roots.empty()) {
    grads = torch::autograd::grad(roots, inputs, root_grads, std::nullopt, false, true);
  }
  size_t i = 0;
  for (const auto& [name, leaf] : leaves) {
    const at::Tensor& grad = grads[i++];
    results["grad_" + name] = grad.defined()
                                  ? grad.cpu().to(leaf.scalar_type()).contiguous()
                                  : at::zeros(leaf.sizes(), leaf.options().device(at::kCPU));
  }
}

}  // namespace

const char* dtype_name(Dtype dtype) {
  return dtype == Dtype::kInt64 ? "int64" : dtype == Dtype::kBool ? "bool" : "float";
}

NamedTensors apply(const Mechanism& mechanism, const NamedTensors& inputs,
                   const ApplyOptions& options) {
  op::warm_vector_math();
  const Binding binding(mechanism, inputs, options);
  std::map<std::string, at::Tensor> leaves;
  const CoreCall call = convert(binding, inputs, options, leaves);
  const at::AutoGradMode grad_mode(options.grad);
  const auto batch = binding.names.find("B");
  const bool empty = batch != binding.names.end() && batch->second == 0;
  const NamedTensors outputs = empty ? run_empty(mechanism, binding, call) : mechanism.core(call);
  const at::ScalarType compute = options.dtype == at::kDouble ? at::kDouble : at::kFloat;
  NamedTensors results;
  for (const auto& [name, t] : outputs) {
    const at::Tensor plain = t.detach().cpu();
    results[name] = (t.is_floating_point() ? plain.to(compute) : plain).contiguous();
  }
  if (options.grad) differentiate(binding, inputs, outputs, leaves, results);
  return results;
}

std::string describe(const ApplyRow& row) {
  std::string text;
  const auto condition = [](const std::string& when) {
    return when.empty() ? std::string() : " with " + when;
  };
  const auto tensors = [&](const char* title, const std::vector<TensorSpec>& specs) {
    text += fmt::format("{}\n", title);
    for (const TensorSpec& spec : specs) {
      text += fmt::format("  {} [{}]", spec.name, spec.shape);
      if (spec.dtype != Dtype::kFloat) text += fmt::format(" {}", dtype_name(spec.dtype));
      if (spec.token) text += " by --dtype";
      if (!spec.below.empty()) text += fmt::format(" from {} to below {}", spec.least, spec.below);
      if (spec.optional) {
        text += spec.group.empty() ? " (optional)"
                                   : fmt::format(" (optional, all of {} or none)", spec.group);
      }
      text += condition(spec.when) + "\n";
    }
  };
  tensors("inputs", row.inputs);
  text += "settings\n";
  if (row.settings.empty()) text += "  none\n";
  for (const SettingSpec& spec : row.settings) {
    const std::string first = spec.required                ? "required"
                              : spec.default_value.empty() ? "none"
                                                           : spec.default_value;
    text += fmt::format("  {} ({}): {}\n", spec.name, first, expected(spec));
  }
  tensors("outputs", row.outputs);
  text += "forms\n";
  std::vector<std::string> forms;
  for (const FormSpec& form : row.forms) forms.push_back(form.name + condition(form.when));
  return text + fmt::format("  {}\n", fmt::join(forms, ", "));
}

}  // namespace heed::mixer
