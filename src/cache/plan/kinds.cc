// See kinds.h.
#include "cache/plan/kinds.h"

#include "heed/program_registry.inc"
#include "io/describe.h"
#include "io/error.h"

namespace heed {
const std::vector<std::unique_ptr<const ProgramKind>>& program_kinds() {
  static const auto all = [] {
    program::Kinds kinds;
    for (const auto add : program::k_program_registry) add(kinds);
    return kinds.take();
  }();
  return all;
}

const ProgramKind& kind_of(const Json& entry, const std::string& where) {
  const std::string name = get_string(entry, "kind", where);
  std::string known;
  for (const auto& kind : program_kinds()) {
    if (kind->name() == name && kind->reads(entry)) return *kind;
    if (known.find(kind->name()) != known.npos) continue;
    known += (known.empty() ? "" : " or ") + std::string(kind->name());
  }
  if (name == "select" || name == "linear") {
    throw UsageError("{}: the kind \"{}\" is not supported yet; use {}", printable(where), name,
                     known);
  }
  throw Error("{}: the kind '{}' is not known; use {}", printable(where), printable(name), known);
}

const ProgramKind& kind_of(const HeadProgram& program) {
  for (const auto& kind : program_kinds()) {
    if (kind->is(program)) return *kind;
  }
  throw Error("no kind of program knows a head of {} sinks and a window of {}", program.sinks,
              program.window);
}

}  // namespace heed
