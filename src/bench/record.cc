#include "bench/record.h"

#include <fmt/format.h>

#include <algorithm>

namespace heed::bench {

Json to_json(const Machine& m) {
  Json j;
  j["device"] = m.device;
  j[m.multiprocessors ? "multiprocessors" : "cores"] = m.cores;
  j["threads"] = m.threads;
  j["memory_gb"] = m.memory_gb;
  j["copy_gbps"] = m.copy_gbps;
  j["read_gbps"] = m.read_gbps;
  j["matmul_tflops"] = m.matmul_tflops;
  j["heed"] = {{"version", m.heed}, {"commit", m.commit}};
  j["pytorch"] = m.pytorch;
  j["cuda"] = m.cuda.empty() ? Json() : Json(m.cuda);
  j["compiler"] = m.compiler;
  j["date"] = m.date;
  return j;
}

Json to_json(const Record& r, const Machine& m) {
  Json j = r.more;
  j["name"] = r.name;
  j["op"] = r.op;
  j["pass"] = r.pass;
  j["dtype"] = r.dtype;
  j["shape"] = r.shape;
  j["ms"] = r.ms;
  j["ms_min"] = r.ms_min;
  j["ms_max"] = r.ms_max;
  j["runs"] = r.runs;
  j["bytes"] = r.bytes;
  j["flops"] = r.flops;
  const double gbps = static_cast<double>(r.bytes) / r.ms * 1e-6;
  const double tflops = static_cast<double>(r.flops) / r.ms * 1e-9;
  j["gbps"] = gbps;
  j["tflops"] = tflops;
  j["of_copy"] = gbps / m.copy_gbps;
  j["of_read"] = gbps / m.read_gbps;
  const std::string& arithmetic = r.arithmetic.empty() ? r.dtype : r.arithmetic;
  j["arithmetic"] = arithmetic;
  const auto matmul = m.matmul_tflops.find(arithmetic);
  j["of_matmul"] = matmul == m.matmul_tflops.end() ? Json() : Json(tflops / matmul->second);
  j["error"] = r.error;
  j["reference"] = r.reference;
  j["peak_bytes"] = r.peak_bytes > 0 ? Json(r.peak_bytes) : Json();
  j["peers"] = Json::array();
  for (const PeerRecord& p : r.peers) {
    Json peer = {{"name", p.name}, {"version", p.version}};
    if (p.reason.empty()) {
      peer["ms"] = p.ms;
      peer["ms_min"] = p.ms_min;
      peer["ms_max"] = p.ms_max;
      peer["ratio"] = p.ms / r.ms;
      peer["error"] = p.error < 0 ? Json() : Json(p.error);
    } else {
      peer["reason"] = p.reason;
    }
    j["peers"].push_back(std::move(peer));
  }
  return j;
}

Json to_json(const Machine& machine, const std::vector<Record>& records) {
  Json list = Json::array();
  for (const Record& r : records) list.push_back(to_json(r, machine));
  return {{"machine", to_json(machine)}, {"records", std::move(list)}};
}

std::string text_table(const Json& file) {
  const Json& m = file["machine"];
  std::string matmul;
  for (const auto& [dtype, tflops] : m["matmul_tflops"].items()) {
    matmul += fmt::format(", {} {:.3f}", dtype, tflops.get<double>());
  }
  std::string text = fmt::format(
      "{}, {} threads, {}: copy {:.1f} GB/s, read {:.1f} GB/s, products in Tflop/s{}\n\n",
      m["device"].get<std::string>(), m["threads"].get<int>(),
      "PyTorch " + m["pytorch"].get<std::string>(), m["copy_gbps"].get<double>(),
      m["read_gbps"].get<double>(), matmul.empty() ? ": none" : matmul);
  size_t width = 4;
  for (const Json& r : file["records"]) {
    width = std::max(width, r["name"].get_ref<const std::string&>().size());
  }
  text += fmt::format("{:<{}}  {:>9} {:>19}  {:>7} {:>7} {:>9}  {}\n", "name", width, "ms", "range",
                      "of read", "of mm", "error", "peers: ms, times as long as ours");
  for (const Json& r : file["records"]) {
    std::string peers;
    if (r.contains("tokens_per_second")) {
      peers = fmt::format("{:.1f} tokens/s", r["tokens_per_second"].get<double>());
      if (r.contains("weights")) peers += ", weights " + r["weights"].get<std::string>();
    }
    for (const Json& p : r["peers"]) {
      peers += peers.empty() ? "" : "; ";
      peers += p.contains("reason") ? fmt::format("{}: {}", p["name"].get<std::string>(),
                                                  p["reason"].get<std::string>())
                                    : fmt::format("{} {:.3f} x{:.2f}", p["name"].get<std::string>(),
                                                  p["ms"].get<double>(), p["ratio"].get<double>());
    }
    const std::string matmul_part =
        r["of_matmul"].is_null() ? "" : fmt::format("{:.0f}%", 100 * r["of_matmul"].get<double>());
    text += fmt::format(
        "{:<{}}  {:>9.3f} {:>19}  {:>6.0f}% {:>7} {:>9.1e}  {}\n", r["name"].get<std::string>(),
        width, r["ms"].get<double>(),
        fmt::format("{:.3f}-{:.3f}", r["ms_min"].get<double>(), r["ms_max"].get<double>()),
        100 * r["of_read"].get<double>(), matmul_part, r["error"].get<double>(), peers);
  }
  return text;
}

}  // namespace heed::bench
