#include "io/model_path.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "io/describe.h"
#include "io/error.h"
#include "io/file_kind.h"
#include "io/json.h"
#include "io/llama2c.h"
#include "io/mapped_file.h"
#include "io/safetensors.h"

namespace heed {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndex = "model.safetensors.index.json";

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

// The one snapshot of a folder of the hub's cache; nothing for other folders.
std::optional<fs::path> hub_snapshot(const fs::path& folder) {
  const fs::path snapshots = folder / "snapshots";
  if (!is_folder(snapshots)) return std::nullopt;
  if (const fs::path main = folder / "refs" / "main"; is_there(main)) {
    const MappedFile file(main.string());
    std::string name(file.text().substr(0, 256));
    while (!name.empty() && (name.back() == '\n' || name.back() == ' ')) name.pop_back();
    const bool plain = !name.empty() && name.find('/') == name.npos && name != "..";
    if (plain && is_folder(snapshots / name)) return snapshots / name;
  }
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(snapshots, ignored)) {
    if (is_folder(entry.path())) names.push_back(entry.path().filename().string());
  }
  if (names.size() == 1) return snapshots / names[0];
  std::sort(names.begin(), names.end());
  if (names.empty()) {
    throw Error("{}: holds no snapshot of the model; fetch it again", printable(folder.string()));
  }
  throw Error("{}: holds {} snapshots of the model ({}); give the folder of one of them",
              printable(folder.string()), names.size(), name_some(names));
}

// Whether the name is that of a later file of a split model.
bool is_later_part(const std::string& name) {
  const size_t of = name.rfind("-of-");
  return of != name.npos && of >= 6 && name[of - 6] == '-' && name.substr(of - 5, 5) != "00001" &&
         std::all_of(name.begin() + static_cast<int64_t>(of) - 5,
                     name.begin() + static_cast<int64_t>(of),
                     [](char c) { return c >= '0' && c <= '9'; });
}

ModelPlace find_in_folder(const fs::path& folder) {
  if (is_there(folder / "config.json")) return {folder.string(), ModelFormat::kSafetensors};
  if (const auto snapshot = hub_snapshot(folder)) return find_in_folder(*snapshot);
  std::vector<std::string> models, others;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file(ignored)) continue;
    if (!is_gguf_file(entry.path().string())) {
      others.push_back(name);
    } else if (!is_later_part(name)) {
      models.push_back(name);
    }
  }
  std::sort(models.begin(), models.end());
  if (models.size() == 1) return {(folder / models[0]).string(), ModelFormat::kGguf};
  if (models.size() > 1) {
    throw Error("{}: holds {} GGUF files ({}); give the path of one of them",
                printable(folder.string()), models.size(), name_some(models));
  }
  if (std::find(others.begin(), others.end(), "adapter_config.json") != others.end()) {
    throw Error(
        "{}: holds an adapter (LoRA), not a model; merge it into its model (`merge_and_unload` of "
        "peft) and save that",
        printable(folder.string()));
  }
  throw Error(
      "{}: config.json is missing, and there is no GGUF file; a model folder holds config.json and "
      "model.safetensors",
      printable(folder.string()));
}

// Whether the file is one of those that make its folder a model.
bool belongs_to_folder(const fs::path& file) {
  const fs::path folder = file.parent_path();
  const std::string name = file.filename().string();
  if (!is_there(folder / "config.json")) return false;
  if (name == "config.json" || name == kIndex || name == "model.safetensors") return true;
  if (is_there(folder / "model.safetensors") || !is_there(folder / kIndex)) return false;
  const Json index = read_json((folder / kIndex).string());
  const Json* map = find_field(index, "weight_map", (folder / kIndex).string());
  return map != nullptr && map->is_object() &&
         std::any_of(map->begin(), map->end(), [&](const Json& shard) { return shard == name; });
}

// The folder of a file by the path as it was given or by one of those that it links to.
std::optional<fs::path> folder_of(fs::path file) {
  constexpr int kMostLinks = 40;  // as the system follows
  for (int i = 0; i < kMostLinks; ++i) {
    if (belongs_to_folder(file)) {
      const fs::path folder = file.parent_path();
      return folder.empty() ? fs::path(".") : folder;
    }
    std::error_code error;
    const fs::path next = fs::read_symlink(file, error);
    if (error) break;
    file = next.is_absolute() ? next : file.parent_path() / next;
  }
  std::error_code error;
  const fs::path canonical = fs::canonical(file, error);
  if (!error && belongs_to_folder(canonical)) return canonical.parent_path();
  return std::nullopt;
}

bool begins_as_safetensors(std::span<const std::byte> bytes) {
  uint64_t length = 0;
  if (bytes.size() <= sizeof length) return false;
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length < 2 || length > kMaxSafetensorsHeader) return false;
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + sizeof length,
                                std::min<size_t>(bytes.size() - sizeof length, 64));
  const size_t first = header.find_first_not_of(" \t\r\n");
  return first != header.npos && header[first] == '{';
}

ModelPlace find_by_file(const std::string& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  if (file_facts(bytes).kind == FileKind::kGguf) return {path, ModelFormat::kGguf};
  refuse_foreign(bytes, path);
  const bool safetensors = begins_as_safetensors(bytes);
  if (safetensors || bytes[0] == std::byte{'{'}) {
    if (const auto folder = folder_of(path)) return {folder->string(), ModelFormat::kSafetensors};
  }
  if (safetensors) {
    throw Error(
        "{}: holds tensors, but no model: it is neither the model.safetensors beside a config.json "
        "nor one of the shards that an index names; give the model's folder",
        printable(path));
  }
  if (is_llama2c_header(bytes)) return {path, ModelFormat::kLlama2c};
  throw Error(
      "{}: not a model by its first bytes; a folder with config.json and model.safetensors, a GGUF "
      "file or a llama2.c checkpoint was expected",
      printable(path));
}

}  // namespace

ModelPlace find_model(const std::string& path) {
  std::error_code ignored;
  if (is_folder(path)) return find_in_folder(path);
  if (!is_there(path)) {
    if (fs::is_symlink(path, ignored)) {
      throw Error("{}: is a link to {}, which is not there; fetch the model again", printable(path),
                  printable(fs::read_symlink(path, ignored).string()));
    }
    throw Error(
        "{}: there is no such file or folder; `heed models` lists the names that Heed knows",
        printable(path));
  }
  return find_by_file(path);
}

}  // namespace heed
