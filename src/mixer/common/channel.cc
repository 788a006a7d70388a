// See channel.h.
#include "mixer/common/channel.h"

#include <map>

#include "mixer/registry.h"

namespace heed::mixer {
namespace {

std::map<std::string, MakeChannel>& channels() {
  static std::map<std::string, MakeChannel> table;
  return table;
}

}  // namespace

void add_channel(const std::string& id, MakeChannel make) { channels()[id] = std::move(make); }

std::unique_ptr<Layer> make_channel(const std::string& id, const LayerConfig& config) {
  registry();  // fills the table
  const auto found = channels().find(id);
  return found == channels().end() ? nullptr : found->second(config);
}

}  // namespace heed::mixer
