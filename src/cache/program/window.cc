// The program "window": the first `sink` positions and the last ones (StreamingLLM, arXiv
// 2309.17453; DuoAttention, arXiv 2410.10819).
#include "cache/plan/window_entry.h"

namespace heed::program {
namespace {

class Window final : public RingKind {
 public:
  bool reads(const Json& entry) const override { return !has_compensation(entry); }
  HeadProgram resolve(const Json& json, int64_t tokens, const std::string& id) const override {
    const WindowEntry entry = window_entry(json);
    HeadProgram program{window_length(entry.window, tokens), entry.sink};
    set_bits(program, entry.bits);
    return program;
  }
  bool is(const HeadProgram& program) const override {
    return !program.full() && program.dropped == Dropped::kGone;
  }
};

}  // namespace

void register_window(Kinds& kinds) { kinds.add(std::make_unique<Window>()); }

}  // namespace heed::program
