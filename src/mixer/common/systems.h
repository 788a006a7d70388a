// The table of all systems, ready and planned.
#pragma once

#include <vector>

namespace heed::mixer {

struct System {
  const char* id;
  const char* family;
  const char* kind;
  const char* title;
};

const std::vector<System>& systems();

}  // namespace heed::mixer
