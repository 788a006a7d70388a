#include "bench/kernels.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <malloc.h>

#include <limits>
#include <regex>

#include "bench/machine.h"
#include "io/error.h"

namespace heed::bench {
namespace {

// The C library hands large blocks back to the system when they are freed and gets them again page
// by page, or does not, by what the process has allocated before: up to a quarter of a short call's
// time for whoever is timed, and for one contender more than for another. Here all of them find the
// memory that they freed.
void keep_freed_memory() {
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
}

// Peers that exist but that this program cannot call.
const std::map<std::string, std::string>& absent_peers() {
  static const std::map<std::string, std::string> reasons = {
      {"flash-attn", "a Python package of CUDA kernels"},
      {"flashinfer", "a Python package of CUDA kernels"},
      {"flash-linear-attention", "a Python package of Triton kernels"},
      {"mamba-ssm", "a Python package of CUDA and Triton kernels"},
      {"natten", "a Python package of CUDA kernels"}};
  return reasons;
}

bool wants(const std::vector<std::string>& peers, const std::string& name) {
  return std::find(peers.begin(), peers.end(), name) != peers.end();
}

// The largest error; Error where one passes its bound (NaN passes every bound).
double accept(const Case& c, const std::vector<Checked>& checked) {
  double worst = 0;
  for (const Checked& x : checked) {
    if (!(x.error <= x.bound)) {
      throw Error(
          "bench: {}: {} is wrong, relative error {:.2e} against float64 where {:.0e} is allowed; "
          "no figure is kept (run `heed test`, and report it with this line)",
          c.name, x.what, x.error, x.bound);
    }
    worst = std::max(worst, x.error);
  }
  return worst;
}

}  // namespace

int64_t sets_of(int64_t bytes) {
  return std::clamp<int64_t>((int64_t{96} << 20) / std::max<int64_t>(bytes, 1) + 1, 2, 64);
}

double relative_error(const at::Tensor& value, const at::Tensor& reference) {
  if (value.sizes() != reference.sizes()) return std::numeric_limits<double>::quiet_NaN();
  const at::Tensor expected = reference.detach().to(at::kDouble);
  const double distance = value.detach().to(at::kDouble).sub(expected).norm().item<double>();
  const double size = expected.norm().item<double>();
  return size > 0 ? distance / size : distance;
}

double forward_bound(const std::string& dtype) {
  return dtype == "float32" ? 2e-6 : (dtype == "float16" ? 1e-3 : 6e-3);
}

double backward_bound(const std::string& dtype) {
  return dtype == "float32" ? 1e-5 : (dtype == "float16" ? 3e-3 : 1.5e-2);
}

std::string shape_name(const std::vector<std::pair<std::string, int64_t>>& sizes) {
  std::string name;
  for (const auto& [letter, size] : sizes) {
    name += fmt::format("{}{}{}", name.empty() ? "" : "-", letter, size);
  }
  return name;
}

std::vector<Case> choose_cases(const KernelOptions& options) {
  std::regex filter;
  try {
    filter = std::regex(options.filter);
  } catch (const std::regex_error& e) {
    throw UsageError("--filter: `{}` is no regular expression ({}); write e.g. 'attend/forward'",
                     options.filter, e.what());
  }
  std::vector<Case> all = attend_cases(options.quick);
  for (const auto& more :
       {attend_variant_cases, scan_cases, ewscan_cases, pool_cases, learn_cases, mix_cases}) {
    for (Case& c : more(options.quick)) all.push_back(std::move(c));
  }
  std::erase_if(all, [&](const Case& c) {
    return (options.device.is_cuda() && !c.cuda) || !std::regex_search(c.name, filter);
  });
  if (all.empty()) {
    throw UsageError("--filter: no benchmark matches `{}`; `heed bench kernels --list` shows them",
                     options.filter);
  }
  return all;
}

void check_peers(const std::vector<std::string>& peers) {
  for (const std::string& p : peers) {
    if (p == "pytorch" || p == "none" || absent_peers().count(p)) continue;
    std::string known = "pytorch";
    for (const auto& [name, reason] : absent_peers()) known += ", " + name;
    throw UsageError("--peers: `{}` is not known, expected none or some of {}", p, known);
  }
}

Record run_case(const Case& c, const KernelOptions& options) {
  const at::NoGradGuard no_gradients;
  Work work = c.make(options.device);
  if (!wants(options.peers, "pytorch")) work.peers.clear();
  std::vector<const Contender*> contenders = {&work.ours};
  for (const Contender& p : work.peers) contenders.push_back(&p);
  TimingOptions timing;
  if (options.quick) timing = {3, 5, 0.05, 1};
  auto times = time_alternately(contenders, work.sets, options.device, timing);
  Record r;
  r.name = c.name;
  r.op = c.op;
  r.pass = c.pass;
  r.dtype = c.dtype;
  r.arithmetic = c.arithmetic;
  r.shape = c.shape;
  r.bytes = c.bytes;
  r.flops = c.flops;
  r.ms = times[0].median;
  r.ms_min = times[0].least;
  r.ms_max = times[0].most;
  r.runs = times[0].runs;
  r.error = accept(c, work.check(times[0].set, times[0].outputs));
  for (size_t i = 0; i < work.peers.size(); ++i) {
    const Contender& p = work.peers[i];
    PeerRecord peer{p.name, p.version, p.reason};
    if (p.reason.empty()) {
      peer.ms = times[i + 1].median;
      peer.ms_min = times[i + 1].least;
      peer.ms_max = times[i + 1].most;
      for (const Checked& x : work.check(times[i + 1].set, times[i + 1].outputs)) {
        peer.error = std::max(peer.error, x.error);
      }
    }
    r.peers.push_back(std::move(peer));
  }
  for (const std::string& name : options.peers) {
    const auto absent = absent_peers().find(name);
    if (absent != absent_peers().end()) r.peers.push_back({name, "", absent->second});
  }
  return r;
}

Json run_kernels(const KernelOptions& options, Progress& progress) {
  check_peers(options.peers);
  const std::vector<Case> cases = choose_cases(options);
  at::manual_seed(0);
  keep_freed_memory();
  Machine machine = measure_machine(options.device, options.quick, progress);
  std::vector<Record> records;
  progress.begin("Timing kernels", static_cast<int64_t>(cases.size()));
  for (const Case& c : cases) {
    progress.step(static_cast<int64_t>(records.size()), c.name);
    records.push_back(run_case(c, options));
  }
  progress.end();
  measure_again(machine, options.device, options.quick, progress);
  return to_json(machine, records);
}

}  // namespace heed::bench
