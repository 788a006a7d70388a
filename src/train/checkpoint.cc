#include "train/checkpoint.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <mutex>

#include "io/atomic_file.h"
#include "io/error.h"
#include "io/safetensors.h"

namespace heed::train {
namespace {

namespace fs = std::filesystem;
constexpr int kVersion = 1;
constexpr const char* kRandomCpu = "random.cpu";

void write_tensors(const std::string& path, const std::map<std::string, at::Tensor>& tensors) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) {
    const bool bytes = tensor.scalar_type() == at::kByte;
    specs.push_back({name, bytes ? DType::U8 : DType::F32, tensor.sizes().vec()});
  }
  SafetensorsWriter writer(path, specs, {{"format", "pt"}});
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor flat = tensor.to(at::kCPU).contiguous();
    writer.write(name, flat.const_data_ptr(), flat.nbytes());
  }
  writer.finish();
}

std::map<std::string, at::Tensor> read_tensors(const std::string& path) {
  const TensorFile file = open_safetensors(path);
  std::map<std::string, at::Tensor> tensors;
  for (const auto& info : file.tensors) {
    if (info.dtype != DType::F32 && info.dtype != DType::U8) {
      throw Error("{}: tensor {} is {}, not F32", path, info.name, dtype_name(info.dtype));
    }
    const at::Tensor tensor =
        at::empty(info.shape, info.dtype == DType::U8 ? at::kByte : at::kFloat);
    std::memcpy(tensor.data_ptr(), info.data, info.bytes);
    tensors[info.name] = tensor;
  }
  return tensors;
}

void flush_folder(const fs::path& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY);
  if (fd >= 0) {
    ::fsync(fd);
    ::close(fd);
  }
}

// Whole checkpoints, newest first.
std::vector<fs::path> list_checkpoints(const std::string& out) {
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(fs::path(out) / "checkpoints", error)) {
    if (entry.path().filename().string().starts_with("step-")) found.push_back(entry.path());
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

}  // namespace

void copy_tokenizer(const std::string& from, const std::string& to) {
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model"}) {
    const fs::path source = fs::path(from) / name;
    if (!fs::exists(source)) continue;
    std::error_code error;
    fs::copy_file(source, fs::path(to) / name, fs::copy_options::overwrite_existing, error);
    if (error) throw Error("{}: cannot be copied to {}: {}", source.string(), to, error.message());
  }
}

std::string save_checkpoint(const std::string& out, const Checkpoint& checkpoint,
                            const ModelConfig& config, const std::string& tokenizer, int64_t keep) {
  const fs::path parent = fs::path(out) / "checkpoints";
  const std::string name = fmt::format("step-{:08d}", checkpoint.step);
  const fs::path target = parent / name, partial = parent / ("." + name + ".partial");
  make_folders(parent.string());
  std::error_code error;
  fs::remove_all(partial, error);
  make_folders(partial.string());
  try {
    write_tensors((partial / "model.safetensors").string(), checkpoint.weights);
    auto state = checkpoint.state;
    {
      auto generator = at::detail::getDefaultCPUGenerator();
      const std::lock_guard lock(generator.mutex());
      state[kRandomCpu] = generator.get_state();
    }
    write_tensors((partial / "optimizer.safetensors").string(), state);
    write_text_atomic((partial / "config.json").string(),
                      pretty_json(config_to_json(config, "float32")));
    copy_tokenizer(tokenizer, partial.string());
    const Json json = {{"version", kVersion},
                       {"step", checkpoint.step},
                       {"rows", checkpoint.rows},
                       {"seconds", checkpoint.seconds},
                       {"config", checkpoint.config}};
    write_text_atomic((partial / "state.json").string(), pretty_json(json));
    flush_folder(partial);
    fs::remove_all(target, error);
    fs::rename(partial, target);
    flush_folder(parent);
  } catch (const fs::filesystem_error& e) {
    fs::remove_all(partial, error);
    throw Error("checkpoint {}: {}", target.string(), e.code().message());
  } catch (...) {
    fs::remove_all(partial, error);
    throw;
  }
  const auto all = list_checkpoints(out);
  for (size_t n = static_cast<size_t>(keep); n < all.size(); ++n) fs::remove_all(all[n], error);
  return target.string();
}

std::optional<std::string> newest_checkpoint(const std::string& out) {
  const auto all = list_checkpoints(out);
  if (all.empty()) return std::nullopt;
  return all.front().string();
}

Checkpoint load_checkpoint(const std::string& folder) {
  const std::string path = (fs::path(folder) / "state.json").string();
  const Json json = read_json(path);
  if (get_int(json, "version", path) != kVersion) {
    throw Error("{}: version {} is not known to this program", path,
                get_int(json, "version", path));
  }
  Checkpoint checkpoint;
  checkpoint.step = get_int(json, "step", path);
  checkpoint.rows = get_int(json, "rows", path);
  checkpoint.seconds = get_float(json, "seconds", path);
  checkpoint.config = get_object(json, "config", path);
  checkpoint.weights = read_tensors((fs::path(folder) / "model.safetensors").string());
  checkpoint.state = read_tensors((fs::path(folder) / "optimizer.safetensors").string());
  const auto random = checkpoint.state.find(kRandomCpu);
  if (random != checkpoint.state.end()) {
    auto generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard lock(generator.mutex());
    generator.set_state(random->second);
    checkpoint.state.erase(random);
  }
  return checkpoint;
}

}  // namespace heed::train
