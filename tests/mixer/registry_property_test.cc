// What must hold for every mixer (property_helper.h), run over the registry: one test a mixer and
// property.
#include <gtest/gtest.h>

#include "mixer/property_helper.h"

namespace heed::mixer {
namespace registry_property_test {

struct Case {
  std::string id;
  testing::Property property;
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const Mechanism& m : registry().all()) {
    for (const testing::Property& property : testing::properties()) {
      cases.push_back({m.card.id, property});
    }
  }
  return cases;
}

class Mixer : public ::testing::TestWithParam<Case> {};

TEST_P(Mixer, Holds) {
  testing::Findings found(GetParam().id);
  GetParam().property.check(find_mechanism(GetParam().id), found);
  EXPECT_TRUE(found.empty()) << found.text();
}

INSTANTIATE_TEST_SUITE_P(All, Mixer, ::testing::ValuesIn(all_cases()),
                         [](const ::testing::TestParamInfo<Case>& info) {
                           std::string name = info.param.id + "_" + info.param.property.name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace registry_property_test
}  // namespace heed::mixer
