#include "documented_helper.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>

namespace heed::test {
namespace {

namespace fs = std::filesystem;

// Without a prompt, "./", what a shell takes for a comment, and runs of spaces outside quotes.
std::string tidy(std::string text) {
  text = std::regex_replace(text, std::regex(R"(^\s*(\$ )?)"), "");
  std::string out;
  char quote = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote != 0) {
      if (c == quote) quote = 0;
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (c == '#' && i > 0 && text[i - 1] == ' ') {
      break;
    } else if (c == ' ' && (out.empty() || out.back() == ' ')) {
      continue;
    }
    out += c;
  }
  while (!out.empty() && out.back() == ' ') out.pop_back();
  return std::regex_replace(out, std::regex(R"((^|&& |\| )\./heed\b)"), "$1heed");
}

// What a line of a block begins with when it is a command and no output.
bool is_command(const std::string& line) {
  static const std::regex begins(
      R"(^\s*(\$ |\./|heed |cmake |ninja |ctest |git |export |\.ci/|python3? |pip |apt-get |build/))");
  // The tree of README.md draws the launcher too.
  static const std::regex drawn(R"(^heed {4,})");
  return std::regex_search(line, begins) && !std::regex_search(line, drawn);
}

bool goes_on(const std::string& line) { return line.ends_with("\\"); }

void read_page(const fs::path& path, const std::string& name, std::vector<Documented>& out) {
  static const std::regex in_backticks("`((?:\\./)?heed(?: [^`]*)?|cmake [^`]*)`");
  std::ifstream file(path);
  bool fenced = false, shell = false;
  int number = 0;
  std::string line;
  while (std::getline(file, line)) {
    ++number;
    const std::string where = name + ":" + std::to_string(number);
    if (line.starts_with("```")) {
      fenced = !fenced;
      shell = fenced && (line == "```" || line == "```sh" || line == "```bash");
      continue;
    }
    if (fenced ? shell : line.starts_with("    ")) {
      if (!is_command(line)) continue;
      std::string whole = line, next;
      // A line that ends in a backslash goes on, and so does usage that is indented below it.
      while ((goes_on(whole) || (fenced && file.peek() == ' ')) && std::getline(file, next)) {
        ++number;
        if (goes_on(whole)) whole.pop_back();
        whole += " " + next;
      }
      out.push_back({where, tidy(whole)});
    } else if (!fenced) {
      for (std::sregex_iterator m(line.begin(), line.end(), in_backticks), end; m != end; ++m) {
        const std::string text = tidy((*m)[1]);
        if (text != "heed") out.push_back({where, text});
      }
    }
  }
}

}  // namespace

std::vector<Documented> documented_commands() {
  const fs::path root = HEED_SOURCE_DIR;
  std::vector<fs::path> pages = {root / "README.md", root / "CONTRIBUTING.md"};
  for (const auto& entry : fs::recursive_directory_iterator(root / "docs")) {
    if (entry.path().extension() == ".md") pages.push_back(entry.path());
  }
  std::sort(pages.begin() + 2, pages.end());
  std::vector<Documented> out;
  for (const fs::path& page : pages) read_page(page, fs::relative(page, root).string(), out);
  return out;
}

std::vector<Documented> examples_of(const std::string& help, const std::string& where) {
  std::vector<Documented> out;
  std::istringstream lines(help);
  std::string line;
  bool examples = false;
  while (std::getline(lines, line)) {
    if (examples && line.starts_with("  ")) out.push_back({where, tidy(line)});
    examples = examples ? line.starts_with("  ") : line == "Examples:";
  }
  return out;
}

std::string first_choice(const std::string& text) {
  std::string out = std::regex_replace(text, std::regex(R"(\.\.\.)"), "");
  out = std::regex_replace(out, std::regex(R"( \[([^\[\]]*)\])"), " $1");
  return std::regex_replace(out, std::regex(R"((\w+)(?:\|\w+)+)"), "$1");
}

}  // namespace heed::test
