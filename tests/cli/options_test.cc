// Every number that a command takes has a range: asked of the commands themselves, so that an
// option without one fails here.
#include "cli/options.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "heed/cli_registry.inc"
#include "io/error.h"

namespace heed::cli {
namespace options_test {

std::string wrong(const CLI::Validator& validator, std::string text) { return validator(text); }

TEST(Ranges, WholeNumbers) {
  const auto v = whole(1, 9);
  for (const char* text : {"1", "9", "+3"}) EXPECT_EQ(wrong(v, text), "") << text;
  for (const char* text : {"0", "10", "-1", "1.5", "1e0", "nan", "", " 1", "1 ", "0x1", "+-1",
                           "1e400", "99999999999999999999999"}) {
    EXPECT_NE(wrong(v, text), "") << text;
  }
  EXPECT_EQ(wrong(v, "many"), "many was given, a whole number from 1 to 9 was expected");
  EXPECT_EQ(wrong(whole(0), "9223372036854775807"), "");
  EXPECT_EQ(wrong(whole(0), "-2"), "-2 was given, a whole number, 0 or more, was expected");
  EXPECT_EQ(wrong(seeds(), "18446744073709551615"), "");
  EXPECT_NE(wrong(seeds(), "18446744073709551616"), "");
  EXPECT_NE(wrong(seeds(), "-1"), "");
}

TEST(Ranges, RealNumbers) {
  const auto v = real(0, 1, true);
  for (const char* text : {"1", "0.3", "1e-3", ".5"}) EXPECT_EQ(wrong(v, text), "") << text;
  for (const char* text :
       {"0", "-0.1", "1.01", "nan", "-nan", "inf", "-inf", "1e400", "1e-400", "a", "", "0.5x"}) {
    EXPECT_NE(wrong(v, text), "") << text;
  }
  EXPECT_EQ(wrong(real(0, 1), "0"), "");
  EXPECT_EQ(wrong(v, "2"), "2 was given, a number above 0 and at most 1 was expected");
}

TEST(Ranges, Threads) {
  EXPECT_EQ(wrong(thread_count(), "0"), "");
  EXPECT_EQ(wrong(thread_count(), std::to_string(max_threads())), "");
  EXPECT_NE(wrong(thread_count(), std::to_string(max_threads() + 1)), "");
  EXPECT_GE(max_threads(), 16);
}

// "plan", "bench model", ...
void collect(const CLI::App* app, const std::string& name, std::vector<std::string>& out) {
  const auto below = app->get_subcommands([](const CLI::App*) { return true; });
  if (below.empty()) out.push_back(name);
  for (const CLI::App* command : below) {
    collect(command, name.empty() ? command->get_name() : name + " " + command->get_name(), out);
  }
}

struct Commands {
  CLI::App app{"heed"};
  Commands() {
    for (auto add : k_cli_registry) add(app);
  }
  CLI::App* find(const std::string& name) {
    CLI::App* at = &app;
    for (size_t begin = 0; begin <= name.size();) {
      const size_t end = std::min(name.find(' ', begin), name.size());
      at = at->get_subcommand(name.substr(begin, end - begin));
      begin = end + 1;
    }
    return at;
  }
};

// What parsing says of `NAME OPTION VALUE`; the values are looked at before anything runs.
std::string message_of(const std::string& name, const std::string& option,
                       const std::string& value) {
  Commands fresh;
  try {
    fresh.app.parse(name + " " + option + "=" + value, false);
  } catch (const CLI::ParseError& e) {
    return e.what();
  } catch (const Error& e) {
    return std::string("ran: ") + e.what();
  }
  return "accepted";
}

TEST(Commands, RefuseNumbersThatAreNone) {
  std::vector<std::string> names;
  Commands all;
  collect(&all.app, "", names);
  ASSERT_GE(names.size(), 16u);
  int numbers = 0;
  for (const std::string& name : names) {
    for (const CLI::Option* option : all.find(name)->get_options()) {
      const std::string full = option->get_type_name(), type = full.substr(0, full.find(':'));
      if (type != "INT" && type != "UINT" && type != "FLOAT") continue;
      ++numbers;
      const std::string flag = "--" + option->get_lnames().at(0);
      for (const char* value :
           {"-1", "nan", "inf", "1e400", "-1e400", "many", "99999999999999999999999", "1.5.5"}) {
        const std::string said = message_of(name, flag, value);
        EXPECT_NE(said.find(flag), std::string::npos) << name << " " << value << ": " << said;
        EXPECT_NE(said.find("was expected"), std::string::npos)
            << name << " " << flag << "=" << value << ": " << said;
      }
    }
  }
  EXPECT_GE(numbers, 50);
}

TEST(Commands, EveryoneSaysWhatItsOptionsDo) {
  std::vector<std::string> names;
  Commands all;
  collect(&all.app, "", names);
  for (const std::string& name : names) {
    EXPECT_FALSE(all.find(name)->get_description().empty()) << name;
    for (const CLI::Option* option : all.find(name)->get_options()) {
      EXPECT_FALSE(option->get_description().empty()) << name << " " << option->get_name();
    }
  }
}

}  // namespace options_test
}  // namespace heed::cli
