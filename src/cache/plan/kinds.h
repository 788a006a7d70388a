// Kinds of program: what one KV head may keep and see, each in one file NAME.cc of cache/program/.
// A plan names a program for every head (plan_file.h); plans, caches, searches and reports ask its
// kind for the rest.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cache/program.h"
#include "io/json.h"

namespace heed {

// Rows of a head's store that hold consecutive positions.
struct RowRun {
  int64_t row = 0, count = 0, position = 0;
};

// What the kernel hides of the keys that it is given: the query at position p sees j <= p with j <
// sinks or j > p - window; window 0: all j <= p.
struct KeyLimit {
  int64_t window = 0, sinks = 0;
};

// What one kind of program is: everything that plans, caches, searches and reports ask about it.
class ProgramKind {
 public:
  virtual ~ProgramKind() = default;

  // In a plan file: an entry of "programs" without its id.
  // -----------------------------------------

  // The entry's "kind".
  virtual std::string_view name() const = 0;
  // Whether an entry of that name is this kind's; of exactly one.
  virtual bool reads(const Json& entry) const { return true; }
  // The entry with every default filled in. Throws Error naming `where` and the key that is
  // missing, not known or out of range.
  virtual Json read(const Json& entry, const std::string& where) const = 0;
  // Of an entry that read() gave: rows of K and of V at capacity `tokens` >= 1, at most `tokens`.
  virtual int64_t rows(const Json& entry, int64_t tokens) const = 0;
  // The same at that capacity, as it runs. Throws UsageError, naming the program's `id`, for what a
  // plan may say and the caches do not run.
  virtual HeadProgram resolve(const Json& entry, int64_t tokens, const std::string& id) const = 0;

  // As it runs.
  // ------------------------------------------------------------------------------------

  // Whether a head's program is of this kind: of exactly one.
  virtual bool is(const HeadProgram& program) const = 0;
  // Its entry, and an id that tells it from others of other numbers.
  virtual Json entry(const HeadProgram& program) const = 0;
  virtual std::string id(const HeadProgram& program) const = 0;
  // Positions whose keys and values are there after `tokens` tokens.
  virtual int64_t held(const HeadProgram& program, int64_t tokens) const {
    return program.held(tokens);
  }
  // Rows of keys: those and what stands for others. A budget counts them.
  virtual int64_t kept(const HeadProgram& program, int64_t tokens) const {
    return program.kept(tokens);
  }
  // Adds the rows that a query at position `tokens` - 1 reads, by position.
  virtual void runs(const HeadProgram& program, int64_t tokens, std::vector<RowRun>& out) const = 0;
  virtual KeyLimit limit(const HeadProgram& program) const = 0;
  // Names of parameters that the layer must have to run it, beside its own; none for most.
  virtual std::vector<std::string> weights(const HeadProgram& program) const { return {}; }
};

// The kinds, in the order of their files.
const std::vector<std::unique_ptr<const ProgramKind>>& program_kinds();
// The kind that reads an entry of a plan file. Throws Error naming the kinds where there is none,
// UsageError for one that plans may name and this version does not run.
const ProgramKind& kind_of(const Json& entry, const std::string& where);
// That of a head's program.
const ProgramKind& kind_of(const HeadProgram& program);

namespace program {

// What the files of cache/program/ add themselves to.
class Kinds {
 public:
  void add(std::unique_ptr<const ProgramKind> kind) { all_.push_back(std::move(kind)); }
  std::vector<std::unique_ptr<const ProgramKind>> take() { return std::move(all_); }

 private:
  std::vector<std::unique_ptr<const ProgramKind>> all_;
};

}  // namespace program
}  // namespace heed
