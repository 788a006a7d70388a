#include "op/operator_arguments.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "io/error.h"

namespace heed::op {

using at::Tensor;
using kernel::CallFields;
using kernel::is_input;
using kernel::OptionField;
using kernel::OptionKind;
using kernel::Role;
using kernel::TensorField;

namespace {

std::string option_schema(const OptionField& o) {
  switch (o.kind) {
    case OptionKind::kNumber:
      return fmt::format("float {}={:#}", o.name, o.value);  // with a point, as schemas want it
    case OptionKind::kInteger:
      return fmt::format("int {}={}", o.name, static_cast<int64_t>(o.value));
    case OptionKind::kMaybe:
      return fmt::format("float? {}=None", o.name);
    case OptionKind::kWord:
      return fmt::format("str {}=\"{}\"", o.name, o.words[static_cast<size_t>(o.value)]);
    default:
      return fmt::format("bool {}={}", o.name, o.value != 0 ? "True" : "False");
  }
}

Option read_option(const CallFields& fields, const OptionField& field, const c10::IValue& value) {
  Option o;
  switch (field.kind) {
    case OptionKind::kNumber:
      o.number = value.toDouble();
      return o;
    case OptionKind::kMaybe:
      o.number = value.isNone() ? std::numeric_limits<double>::quiet_NaN() : value.toDouble();
      return o;
    case OptionKind::kInteger:
      o.integer = value.toInt();
      return o;
    case OptionKind::kFlag:
      o.integer = value.toBool();
      return o;
    case OptionKind::kWord:
      break;
  }
  const std::string& word = value.toStringRef();
  const auto at = std::find(field.words.begin(), field.words.end(), word);
  if (at == field.words.end()) {
    throw UsageError("{}: unknown {} '{}', expected one of: {}", fields.engine, field.name, word,
                     fmt::join(field.words, ", "));
  }
  o.integer = at - field.words.begin();
  return o;
}

c10::IValue value_of(const OptionField& field, const Option& o) {
  switch (field.kind) {
    case OptionKind::kNumber:
      return o.number;
    case OptionKind::kMaybe:
      return std::isnan(o.number) ? c10::IValue() : c10::IValue(o.number);
    case OptionKind::kInteger:
      return o.integer;
    case OptionKind::kFlag:
      return o.integer != 0;
    case OptionKind::kWord:
      break;
  }
  return std::string(field.words[static_cast<size_t>(o.integer)]);
}

// A state of a step is named without "initial_".
std::string_view step_name(std::string_view name) {
  return name.starts_with("initial_") ? name.substr(8) : name;
}

}  // namespace

std::string schema(const CallFields& fields, Op op) {
  constexpr const char* kSuffix[] = {"", "_forward", "_backward", "_step"};
  std::string text = fmt::format("{}{}(", fields.engine, kSuffix[static_cast<int>(op)]);
  std::vector<std::string> plain, named, outs;
  if (op == Op::kBackward) {
    for (const auto& field : fields.tensors) {
      if (!is_input(field.role)) plain.push_back(fmt::format("Tensor? grad_{}", field.name));
    }
    plain.push_back("Tensor? saved");
  }
  char alias = 'a';
  for (const auto& field : fields.tensors) {
    const bool state = field.role == Role::kState;
    if (!is_input(field.role)) {
      if (op == Op::kBackward && fields.traits.keeps_outputs) {
        named.push_back(fmt::format("Tensor? {}=None", field.name));
      }
      if (op != Op::kBackward && (op != Op::kStep || field.role != Role::kFinal)) {
        outs.push_back(fmt::format("Tensor {}", field.name));
      }
    } else if (op == Op::kStep && state) {
      plain.push_back(fmt::format("Tensor({}!) {}", alias++, step_name(field.name)));
    } else if (field.required) {
      plain.push_back(fmt::format("Tensor {}", field.name));
    } else {
      named.push_back(fmt::format("Tensor? {}=None", field.name));
    }
    if (op == Op::kBackward && takes_gradient(field.role)) outs.push_back("Tensor");
  }
  if (op == Op::kForward) outs.push_back("Tensor saved");
  if (op != Op::kStep) named.push_back(fmt::format("Tensor? {}=None", fields.traits.pack));
  for (const auto& option : fields.options) named.push_back(option_schema(option));
  text += fmt::format("{}", fmt::join(plain, ", "));
  if (!named.empty()) text += fmt::format(", *, {}", fmt::join(named, ", "));
  return text + fmt::format(") -> ({})", fmt::join(outs, ", "));
}

Arguments pop_arguments(const c10::OperatorHandle& op, const CallFields& fields,
                        torch::jit::Stack* stack) {
  const auto& names = op.schema().arguments();
  const auto values = torch::jit::last(*stack, names.size());
  Arguments a;
  a.tensors.resize(fields.tensors.size());
  a.grads.resize(fields.tensors.size());
  a.options.resize(fields.options.size());
  const bool is_step = op.operator_name().name.ends_with("_step");
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string& name = names[i].name();
    const auto plain =
        std::find_if(fields.tensors.begin(), fields.tensors.end(), [&](const TensorField& field) {
          return (is_step && field.role == Role::kState ? step_name(field.name) : field.name) ==
                 name;
        });
    const auto option = std::find_if(fields.options.begin(), fields.options.end(),
                                     [&](const OptionField& o) { return o.name == name; });
    if (name == "saved") {
      a.saved = tensor_of(values[i]);
    } else if (name == fields.traits.pack) {
      a.cu_seqlens = tensor_of(values[i]);
    } else if (plain != fields.tensors.end()) {
      a.tensors[plain - fields.tensors.begin()] = tensor_of(values[i]);
    } else if (option != fields.options.end()) {
      a.options[option - fields.options.begin()] = read_option(fields, *option, values[i]);
    } else {
      a.grads[fields.find(std::string_view(name).substr(5))] = tensor_of(values[i]);
    }
  }
  torch::jit::drop(*stack, names.size());
  return a;
}

torch::jit::Stack push_arguments(const c10::OperatorHandle& op, const CallFields& fields,
                                 const Arguments& a) {
  torch::jit::Stack stack;
  const auto value = [](const Tensor& t) { return t.defined() ? c10::IValue(t) : c10::IValue(); };
  for (const auto& argument : op.schema().arguments()) {
    const std::string& name = argument.name();
    if (name == "saved") {
      stack.push_back(value(a.saved));
    } else if (name == fields.traits.pack) {
      stack.push_back(value(a.cu_seqlens));
    } else if (const int i = fields.find(name); i >= 0) {
      stack.push_back(value(a.tensors[i]));
    } else if (name.starts_with("grad_") && fields.find(std::string_view(name).substr(5)) >= 0) {
      stack.push_back(value(a.grads[fields.find(std::string_view(name).substr(5))]));
    } else {
      for (size_t o = 0; o < fields.options.size(); ++o) {
        if (name != fields.options[o].name) continue;
        const Option& option = a.options[o];
        stack.push_back(value_of(fields.options[o], option));
      }
    }
  }
  return stack;
}

void push_outputs(const CallFields& fields, const Arguments& a, bool finals, bool saved,
                  torch::jit::Stack* stack) {
  for (size_t i = 0; i < fields.tensors.size(); ++i) {
    const Role role = fields.tensors[i].role;
    if (!is_input(role) && (finals || role != Role::kFinal)) stack->emplace_back(a.tensors[i]);
  }
  if (saved) stack->emplace_back(a.saved);
}

}  // namespace heed::op
