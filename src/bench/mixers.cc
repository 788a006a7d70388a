#include "bench/mixers.h"

#include <ATen/ATen.h>
#include <malloc.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <map>

#include "bench/cases.h"
#include "bench/machine.h"
#include "bench/record.h"
#include "bench/timing.h"
#include "io/error.h"
#include "mixer/sample.h"

namespace heed::bench {
namespace {

using mixer::Mechanism;
using mixer::Settings;
using mixer::Try;

constexpr int64_t kTimedHeads = 4;

// Sides of a grid of so many tokens, as near to a square as their number allows: "64x64".
std::string grid_of(int64_t tokens) {
  auto side = static_cast<int64_t>(std::sqrt(static_cast<double>(tokens)));
  while (side > 1 && tokens % side != 0) --side;
  return fmt::format("{}x{}", tokens / std::max<int64_t>(side, 1), side);
}

// The call of a card worth timing: one sequence, ordinary sizes, no optional tensors.
Try timed_call(const Mechanism& m, int64_t tokens) {
  const mixer::TestCard& tests = m.card.tests;
  Try call;
  call.settings = tests.timed.empty() ? tests.always : tests.timed;
  std::erase_if(call.settings, [](const auto& setting) { return setting.first == "grid"; });
  const mixer::SettingSpec* grid = m.card.apply.setting("grid");
  if (grid != nullptr && grid->required) call.settings.emplace_back("grid", grid_of(tokens));
  call.sizes = {{tests.queries, tokens}, {tests.keys, tokens}};
  if (!tests.batch.empty()) call.sizes.emplace(tests.batch, 1);
  for (const std::string& heads : tests.heads) call.sizes.emplace(heads, kTimedHeads);
  for (const auto& [name, size] : tests.large) call.sizes.emplace(name, size);
  return call;
}

// Bytes of a field of /proc/self/status, 0 where the system does not tell.
int64_t status_bytes(const std::string& field) {
  std::ifstream file("/proc/self/status");
  for (std::string word; file >> word;) {
    int64_t kilobytes = 0;
    if (word == field + ":" && file >> kilobytes) return kilobytes << 10;
  }
  return 0;
}

// A form's first run.
struct FirstRun {
  std::vector<at::Tensor> outputs;
  int64_t peak_bytes = 0;  // by which the resident memory grew at most, outputs included
  double ms = 0;
};

template <typename F>
FirstRun first_run(const at::Device& device, F&& run) {
  FirstRun first;
  malloc_trim(0);  // what is free is asked for again, and so is counted
  std::ofstream("/proc/self/clear_refs") << "5";  // the peak starts from here
  const int64_t before = status_bytes("VmRSS");
  const auto start = std::chrono::steady_clock::now();
  first.outputs = run();
  wait_for(device);
  const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - start;
  first.ms = spent.count();
  first.peak_bytes = std::max<int64_t>(status_bytes("VmHWM") - before, 0);
  return first;
}

struct Core {
  const Mechanism* mechanism;
  mixer::CoreCall call;

