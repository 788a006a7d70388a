// Chat templates against Python's Jinja2 (fixtures/templates/expected.json, made by
// make_template_fixtures.py), and templates that must end with an error.
#include "io/template/template.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "io/error.h"

namespace {

using Json = nlohmann::ordered_json;

const std::string kFolder = std::string(HEED_SOURCE_DIR) + "/tests/io/fixtures/templates/";

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

const Json& expected() {
  static const Json json = Json::parse(read_text(kFolder + "expected.json"));
  return json;
}

heed::ChatOptions options() {
  heed::ChatOptions options;
  options.now.emplace();
  options.now->tm_year = 126;
  options.now->tm_mon = 2;
  options.now->tm_mday = 4;
  options.now->tm_hour = 5;
  options.now->tm_min = 6;
  options.now->tm_sec = 7;
  return options;
}

// Renders; "error: ..." where the template is refused.
std::string render(const std::string& source, const Json& messages, const heed::ChatOptions& o) {
  try {
    return heed::render_chat(source, messages, o);
  } catch (const heed::Error& error) {
    return std::string("error: ") + error.what();
  }
}

void expect_as(const Json& wanted, const std::string& got, const std::string& what) {
  if (wanted.contains("error")) {
    EXPECT_TRUE(got.starts_with("error: ")) << what << "\ngave: " << got;
  } else {
    EXPECT_EQ(got, wanted["text"].get<std::string>()) << what;
  }
}

TEST(Template, ChatTemplatesAsInJinja2) {
  for (const Json& wanted : expected()["cases"]) {
    heed::ChatOptions o = options();
    o.bos_token = "<s>";
    o.eos_token = "</s>";
    o.extra = expected()["variants"][wanted["variant"].get<size_t>()];
    const Json& messages = expected()["conversations"][wanted["conversation"].get<size_t>()];
    const std::string name = wanted["template"].get<std::string>();
    expect_as(wanted, render(read_text(kFolder + name), messages, o),
              name + " " + messages.dump() + " " + o.extra.dump());
  }
}

TEST(Template, SnippetsAsInJinja2) {
  for (const Json& wanted : expected()["snippets"]) {
    heed::ChatOptions o = options();
    o.extra = expected()["variables"];
    const std::string source = wanted["source"].get<std::string>();
    expect_as(wanted, render(source, Json::array(), o), source);
  }
}

TEST(Template, ErrorsNameLineAndConstruct) {
  const auto message = [](const std::string& source) {
    return render(source, Json::array(), options());
  };
  EXPECT_EQ(message("a\n\n{% include 'x' %}"),
            "error: chat template: line 3: the statement \"include\" is not supported");
  EXPECT_EQ(message("\n{{ 'x' | nonsense }}"),
            "error: chat template: line 2: the filter \"nonsense\" is not supported");
  EXPECT_EQ(message("{{ raise_exception('Roles must alternate') }}"),
            "error: chat template: line 1: the template says: Roles must alternate");
  for (const char* broken : {"{{", "{% if %}", "{% for x in %}", "{% if x %}", "{% endif %}",
                             "{{ ) }}", "{{ 'a }}", "{% set = 1 %}", "{{ x | }}", "{# open",
                             "{% raw %}", "{{ [1, }}", "{{ 99999999999999999999 }}", "{{ x is }}",
                             "{{ f(*a) }}", "{% break %}", "{{ '\\ud800' }}", "{% macro f( %}"}) {
    EXPECT_TRUE(message(broken).starts_with("error: ")) << broken;
  }
}

TEST(Template, HostileTemplatesEnd) {
  const auto refuse = [](const std::string& source) {
    EXPECT_TRUE(render(source, Json::array(), options()).starts_with("error: "))
        << source.substr(0, 80);
  };
  refuse("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}");
  refuse(
      "{% set ns = namespace(s='aaaaaaaa') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s "
      "%}{% endfor %}");
  refuse("{{ 'x' * 99999999999 }}");
  refuse("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
  refuse("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}");
  refuse("{{ range(100000000) }}");
  refuse("{{ 9 ** 99999999 }}");
  std::string deep, wide = "{{ 1", chain = "{{ x";
  for (int i = 0; i < 100'000; ++i) {
    deep += "{{ (";
    wide += " + 1";
    chain += ".a";
  }
  refuse(deep);
  refuse("{{ " + std::string(100'000, '(') + "1");
  refuse("{{ " + std::string(100'000, '-') + "1 }}");
  refuse(wide + " }}");
  refuse(chain + " }}");
  std::string nested;
  for (int i = 0; i < 10'000; ++i) nested += "{% if true %}";
  refuse(nested);
  EXPECT_EQ(render("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns.me.me is defined }}",
                   Json::array(), options()),
            "True");
}

}  // namespace
