#include "cli/model_options.h"

#include "io/error.h"

namespace heed::cli {

at::ScalarType dtype_from_name(const std::string& name) {
  if (name == "float64") return at::kDouble;
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  throw UsageError("{} is no dtype; known are float32, bfloat16, float16 and float64", name);
}

LoadOptions load_options(const CommonOptions& common, int64_t context) {
  LoadOptions options;
  options.dtype = dtype_from_name(common.dtype);
  options.device = at::Device(common.device);
  options.context = context;
  return options;
}

void add_kv_dtype(CLI::App* command, std::string& text) {
  command
      ->add_option(
          "--kv-dtype", text,
          "Type of cached keys and values (default: float16 on the CPU, the weights' on CUDA)")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
}

at::ScalarType kv_dtype(const std::string& text, const LoadOptions& load) {
  if (!text.empty()) return dtype_from_name(text);
  return load.device.is_cuda() ? load.dtype : at::kHalf;
}

}  // namespace heed::cli