  std::vector<at::Tensor> run(const std::string& form) const {
    mixer::CoreCall one = call;
    one.form = form;
    const NamedTensors out = mechanism->core(one);
    std::vector<at::Tensor> list;
    for (const auto& [name, t] : out) list.push_back(t);
    return list;
  }
};

Core core_of(const Mechanism& m, const Try& one, int64_t tokens, const at::Device& device) {
  mixer::SampleOptions sample;
  sample.optional = false;
  NamedTensors inputs = mixer::make_inputs(m, one, tokens, 1, sample);
  for (auto& [name, t] : inputs) t = t.to(device);
  const Settings settings = mixer::read_settings(m.card, one.settings);
  const mixer::Names names = mixer::names_of(m, mixer::sizes_of(m, one, tokens), one.settings);
  return {&m, {std::move(inputs), settings, "", names}};
}

double worst_error(const std::vector<at::Tensor>& y, const std::vector<at::Tensor>& reference) {
  double worst = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    if (!y[i].is_floating_point()) continue;
    const at::Tensor finite = reference[i].isfinite();
    worst = std::max(
        worst, relative_error(y[i].masked_select(finite), reference[i].masked_select(finite)));
  }
  return worst;
}

int64_t bytes_of(const NamedTensors& inputs, const std::vector<at::Tensor>& outputs) {
  int64_t bytes = 0;
  for (const auto& [name, t] : inputs) bytes += t.numel() * t.element_size();
  for (const at::Tensor& t : outputs) bytes += t.numel() * t.element_size();
  return bytes;
}

// Times of the forms, in their order: alternately, but for those that are so slow that their first
// run tells enough.
std::vector<Times> times_of(const Core& core, const std::vector<std::string>& forms,
                            const std::vector<FirstRun>& first, const MixerOptions& options) {
  constexpr double kSlow = 500;  // ms
  std::vector<Times> times(forms.size());
  std::vector<Contender> contenders;
  std::vector<size_t> places;
  for (size_t i = 0; i < forms.size(); ++i) {
    times[i] = {first[i].ms, first[i].ms, first[i].ms, 1, 0, first[i].outputs};
    if (first[i].ms > kSlow) continue;
    const std::string& form = forms[i];
    contenders.push_back({form, "", "", {}, [&core, form](int64_t) { return core.run(form); }});
    places.push_back(i);
  }
  std::vector<const Contender*> list;
  for (const Contender& c : contenders) list.push_back(&c);
  const TimingOptions timing =
      options.quick ? TimingOptions{1, 3, 0.2, 1} : TimingOptions{5, 31, 1.0, 5};
  const std::vector<Times> alternating = time_alternately(list, 1, options.device, timing);
  for (size_t i = 0; i < places.size(); ++i) times[places[i]] = alternating[i];
  return times;
}

// All forms of one mechanism at one number of tokens.
std::vector<Record> time_forms(const Mechanism& m, int64_t tokens, const MixerOptions& options) {
  const Try one = timed_call(m, tokens);
  const Core core = core_of(m, one, tokens, options.device);
  std::vector<std::string> forms = {"naive"};
  for (const std::string& form : mixer::forms_of(m.card, core.call.settings, core.call.in)) {
    if (form != "naive") forms.push_back(form);
  }
  std::vector<FirstRun> first;
  for (const std::string& form : forms) {
    check_interrupted();
    first.push_back(first_run(options.device, [&] { return core.run(form); }));
  }
  const std::vector<Times> times = times_of(core, forms, first, options);

  std::vector<Record> records;
  for (size_t i = 1; i < forms.size(); ++i) {
    Record r;
    r.name = fmt::format("mixer/{}/{}/T{}", m.card.id, forms[i], tokens);
    r.op = m.card.id, r.pass = forms[i], r.dtype = "float32";
    for (const auto& [name, size] : mixer::sizes_of(m, one, tokens)) r.shape[name] = size;
    for (const auto& [name, text] : one.settings) r.shape[name] = text;
    r.ms = times[i].median, r.ms_min = times[i].least, r.ms_max = times[i].most;
    r.runs = times[i].runs;
    r.bytes = bytes_of(core.call.in, first[i].outputs);
    r.error = worst_error(first[i].outputs, first[0].outputs), r.reference = "naive float32";
    r.peak_bytes = first[i].peak_bytes;
    r.more["naive_peak_bytes"] = first[0].peak_bytes;
    PeerRecord naive{"naive", "", ""};
    naive.ms = times[0].median, naive.ms_min = times[0].least, naive.ms_max = times[0].most;
    r.peers.push_back(std::move(naive));
    records.push_back(std::move(r));
  }
  return records;
}

}  // namespace

Json run_mixers(const MixerOptions& options, Progress& progress) {
  std::vector<const Mechanism*> mechanisms;
  for (const std::string& id : options.ids) mechanisms.push_back(&mixer::find_mechanism(id));
  if (options.ids.empty()) {
    for (const Mechanism& m : mixer::registry().all()) mechanisms.push_back(&m);
  }
  const at::NoGradGuard no_gradients;
  Machine machine = measure_machine(options.device, options.quick, progress);
  std::vector<Record> records;
  Json skipped = Json::object();
  progress.begin("Timing mechanisms", static_cast<int64_t>(mechanisms.size()));
  for (size_t i = 0; i < mechanisms.size(); ++i) {
    progress.step(static_cast<int64_t>(i), mechanisms[i]->card.id);
    for (const int64_t tokens : options.tokens) {
      try {
        for (Record& r : time_forms(*mechanisms[i], tokens, options)) {
          records.push_back(std::move(r));
        }
      } catch (const UsageError& e) {
        if (!options.ids.empty()) throw;
        skipped[fmt::format("{}/T{}", mechanisms[i]->card.id, tokens)] = e.what();
      }
    }
  }
  progress.end();
  Json file = to_json(machine, records);
  if (!skipped.empty()) file["skipped"] = skipped;
  return file;
}

}  // namespace heed::bench
