// The registry against the folder and the table of systems.
#include "mixer/registry.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "io/error.h"
#include "mixer/apply.h"
#include "mixer/common/layer_options.h"
#include "mixer/common/rows.h"
#include "mixer/common/shape.h"
#include "mixer/common/systems.h"

namespace heed::mixer {
namespace registry_test {

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
  EXPECT_GE(systems().size(), 150u);
  std::set<std::string> ids;
  for (const Card& card : cards()) {
    EXPECT_TRUE(ids.insert(card.id).second) << card.id << " has two cards";
    EXPECT_FALSE(card.title.empty()) << card.id;
    EXPECT_FALSE(card.family.empty()) << card.id;
    EXPECT_FALSE(card.kind.empty()) << card.id;
    EXPECT_FALSE(card.paper.empty()) << card.id;
  }
  for (const System& system : systems()) EXPECT_TRUE(ids.count(system.id)) << system.id;
}

TEST(Registry, ReadyCardsAreComplete) {
  for (const Mechanism& m : registry().all()) {
    SCOPED_TRACE(m.card.id);
    EXPECT_TRUE(m.card.ready);
    for (const std::string* text :
         {&m.card.paper, &m.card.equations, &m.card.patterns, &m.card.try_line}) {
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
    std::string patterns = m.card.patterns + ", ";
    for (const char* pattern :
         {"noncausal self, ", "causal self, ", "noncausal cross, ", "causal cross, "}) {
      const size_t at = patterns.find(pattern);
      if (at != std::string::npos) patterns.erase(at, std::string(pattern).size());
    }
    EXPECT_EQ(patterns, "") << "is no pattern";
  }
}

// Every name that a condition uses is a setting or an input, every axis is in some shape.
TEST(Registry, CardsNameOnlyWhatTheyHave) {
  for (const Mechanism& m : registry().all()) {
    SCOPED_TRACE(m.card.id);
    const ApplyRow& row = m.card.apply;
    EXPECT_NO_THROW(read_settings(m.card, m.card.tests.always));
    const auto check = [&](const std::string& when) {
      size_t begin = 0;
      while (begin < when.size()) {
        const size_t end = std::min(when.find(',', begin), when.size());
        const size_t first = when.find_first_not_of(' ', begin);
        std::string name = when.substr(first, std::min(when.find('=', first), end) - first);
        name.resize(std::min(name.find('['), name.size()));
        EXPECT_TRUE(row.setting(name) != nullptr || row.input(name) != nullptr)
            << "condition on " << name;
        begin = end + 1;
      }
    };
    std::string shapes;
    for (const auto* specs : {&row.inputs, &row.outputs}) {
      for (const TensorSpec& spec : *specs) {
        check(spec.when);
        EXPECT_FALSE(parse_shape(spec.shape).empty()) << spec.name;
        shapes += spec.shape + ",";
      }
    }
    for (const FormSpec& form : row.forms) check(form.when);
    const TestCard& tests = m.card.tests;
    for (const std::string& axis : {tests.batch, tests.queries, tests.keys}) {
      EXPECT_NE(shapes.find(axis), std::string::npos) << "no shape has the axis " << axis;
    }
    if (tests.bound.forward > 2e-6 || tests.bound.backward > 1e-5) {
      EXPECT_FALSE(tests.bound.reason.empty()) << "a wider bound wants a reason";
    }
  }
}

// What `heed show` says of a layer's options is what the layer reads.
TEST(Registry, LayersSayTheirOptions) {
  for (const Mechanism& m : registry().all()) {
    SCOPED_TRACE(m.card.id);
    const std::vector<LayerOption> options = layer_options(m);
    EXPECT_EQ(options.empty(), !m.layer);
    std::set<std::string> names;
    for (const LayerOption& option : options) {
      EXPECT_TRUE(names.insert(option.name).second) << option.name;
      EXPECT_FALSE(option.expected.empty()) << option.name;
    }
    if (!m.layer || m.card.tests.layer.options.empty()) continue;
    const Json tested = Json::parse(m.card.tests.layer.options);
    for (const auto& [name, value] : tested.items()) {
      EXPECT_TRUE(names.count(name)) << name;
    }
  }
  EXPECT_TRUE(layer_options(find_mechanism("dplr")).empty());
}

TEST(Registry, NamesTheNearestSystem) {
  try {
    find_card("gated-delta-net");
    FAIL() << "no error";
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("gated-deltanet"), std::string::npos) << e.what();
  }
  const auto planned =
      std::find_if(cards().begin(), cards().end(), [](const Card& card) { return !card.ready; });
  ASSERT_NE(planned, cards().end());
  EXPECT_THROW(find_mechanism(planned->id), UsageError);
  EXPECT_THROW(make_layer("dplr", {}), UsageError);  // a core alone
}

TEST(Settings, RefuseWhatIsNoSuchValue) {
  const SettingSpec whole = int_setting("chunk", "64").at_least(1);
  const SettingSpec number = number_setting("scale", "1");
  const SettingSpec flag = flag_setting("causal", true);
  const SettingSpec word = word_setting("phi", {"identity", "exp"});
  const SettingSpec list = ints_setting("window", "", {"false", "true"}).at_least(0);
  const std::pair<SettingSpec, std::vector<const char*>> wrong[] = {
      {whole, {"", "x", "1.5", "1e99", "12a", "0", "-3"}},
      {number, {"", "nan", "inf", "1,5"}},
      {flag, {"yes", ""}},
      {word, {"", "relu", "exp,identity"}},
      {list, {"", "7x", "7xx3", "ax3", "-1x3", "1.5"}}};
  Settings settings;
  for (const auto& [spec, texts] : wrong) {
    for (const char* text : texts) EXPECT_THROW(settings.set(spec, text), UsageError) << text;
  }
  settings.set(whole, "16");
  settings.set(number, "-0.25");
  settings.set(flag, "false");
  settings.set(word, "exp");
  settings.set(list, "1xtruex5");
  EXPECT_EQ(settings.integer("chunk"), 16);
  EXPECT_EQ(settings.number("scale", 1), -0.25);
  EXPECT_FALSE(settings.flag("causal"));
  EXPECT_TRUE(settings.is("phi", "exp"));
  EXPECT_EQ(settings.ints("window"), (std::vector<int64_t>{1, 1, 5}));
  EXPECT_EQ(settings.axes("window", 3), settings.ints("window"));
  EXPECT_THROW(settings.axes("window", 2), UsageError);
  EXPECT_EQ(settings.names().at("window"), 5);
  EXPECT_EQ(settings.names().at("window[2]"), 5);
  EXPECT_THROW(settings.integer("absent"), Error);
  EXPECT_THROW(settings.word("chunk"), Error);
  EXPECT_EQ(settings.integer("absent", 3), 3);
}

TEST(Shapes, AreExpressionsOverNames) {
  const Names names = {{"T", 7}, {"S", 5}, {"D", 4}, {"Hk", 2}, {"V", 3}, {"keep", 0.25}};
  const std::pair<const char*, double> values[] = {
      {"T+S-1", 11},  {"4D+2", 18},     {"Hk V", 6},         {"2T-1", 13},      {"1+D+D^2", 21},
      {"2 (T-S)", 4}, {"ceil(T/V)", 3}, {"ceil(keep T)", 2}, {"min(T,S+1)", 6}, {"floor(T/2)", 3}};
  for (const auto& [text, value] : values) EXPECT_EQ(evaluate(text, names), value) << text;
  std::vector<std::string> unknown;
  EXPECT_FALSE(evaluate("T+P Q", names, &unknown).has_value());
  EXPECT_EQ(unknown, (std::vector<std::string>{"P", "Q"}));
  for (const char* text : {"T+", "(T", "T)", "7..", "ceil("}) {
    EXPECT_THROW(evaluate(text, names), Error) << text;
  }
  EXPECT_EQ(parse_shape("B,T,N|B,T,G,N").size(), 2u);
  EXPECT_EQ(parse_shape("(B|1),T,(1|H)").size(), 4u);
  EXPECT_EQ(parse_shape("B,ceil(T/block),min(T,S)").front().size(), 3u);
}

TEST(Shapes, FitSizesToNames) {
  Names names = {{"T", 7}};
  EXPECT_TRUE(unify({"B", "T+S-1", "2P-1", "n T"}, {2, 11, 9, 21}, names));
  EXPECT_EQ(names.at("S"), 5);
  EXPECT_EQ(names.at("P"), 5);
  EXPECT_EQ(names.at("n"), 3);
  EXPECT_FALSE(unify({"T"}, {8}, names));
  EXPECT_FALSE(unify({"2X"}, {5}, names));
  EXPECT_FALSE(unify({"T", "T"}, {7}, names));
  bool complete = true;
  EXPECT_TRUE(unify({"X Y"}, {6}, names, &complete));
  EXPECT_FALSE(complete);
}

}  // namespace registry_test
}  // namespace heed::mixer
