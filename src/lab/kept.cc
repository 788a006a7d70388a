#include "lab/kept.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <fmt/chrono.h>
#include <sys/utsname.h>
#include <torch/version.h>

#include <algorithm>
#include <filesystem>

#include "cache/plan/plan_programs.h"
#include "io/sha256.h"
#include "op/cuda_plugin.h"

namespace heed::lab {
namespace fs = std::filesystem;
namespace {

// Name, size and time of the last change: of a file, or of the files of a folder.
Json stamps(const std::string& path) {
  std::vector<fs::path> files;
  if (fs::is_directory(path)) {
    for (const auto& entry : fs::directory_iterator(path)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
  } else if (fs::exists(path)) {
    files.push_back(path);
  }
  Json out = Json::array();
  for (const auto& file : files) {
    out.push_back({file.filename().string(), fs::file_size(file),
                   fs::last_write_time(file).time_since_epoch().count()});
  }
  return out;
}

// Tells machines apart without naming them: reports are shown to others.
std::string machine() {
  utsname name{};
  ::uname(&name);
  return sha256_hex(fmt::format("{} {}", name.nodename, at::get_cpu_capability())).substr(0, 16);
}

Json documents_json(const std::vector<data::NeedleDocument>& documents) {
  Json out = Json::array();
  for (const auto& document : documents) {
    Json needles = Json::array();
    for (const auto& n : document.needles) {
      needles.push_back({n.begin, n.end, n.code, n.question, n.answer});
    }
    out.push_back({document.tokens, needles});
  }
  return out;
}

Json samples_json(const std::vector<plan::Sample>& samples) {
  Json out = Json::array();
  for (const auto& sample : samples) out.push_back({sample.tokens, sample.rows, sample.answers});
  return out;
}

std::string setting_name(const Decoder& model, const Programs* programs) {
  if (!programs) return "dense";
  const auto plan = plan::to_plan(model, *programs, {model.context()}, Json::object());
  return canonical_json(plan_to_json(plan));
}

}  // namespace

Json measuring_key(const eval::Workbench& bench, const report::EvaluationData& data,
                   int64_t context, at::ScalarType kv_dtype) {
  const auto& options = bench.model.options();
  Json device = options.device.str();
  Json plugin = nullptr;
  if (options.device.is_cuda()) {
    const auto devices = op::cuda_devices();
    if (!devices.empty()) device = devices[0].name;
    plugin = stamps(op::cuda_plugin_path());
  }
  return {{"heed", HEED_VERSION},
          {"program", sha256_of_file("/proc/self/exe")},
          {"plugin", plugin},
          {"pytorch", TORCH_VERSION},
          {"machine", machine()},
          {"device", device},
          {"threads", at::get_num_threads()},
          {"model", {{"hash", bench.model.hash()}, {"files", stamps(bench.path)}}},
          {"dtype", c10::toString(options.dtype)},
          {"kv_dtype", c10::toString(kv_dtype)},
          {"context", context},
          {"decode_steps", data.decode_steps},
          {"data", sha256_hex(canonical_json({data.texts, documents_json(data.needles)}))}};
}

std::string fingerprint(const plan::SearchData& data) {
  return sha256_hex(canonical_json({samples_json(data.texts), samples_json(data.needles),
                                    data.check_texts, documents_json(data.check_needles)}));
}

Kept::Kept(data::Records& records, const Json& key)
    : records_(records), scope_("demo-1/" + sha256_hex(canonical_json(key))) {}

std::optional<std::string> Kept::find(const std::string& name) const {
  if (own_.contains(name)) return std::nullopt;
  return records_.get_result(scope_, name);
}

void Kept::keep(const std::string& name, const Json& value) {
  own_.insert(name);
  try {
    records_.put_result(scope_, name, canonical_json(value));
  } catch (const Error&) {
    // Infinities of a broken model, which JSON cannot hold, are measured again.
  }
}

std::optional<Json> Kept::evaluation(const Decoder& model, const Programs* programs) const {
  const auto text = find("evaluation/" + setting_name(model, programs));
  if (!text) return std::nullopt;
  return parse_json(*text, records_.path());
}

void Kept::keep_evaluation(const Decoder& model, const Programs* programs, const Json& row) {
  keep("evaluation/" + setting_name(model, programs), row);
}

std::optional<Plan> Kept::plan(const std::string& search) const {
  const auto text = find("plan/" + search);
  if (!text) return std::nullopt;
  return parse_plan(*text, records_.path());
}

void Kept::keep_plan(const std::string& search, const Plan& plan) {
  keep("plan/" + search, plan_to_json(plan));
}

Json to_json(const std::vector<eval::NeedleResult>& needles) {
  Json out = Json::array();
  for (const auto& n : needles) out.push_back({n.hit, n.nll, n.depth, n.length, n.document});
  return out;
}

std::vector<eval::NeedleResult> needles_from_json(const Json& json) {
  std::vector<eval::NeedleResult> out;
  for (const auto& n : json) out.push_back({n.at(0), n.at(1), n.at(2), n.at(3), n.at(4)});
  return out;
}

std::string now_utc() {
  return fmt::format("{:%Y-%m-%d %H:%M UTC}", fmt::gmtime(std::time(nullptr)));
}

}  // namespace heed::lab
