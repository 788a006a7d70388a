// The decoder's weights: laid out, drawn at random, read; see decoder.h.
#include <ATen/ATen.h>

#include <cmath>
#include <optional>
#include <set>

#include "io/error.h"
#include "model/decoder.h"
#include "model/hub.h"
#include "model/source.h"
#include "nn/block_weight.h"
#include "nn/init.h"

namespace heed {
namespace {

at::TensorOptions tensors_of(const LoadOptions& options) {
  return at::TensorOptions().dtype(options.dtype).device(options.device);
}

int64_t context_of(const ModelConfig& config, const LoadOptions& options) {
  const int64_t context = options.context > 0 ? options.context : config.max_position;
  if (config.learned_positions && context > config.max_position) {
    throw UsageError("a context of {} was asked for, the model has positions for {}", context,
                     config.max_position);
  }
  return context;
}

// A trunk on the meta device takes no memory for what its layers would draw.
Trunk trunk_of(const ModelConfig& config, const LoadOptions& options, int64_t context) {
  std::optional<ShapesOnly> shapes_only;
  if (options.device.is_meta()) shapes_only.emplace();
  return Trunk(config, tensors_of(options), context, options.context);
}

}  // namespace

Decoder::Decoder(ModelConfig config, const LoadOptions& options)
    : config_(std::move(config)),
      options_(options),
      context_(context_of(config_, options)),
      embedding_(config_, tensors_of(options)),
      trunk_(trunk_of(config_, options, context_)),
      head_(config_, tensors_of(options)) {}

void Decoder::visit(const VisitParameter& visit) {
  embedding_.visit(visit);
  trunk_.visit(visit);
  head_.visit(visit);
}

std::vector<std::pair<std::string, at::Tensor>> Decoder::parameters() const {
  std::vector<std::pair<std::string, at::Tensor>> out;
  // visit() hands out slots for loading; here they are only read.
  const_cast<Decoder*>(this)->visit(
      [&](const std::string& name, at::Tensor& tensor) { out.emplace_back(name, tensor); });
  return out;
}

void Decoder::requires_grad(bool on) {
  visit([&](const std::string&, at::Tensor& tensor) { tensor.requires_grad_(on); });
}

Decoder Decoder::bare(const ModelConfig& config) {
  const at::NoGradGuard no_grad;
  LoadOptions nowhere;
  nowhere.device = at::kMeta;
  return Decoder(config, nowhere);
}

std::vector<std::pair<std::string, std::vector<int64_t>>> Decoder::shapes(
    const ModelConfig& config) {
  std::vector<std::pair<std::string, std::vector<int64_t>>> out;
  bare(config).visit([&](const std::string& name, at::Tensor& tensor) {
    out.emplace_back(name, tensor.sizes().vec());
  });
  return out;
}

void Decoder::check(const ModelSource& source) {
  for (const auto& [name, shape] : shapes(source.config())) source.check(name, shape);
}

Decoder Decoder::load(const std::string& model, const LoadOptions& options) {
  const at::NoGradGuard no_grad;
  const ModelSource source = ModelSource::open(resolve_model(model));
  // Everything is checked before memory is taken: a broken configuration may ask for any amount.
  check(source);
  LoadOptions cpu = options;
  cpu.device = at::kCPU;
  if (options.weights != WeightForm::kExact &&
      (options.dtype != at::kFloat || !options.device.is_cpu())) {
    throw UsageError("weights in blocks go with float32 activations on the CPU; load them exactly");
  }
  Decoder out(source.config(), cpu);
  if (options.weights != WeightForm::kExact) out.put_in_blocks(source);
  std::set<const void*> in_blocks;
  out.visit_matrices([&](const std::string&, Weight& w) {
    if (w.blocks) in_blocks.insert(&w.data);
  });
  out.visit([&](const std::string& name, at::Tensor& tensor) {
    if (!in_blocks.contains(&tensor)) source.read(name, tensor);
  });
  out.path_ = source.path();
  out.hash_ = source.hash();
  if (!options.device.is_cpu()) out.move_to(options.device);
  return out;
}

void Decoder::visit_matrices(const std::function<void(const std::string&, Weight&)>& visit) {
  visit("model.embed_tokens.weight", embedding_.table());
  trunk_.visit_matrices(visit);
  if (head_.own().defined()) visit("lm_head.weight", head_.own());
}

void Decoder::put_in_blocks(const ModelSource& source) {
  const Weight* head = &head_.weight(embedding_);
  visit_matrices([&](const std::string& name, Weight& w) {
    const auto stored = source.matrix(name);
    if (!stored) return;
    const bool table = &w == head || &w == &embedding_.table();
    if (options_.weights == WeightForm::kBlocks) {
      w.blocks = keep_blocks(*stored);
    } else {
      const bool eight = options_.weights == WeightForm::kQ8_0 || table;
      w.blocks = make_blocks(*stored, eight ? DType::Q8_0 : DType::Q4_0);
    }
    if (w.blocks) w.data = shape_in_blocks(w.out(), w.in());
  });
  trunk_.moved();
}

namespace {

int64_t bytes_of(const Weight& w) {
  return w.blocks ? w.blocks->bytes : static_cast<int64_t>(w.data.nbytes());
}

}  // namespace

int64_t Decoder::weight_bytes() const {
  auto* self = const_cast<Decoder*>(this);  // visitors hand out slots; here they are only read
  std::set<const void*> matrices;
  int64_t bytes = 0;
  self->visit_matrices([&](const std::string&, Weight& w) {
    matrices.insert(&w.data);
    bytes += bytes_of(w);
  });
  self->visit([&](const std::string&, at::Tensor& t) {
    if (!matrices.contains(&t)) bytes += static_cast<int64_t>(t.nbytes());
  });
  return bytes;
}

int64_t Decoder::bytes_a_token() const {
  const bool tied = &head() == &embedding();
  return weight_bytes() - (tied ? 0 : bytes_of(embedding()));
}

Decoder Decoder::random(const ModelConfig& config, uint64_t seed, const LoadOptions& options) {
  const at::NoGradGuard no_grad;
  check_config(config, "the model's configuration");
  at::manual_seed(seed);
  LoadOptions cpu = options;
  cpu.device = at::kCPU;
  Decoder out(config, cpu);
  const double residual = 0.02 / std::sqrt(2.0 * static_cast<double>(config.layers));
  out.visit([&](const std::string& name, at::Tensor& tensor) {
    if (name.find(".mixer.") != std::string::npos) return;  // the layer has drawn its own
    if (tensor.dim() == 2) {
      const bool writes = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
      tensor.copy_(at::normal(0.0, writes ? residual : 0.02, tensor.sizes()));
    } else {
      tensor.fill_(name.ends_with(".bias") ? 0 : 1);
    }
  });
  if (!options.device.is_cpu()) out.move_to(options.device);
  return out;
}

void Decoder::move_to(const at::Device& device) {
  const at::NoGradGuard no_grad;
  options_.device = device;
  visit([&](const std::string&, at::Tensor& tensor) { tensor = tensor.to(device); });
  trunk_.moved();
}

}  // namespace heed
