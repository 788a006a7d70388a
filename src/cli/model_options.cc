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

void add_weights(CLI::App* command, std::string& text) {
  command
      ->add_option("--weights", text,
                   "exact (in --dtype), blocks (as the file has them), or q8_0 or q4_0 made while "
                   "loading (default: blocks for float32 on the CPU, else exact)")
      ->check(CLI::IsMember({"exact", "blocks", "q8_0", "q4_0"}));
}

LoadOptions load_options(const CommonOptions& common, const std::string& weights, int64_t context) {
  LoadOptions options = load_options(common, context);
  const bool may = options.dtype == at::kFloat && options.device.is_cpu();
  if (weights == "exact" || (weights.empty() && !may)) return options;
  if (!may) {
    throw UsageError(
        "--weights {}: weights in blocks go with --dtype float32 and --device cpu; give --weights "
        "exact",
        weights);
  }
  options.weights = weights == "q8_0"   ? WeightForm::kQ8_0
                    : weights == "q4_0" ? WeightForm::kQ4_0
                                        : WeightForm::kBlocks;
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
