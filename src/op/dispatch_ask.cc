// What the backends of an engine say to a call that is only described.
#include <set>

#include "io/error.h"
#include "kernel/call/check.h"
#include "op/dispatch.h"

namespace heed::op {

using kernel::CallFields;
using kernel::Role;
using kernel::TensorField;

std::vector<BackendAnswer> ask_backends(const Engine& engine,
                                        const std::map<std::string, int64_t>& sizes,
                                        heed_dtype dtype) {
  const CallFields& fields = engine.fields();
  std::set<std::string> unused;
  for (const auto& [name, size] : sizes) unused.insert(name);
  const auto call_of = [&](int32_t pass, int32_t device) {
    std::vector<int64_t> bytes((fields.size + 7) / 8);
    reinterpret_cast<heed_call*>(bytes.data())->struct_size = static_cast<uint32_t>(fields.size);
    for (size_t i = 0; i < fields.tensors.size(); ++i) {
      const TensorField& field = fields.tensors[i];
      heed_view& view = kernel::call_views(fields, bytes.data())[i];
      if (is_index(field.role)) continue;  // what they hold matters, not their sizes
      view.device = device;
      view.dtype = is_token(field.role) ? dtype : HEED_FLOAT32;
      static int64_t somewhere;  // backends look at views, not at memory
      if (field.required) view.data = &somewhere;
      kernel::first_shape(field.shape).for_each([&](std::string_view name, int64_t literal) {
        // Of "L-1" and "N+1" it is L and N that are asked about.
        const int64_t more = kernel::SizeName(name).more;
        const std::string_view base = more == 0 ? name : name.substr(0, name.size() - 2);
        const std::string key(base == "N" ? "B" : base);
        const auto it = sizes.find(key);
        unused.erase(key);
        int64_t size = literal >= 0 ? literal : key == "B" || key == "G" ? 1 : 64;
        if (it != sizes.end()) size = it->second;
        if (name == fields.traits.time && pass == HEED_STEP) size = 1;
        if (field.required) view.sizes[view.rank++] = size + more;
      });
      int64_t stride = 1;
      for (int d = view.rank - 1; d >= 0; --d) {
        view.strides[d] = stride;
        stride *= view.sizes[d];
      }
    }
    return bytes;
  };
  constexpr std::pair<const char*, int32_t> kPasses[] = {
      {"forward", HEED_FORWARD}, {"backward", HEED_BACKWARD}, {"step", HEED_STEP}};
  std::vector<BackendAnswer> answers;
  for (const heed_backend* backend : engine.backends()) {
    BackendAnswer answer = {backend, {}};
    for (const auto& [name, pass] : kPasses) {
      if (pass == HEED_STEP && !fields.traits.steps) continue;
      const std::vector<int64_t> call = call_of(pass, backend->device);
      const char* reason = backend->refuses ? backend->refuses(call.data(), pass) : nullptr;
      answer.passes.emplace_back(name, reason ? reason : "");
    }
    answers.push_back(answer);
  }
  if (!unused.empty()) {
    throw UsageError("{}: no tensor has a size {}", fields.engine, *unused.begin());
  }
  return answers;
}

}  // namespace heed::op
