// The registry against the folder and the table of systems.
#include "mixer/registry.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "io/error.h"
#include "mixer/apply.h"
#include "mixer/common/systems.h"

namespace heed::mixer {
namespace {

TEST(Registry, HasOneMechanismForEveryFileOfTheFolder) {
  size_t files = 0;
  std::set<std::string> ids;
  for (const Mechanism& m : registry().all()) ids.insert(m.card.id);
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(HEED_SOURCE_DIR) + "/src/mixer")) {
    if (entry.path().extension() != ".cc") continue;
    ++files;
    std::string id = entry.path().stem().string();
    std::replace(id.begin(), id.end(), '_', '-');
    EXPECT_TRUE(ids.count(id)) << entry.path() << " registers no mechanism of its name";
  }
  EXPECT_EQ(files, ids.size());
  EXPECT_GE(files, 10u);
}

TEST(Registry, HoldsACardForEverySystem) {
  EXPECT_EQ(systems().size(), 150u);
  std::set<std::string> ids;
  for (const Card& card : cards()) {
    EXPECT_TRUE(ids.insert(card.id).second) << card.id << " has two cards";
    EXPECT_FALSE(card.title.empty()) << card.id;
    EXPECT_FALSE(card.family.empty()) << card.id;
    EXPECT_FALSE(card.kind.empty()) << card.id;
  }
  for (const System& system : systems()) EXPECT_TRUE(ids.count(system.id)) << system.id;
}

TEST(Registry, ReadyCardsAreComplete) {
  for (const Mechanism& m : registry().all()) {
    SCOPED_TRACE(m.card.id);
    EXPECT_TRUE(m.card.ready);
    for (const std::string* text : {&m.card.paper, &m.card.equations, &m.card.patterns,
                                    &m.card.state_size, &m.card.try_line}) {
      EXPECT_FALSE(text->empty());
    }
    EXPECT_TRUE(m.card.try_line.starts_with("heed apply " + m.card.id));
    EXPECT_FALSE(m.card.apply.inputs.empty());
    EXPECT_FALSE(m.card.apply.outputs.empty());
    EXPECT_TRUE(m.card.apply.has_form("naive"));
    const std::string text = describe(m.card.apply);
    for (const TensorSpec& spec : m.card.apply.inputs) {
      EXPECT_NE(text.find(spec.name + " [" + spec.shape + "]"), std::string::npos);
    }
  }
}

TEST(Registry, NamesTheNearestSystem) {
  try {
    find_card("gated-delta-net");
    FAIL() << "no error";
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("gated-deltanet"), std::string::npos) << e.what();
  }
  EXPECT_THROW(find_mechanism("titans"), UsageError);
  EXPECT_THROW(make_layer("softmax", {}), UsageError);
}

TEST(Settings, RefuseWhatIsNoSuchValue) {
  const SettingSpec whole = {"chunk", SettingType::kInt, "64"};
  const SettingSpec number = {"scale", SettingType::kNumber, "1"};
  const SettingSpec flag = {"causal", SettingType::kBool, "true"};
  Settings settings;
  for (const char* text : {"", "x", "1.5", "1e99", "12a"}) {
    EXPECT_THROW(settings.set(whole, text), UsageError) << text;
  }
  for (const char* text : {"", "nan", "inf", "1,5"}) {
    EXPECT_THROW(settings.set(number, text), UsageError) << text;
  }
  EXPECT_THROW(settings.set(flag, "yes"), UsageError);
  settings.set(whole, "16");
  settings.set(number, "-0.25");
  settings.set(flag, "false");
  EXPECT_EQ(settings.integer("chunk", 64), 16);
  EXPECT_EQ(settings.number("scale", 1), -0.25);
  EXPECT_FALSE(settings.flag("causal", true));
}

}  // namespace
}  // namespace heed::mixer
