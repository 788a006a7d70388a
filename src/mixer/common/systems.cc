#include "mixer/common/systems.h"

#include <string_view>

#include "heed/systems.inc"  // made by the build: k_systems_tsv, the text of systems.tsv

namespace heed::mixer {

const std::vector<System>& systems() {
  static const std::vector<System> all = [] {
    std::vector<System> made;
    std::string_view rest = k_systems_tsv;
    bool header = true;
    while (!rest.empty()) {
      const size_t end = std::min(rest.find('\n'), rest.size());
      std::string_view line = rest.substr(0, end);
      rest.remove_prefix(std::min(end + 1, rest.size()));
      System system;
      for (std::string* column :
           {&system.id, &system.family, &system.kind, &system.title, &system.paper}) {
        const size_t tab = std::min(line.find('\t'), line.size());
        *column = line.substr(0, tab);
        line.remove_prefix(std::min(tab + 1, line.size()));
      }
      if (!header && !system.id.empty()) made.push_back(system);
      header = false;
    }
    return made;
  }();
  return all;
}

const System* find_system(const std::string& id) {
  for (const System& system : systems()) {
    if (system.id == id) return &system;
  }
  return nullptr;
}

}  // namespace heed::mixer
