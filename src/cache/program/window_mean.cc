// The program "window" with "comp": sinks, a window, and the mean of the keys and of the values
// that it dropped as one token more (RazorAttention, arXiv 2407.15891).
#include "cache/plan/window_entry.h"
#include "io/error.h"

namespace heed::program {
namespace {

class WindowWithMean final : public RingKind {
 public:
  bool reads(const Json& entry) const override { return has_compensation(entry); }
  int64_t rows(const Json& json, int64_t tokens) const override {
    const WindowEntry entry = window_entry(json);
    return std::min(tokens, entry.sink + window_length(entry.window, tokens) + entry.comp.count);
  }
  HeadProgram resolve(const Json& json, int64_t tokens, const std::string& id) const override {
    const WindowEntry entry = window_entry(json);
    if (entry.comp.count > 1) {
      throw UsageError(
          "program \"{}\" has {} compensation tokens; the caches keep one, the mean of what was "
          "dropped: set \"count\" to 1",
          id, entry.comp.count);
    }
    return {window_length(entry.window, tokens), entry.sink,
            entry.comp.weight == "1" ? Dropped::kMeanAsOne : Dropped::kMean};
  }

  bool is(const HeadProgram& program) const override {
    return !program.full() && program.dropped != Dropped::kGone;
  }
  Json entry(const HeadProgram& program) const override {
    Json json = RingKind::entry(program);
    json["comp"] = {{"count", 1}, {"weight", program.dropped == Dropped::kMeanAsOne ? "1" : "N_d"}};
    return json;
  }
  std::string id(const HeadProgram& program) const override {
    return RingKind::id(program) + "-mean";
  }
};

}  // namespace

void register_window_mean(Kinds& kinds) { kinds.add(std::make_unique<WindowWithMean>()); }

}  // namespace heed::program
