// The program "full": a head that keeps and sees every position; in few bits its first ones stay
// exact.
#include "cache/plan/bits.h"
#include "cache/plan/kinds.h"
#include "cache/plan/plan_fields.h"

namespace heed::program {
namespace {

class Full final : public ProgramKind {
 public:
  std::string_view name() const override { return "full"; }
  Json read(const Json& entry, const std::string& where) const override {
    refuse_unknown_keys(entry, {"kind", "k_bits", "v_bits", "exact"}, where);
    Json read = {{"kind", "full"}};
    const Bits bits = read_bits(entry, where);
    put_bits(read, bits);
    const int64_t exact = get_int(entry, "exact", where, kExactRows);
    in_range<int64_t>(exact, 0, 64, "exact", where);
    if (bits.few()) read["exact"] = exact;
    return read;
  }
  int64_t rows(const Json& entry, int64_t tokens) const override { return tokens; }
  HeadProgram resolve(const Json& entry, int64_t tokens, const std::string& id) const override {
    HeadProgram program;
    set_bits(program, read_bits(entry, id));
    if (program.in_few_bits()) program.sinks = get_int(entry, "exact", id, kExactRows);
    return program;
  }

  bool is(const HeadProgram& program) const override { return program.full(); }
  Json entry(const HeadProgram& program) const override {
    Json json = {{"kind", "full"}};
    put_bits(json, bits_of(program));
    if (program.in_few_bits()) json["exact"] = program.sinks;
    return json;
  }
  std::string id(const HeadProgram& program) const override { return "full" + bits_id(program); }
  void runs(const HeadProgram& program, int64_t tokens, std::vector<RowRun>& out) const override {
    if (tokens > 0) out.push_back({0, tokens, 0});
  }
  KeyLimit limit(const HeadProgram& program) const override { return {}; }
};

}  // namespace

void register_full(Kinds& kinds) { kinds.add(std::make_unique<Full>()); }

}  // namespace heed::program
