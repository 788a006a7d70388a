// See architecture.h.
#include "io/architecture.h"

#include "heed/architecture_registry.inc"
#include "io/describe.h"

namespace heed {

TensorName::TensorName(const std::string& name) {
  constexpr std::string_view kLayers = "model.layers.";
  std::string rest = name;
  if (rest.starts_with(kLayers)) {
    rest = rest.substr(kLayers.size());
    const size_t dot = rest.find('.');
    layer = std::stoll(rest.substr(0, dot));
    rest = rest.substr(dot + 1);
  }
  const size_t dot = rest.rfind('.');
  module = rest.substr(0, dot);
  kind = dot == std::string::npos ? "" : rest.substr(dot + 1);
}

int TensorName::qkv() const {
  if (module == "self_attn.q_proj") return 0;
  if (module == "self_attn.k_proj") return 1;
  if (module == "self_attn.v_proj") return 2;
  return -1;
}

const std::vector<std::unique_ptr<const Architecture>>& architectures() {
  static const auto all = [] {
    architecture::List list;
    for (const auto add : architecture::k_architecture_registry) add(list);
    return list.take();
  }();
  return all;
}

const Architecture* find_architecture(std::string_view name) {
  for (const auto& one : architectures()) {
    if (one->name() == name) return one.get();
  }
  return nullptr;
}

std::string architecture_names(bool in_gguf) {
  std::vector<std::string_view> names;
  for (const auto& one : architectures()) {
    if (!in_gguf || one->in_gguf()) names.push_back(one->name());
  }
  std::string out;
  for (size_t i = 0; i < names.size(); ++i) {
    out += i == 0 ? "" : (i + 1 == names.size() ? " and " : ", ");
    out += names[i];
  }
  return out;
}

void check_size(const std::string& path, const char* what, int64_t value, int64_t most) {
  if (value < 1 || value > most) {
    throw Error("{}: {} is {}; 1 to {} was expected", path, what, value, most);
  }
}

std::string activation_name(const std::string& name, const std::string& path) {
  if (name == "silu" || name == "swish") return "silu";
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_tanh") return "gelu_tanh";
  if (name == "gelu" || name == "relu") return name;
  throw Error("{}: activation \"{}\" is unknown; known are silu, gelu, gelu_new and relu", path,
              printable(name, 60));
}

}  // namespace heed
