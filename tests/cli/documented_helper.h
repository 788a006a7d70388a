// The commands that the documents show, as a reader would copy them.
#pragma once

#include <string>
#include <vector>

namespace heed::test {

struct Documented {
  std::string where;  // "docs/loop.md:7"
  std::string text;   // one line: no "$ ", no "./", no comment, continuations joined
};

// Command lines of README.md, CONTRIBUTING.md and every page under docs/: those of fenced and
// indented blocks, and those in backticks that begin with the program's name.
std::vector<Documented> documented_commands();

// Lines after "Examples:" in `text`, what `heed WHERE --help` prints.
std::vector<Documented> examples_of(const std::string& help, const std::string& where);

// A line of usage as one that can be run: "[--plan P]" without its brackets, the first of "a|b|c",
// without "...".
std::string first_choice(const std::string& text);

}  // namespace heed::test
