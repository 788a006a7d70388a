// The table of all systems, ready and planned: systems.tsv, built into the program.
#pragma once

#include <string>
#include <vector>

namespace heed::mixer {

struct System {
  std::string id;
  std::string family;
  std::string kind;
  std::string title;
  std::string paper;
};

const std::vector<System>& systems();
const System* find_system(const std::string& id);  // null if there is none

}  // namespace heed::mixer
