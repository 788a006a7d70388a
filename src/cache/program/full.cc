// The program "full": a head that keeps and sees every position.
#include "cache/plan/kinds.h"
#include "cache/plan/plan_fields.h"

namespace heed::program {
namespace {

class Full final : public ProgramKind {
 public:
  std::string_view name() const override { return "full"; }
  Json read(const Json& entry, const std::string& where) const override {
    refuse_unknown_keys(entry, {"kind"}, where);
    return {{"kind", "full"}};
  }
  int64_t rows(const Json& entry, int64_t tokens) const override { return tokens; }
  HeadProgram resolve(const Json& entry, int64_t tokens, const std::string& id) const override {
    return {};
  }

  bool is(const HeadProgram& program) const override { return program.full(); }
  Json entry(const HeadProgram& program) const override { return {{"kind", "full"}}; }
  std::string id(const HeadProgram& program) const override { return "full"; }
  void runs(const HeadProgram& program, int64_t tokens, std::vector<RowRun>& out) const override {
    if (tokens > 0) out.push_back({0, tokens, 0});
  }
  KeyLimit limit(const HeadProgram& program) const override { return {}; }
};

}  // namespace

void register_full(Kinds& kinds) { kinds.add(std::make_unique<Full>()); }

}  // namespace heed::program
