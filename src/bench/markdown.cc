#include "bench/markdown.h"

#include <fmt/format.h>

#include <cmath>
#include <regex>

#include "bench/record.h"
#include "io/error.h"

namespace heed::bench {
namespace {

// Three digits that count: 0.0123, 1.23, 12.3, 123, 1230.
std::string three_digits(double x) {
  if (!(x > 0)) return fmt::format("{:g}", x);
  const int digits = std::clamp(2 - static_cast<int>(std::floor(std::log10(x))), 0, 6);
  return fmt::format("{:.{}f}", x, digits);
}

std::string milliseconds(double ms) { return three_digits(ms); }

// The limit that the record comes nearest to: "78% of matmul".
std::string of_limit(const Json& r, const std::string& file) {
  double best = -1;
  std::string name;
  for (const char* limit : {"read", "copy", "matmul"}) {
    const Json* value = find_field(r, std::string("of_") + limit, file);
    if (!value || !value->is_number()) continue;
    if (value->get<double>() > best) {
      best = value->get<double>();
      name = limit;
    }
  }
  return best < 0 ? "" : fmt::format("{:.0f}% of {}", 100 * best, name);
}

std::string row_of(const Json& r, const std::string& file) {
  std::string beside, ratio;
  for (const Json& p : get_array(r, "peers", file)) {
    if (find_field(p, "reason", file)) continue;
    beside += beside.empty() ? "" : "<br>";
    ratio += ratio.empty() ? "" : "<br>";
    beside +=
        fmt::format("{} {}", get_string(p, "name", file), milliseconds(get_float(p, "ms", file)));
    ratio += fmt::format("{:.2f}", get_float(p, "ratio", file));
  }
  std::string more;
  if (const Json* rate = find_field(r, "tokens_per_second", file)) {
    more += fmt::format(", {} tokens/s", three_digits(rate->get<double>()));
  }
  if (const Json* bytes = find_field(r, "kv_bytes", file)) {
    more += fmt::format(", {} MB of keys and values", three_digits(bytes->get<double>() * 1e-6));
  }
  return fmt::format("| `{}` | {} ({} to {}){} | {} | {:.0e} | {} | {} |\n",
                     get_string(r, "name", file), milliseconds(get_float(r, "ms", file)),
                     milliseconds(get_float(r, "ms_min", file)),
                     milliseconds(get_float(r, "ms_max", file)), more, of_limit(r, file),
                     get_float(r, "error", file), beside, ratio);
}

constexpr const char* kBegin = "<!-- heed bench table ";
constexpr const char* kEnd = "<!-- end of table -->";

// Words between blanks; '...' keeps blanks.
std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  bool quoted = false, open = false;
  for (const char c : text) {
    if (c == '\'') {
      quoted = !quoted;
      open = true;
      if (quoted) words.emplace_back();
    } else if (c == ' ' && !quoted) {
      open = false;
    } else {
      if (!open) words.emplace_back();
      open = true;
      words.back() += c;
    }
  }
  return words;
}

}  // namespace

std::string markdown_table(const Json& file, const std::string& path, const std::string& filter) {
  std::regex expression;
  try {
    expression = std::regex(filter);
  } catch (const std::regex_error& e) {
    throw UsageError("--filter: `{}` is no regular expression ({})", filter, e.what());
  }
  const Json& m = get_object(file, "machine", path);
  const std::string where = path + ": machine";
  const int64_t threads = get_int(m, "threads", where);
  std::string text =
      fmt::format("{}, {} thread{}, PyTorch {}, {}: copies {:.1f} GB/s, reads {:.1f} GB/s",
                  get_string(m, "device", where), threads, threads == 1 ? "" : "s",
                  get_string(m, "pytorch", where), get_string(m, "date", where).substr(0, 10),
                  get_float(m, "copy_gbps", where), get_float(m, "read_gbps", where));
  for (const auto& [dtype, rate] : get_object(m, "matmul_tflops", where).items()) {
    text += fmt::format(", {} products {} Gflop/s", dtype, three_digits(1e3 * rate.get<double>()));
  }
  text +=
      ".\n\n| what | ms (range) | of this machine's limit | error | beside, ms | times as long |\n"
      "| --- | --- | --- | --- | --- | --- |\n";
  bool any = false;
  for (const Json& r : get_array(file, "records", path)) {
    const std::string name = get_string(r, "name", path + ": records");
    if (!std::regex_search(name, expression)) continue;
    text += row_of(r, path + ": " + name);
    any = true;
  }
  if (!any) throw UsageError("--filter: no record of {} matches `{}`", path, filter);
  return text;
}

std::string markdown_tables(const std::vector<std::string>& paths, const std::string& filter) {
  std::string text;
  for (const std::string& path : paths) {
    text += text.empty() ? "" : "\n";
    text += markdown_table(read_json(path), path, filter);
  }
  return text;
}

std::string refresh_tables(const std::string& text, const std::string& folder,
                           const std::string& document) {
  std::string result;
  size_t at = 0;
  for (;;) {
    const size_t begin = text.find(kBegin, at);
    if (begin == std::string::npos) break;
    const size_t line_end = text.find('\n', begin);
    const size_t end = text.find(kEnd, begin);
    if (end == std::string::npos || line_end > end) {
      throw Error("{}: a table that begins with `{}` has no line `{}` after it", document,
                  text.substr(begin, std::min<size_t>(60, line_end - begin)), kEnd);
    }
    const size_t arguments = begin + std::string_view(kBegin).size();
    std::string line = text.substr(arguments, line_end - arguments);
    line.resize(std::min(line.size(), line.rfind("-->")));
    std::string filter;
    std::vector<std::string> paths;
    const auto words = words_of(line);
    for (size_t i = 0; i < words.size(); ++i) {
      if (words[i] == "--filter" && i + 1 < words.size()) {
        filter = words[++i];
      } else {
        paths.push_back(folder + "/" + words[i]);
      }
    }
    result += text.substr(at, line_end + 1 - at) + "\n" + markdown_tables(paths, filter) + "\n";
    at = end;
  }
  return result + text.substr(at);
}

}  // namespace heed::bench
