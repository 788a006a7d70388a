// Decoder::save(): a model as a Hugging Face folder; see decoder.h.
#include <ATen/ATen.h>

#include <filesystem>
#include <map>

#include "io/architecture.h"
#include "io/atomic_file.h"
#include "io/mapped_file.h"
#include "io/safetensors.h"
#include "model/decoder.h"

namespace heed {
namespace {

namespace fs = std::filesystem;

struct Stored {
  std::string name;
  at::Tensor value;
};

// All tensors under the names and in the layout of transformers; what a layer's own mixer has keeps
// its name.
std::vector<Stored> stored_tensors(
    const std::vector<std::pair<std::string, at::Tensor>>& parameters, const ModelConfig& config) {
  const Architecture* architecture = find_architecture(config.family);
  std::vector<Stored> out;
  std::map<std::string, std::vector<at::Tensor>> pieces;  // of what is stored in one
  for (const auto& [name, tensor] : parameters) {
    const TensorName parts(name);
    const bool own = config.mixers.contains(parts.layer) &&
                     (parts.module.starts_with("mixer") || parts.module.starts_with("self_attn"));
    if (!architecture || own) {
      out.push_back({name, tensor});
      continue;
    }
    const StoredTensor place = architecture->stored(name);
    at::Tensor value = tensor;
    if (place.parts > 1) {
      std::vector<at::Tensor>& rows = pieces[place.name];
      rows.push_back(tensor);  // the parts come in their order
      if (static_cast<int>(rows.size()) < place.parts) continue;
      value = at::cat(rows);
    }
    const bool moved = place.name != name;
    out.push_back(
        {moved ? architecture->prefix() + place.name : name, place.transposed ? value.t() : value});
  }
  return out;
}

DType file_dtype(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::F32;
    case at::kHalf:
      return DType::F16;
    case at::kBFloat16:
      return DType::BF16;
    default:
      throw UsageError("weights are written as float32, float16 or bfloat16, not {}",
                       c10::toString(type));
  }
}

const char* dtype_text(at::ScalarType type) {
  return type == at::kHalf ? "float16" : type == at::kBFloat16 ? "bfloat16" : "float32";
}

// The weights, in shards of at most `shard_bytes` (0: one file).
void save_weights(const std::vector<Stored>& tensors, const std::string& folder,
                  const Decoder::SaveOptions& options) {
  const DType dtype = file_dtype(options.dtype);
  // Shards in order, each filled up to its limit.
  std::vector<std::vector<const Stored*>> shards(1);
  int64_t used = 0, total = 0;
  for (const Stored& t : tensors) {
    const int64_t bytes = t.value.numel() * static_cast<int64_t>(c10::elementSize(options.dtype));
    if (options.shard_bytes > 0 && used > 0 && used + bytes > options.shard_bytes) {
      shards.emplace_back();
      used = 0;
    }
    shards.back().push_back(&t);
    used += bytes;
    total += bytes;
  }
  Json map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name =
        shards.size() == 1 ? "model.safetensors"
                           : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    std::vector<TensorSpec> specs;
    for (const Stored* t : shards[i]) {
      specs.push_back({t->name, dtype, t->value.sizes().vec()});
      map[t->name] = name;
    }
    SafetensorsWriter writer(folder + "/" + name, specs, {{"format", "pt"}});
    for (const Stored* t : shards[i]) {
      const at::Tensor value = t->value.to(at::kCPU, options.dtype).contiguous();
      writer.write(t->name, value.const_data_ptr(), value.nbytes());
    }
    writer.finish();
  }
  std::error_code ignored;
  const std::string index = folder + "/model.safetensors.index.json";
  if (shards.size() > 1) {
    write_text_atomic(index, pretty_json({{"metadata", {{"total_size", total}}},
                                          {"weight_map", std::move(map)}}));
  } else {
    fs::remove(index, ignored);
  }
}

// generation_config.json and the tokenizer's files of `from`, where that is a folder.
void save_companions(const ModelConfig& config, const std::string& from,
                     const std::string& folder) {
  std::error_code ignored;
  Json generation = Json::object();
  if (!from.empty() && fs::is_directory(from, ignored)) {
    if (fs::exists(from + "/generation_config.json", ignored)) {
      generation = read_json(from + "/generation_config.json");
    }
    for (const char* name :
         {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
          "vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja"}) {
      const std::string source = from + "/" + name, target = folder + "/" + name;
      if (!fs::exists(source, ignored) || fs::equivalent(source, target, ignored)) continue;
      const MappedFile file(source);
      write_text_atomic(target,
                        {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
    }
  }
  if (!config.eos.empty()) {
    generation["eos_token_id"] = config.eos.size() == 1 ? Json(config.eos[0]) : Json(config.eos);
  }
  if (config.bos >= 0) generation["bos_token_id"] = config.bos;
  if (config.pad >= 0) generation["pad_token_id"] = config.pad;
  if (!generation.empty())
    write_text_atomic(folder + "/generation_config.json", pretty_json(generation));
}

}  // namespace

void Decoder::save(const std::string& folder, const SaveOptions& options) const {
  const at::NoGradGuard no_grad;
  file_dtype(options.dtype);  // before anything is written
  if (options_.weights != WeightForm::kExact) {
    throw UsageError("a model in blocks cannot be written as a folder; load its weights exactly");
  }
  make_folders(folder);
  save_weights(stored_tensors(parameters(), config_), folder, options);
  write_text_atomic(folder + "/config.json",
                    pretty_json(config_to_json(config_, dtype_text(options.dtype))));
  save_companions(config_, options.tokenizer_from.empty() ? path_ : options.tokenizer_from, folder);
}

}  // namespace heed
