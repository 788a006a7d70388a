// JSON: limits, duplicate keys, typed fields, canonical text.
#include "io/json.h"

#include <gtest/gtest.h>

#include <cmath>

#include "io_test_helper.h"

namespace heed {
namespace {

using testing::expect_error;

TEST(Json, ParsesWhatJsonIs) {
  const Json json = parse_json(
      R"( {"a":[1,-2,3.5,true,null,"x\u00e9\ud83d\ude00"],"b":{"c":{}},"d":18446744073709551615} )",
      "f");
  EXPECT_EQ(json["a"].size(), 6u);
  EXPECT_EQ(json["a"][5], "xé😀");
  EXPECT_EQ(json["a"][2], 3.5);
  EXPECT_TRUE(json["b"]["c"].is_object());
  EXPECT_EQ(json["d"], 18446744073709551615u);
  EXPECT_EQ(parse_json("7", "f"), 7);
  EXPECT_EQ(parse_json("[]", "f"), Json::array());
}

TEST(Json, RefusesWhatItIsNot) {
  expect_error([] { parse_json("", "conf.json"); }, {"conf.json: not valid JSON", "line 1"});
  expect_error([] { parse_json("{\"a\":\n 1,\n}", "conf.json"); }, {"line 3, column 1"});
  expect_error([] { parse_json("{\"a\":1,\"a\":2}", "f"); }, {"'a' stands twice"});
  expect_error([] { parse_json("[{\"a\":{\"b\":1,\"c\":2,\"b\":1}}]", "f"); },
               {"'b' stands twice"});
  for (const char* bad :
       {"NaN", "[1,]", "{a:1}", "'a'", "1 2", "// x\n1", "01", "1e999", "\"\xff\"", "\"\\ud800\"",
        "\"\\udc00x\"", "\"\n\"", "[1", "tru", "-", "\"\\x\""}) {
    expect_error([&] { parse_json(bad, "f"); }, {"f: not valid JSON"});
  }
  expect_error([] { parse_json(std::string("1\0", 2), "f"); }, {"not valid JSON"});
  const std::string deep = std::string(64, '[') + std::string(64, ']');
  EXPECT_NO_THROW(parse_json(deep, "f"));
  expect_error([&] { parse_json("[" + deep + "]", "f"); }, {"deeper than 64"});
  expect_error([] { parse_json(std::string(1 << 20, '['), "f"); }, {"deeper than 64"});
  std::string objects;
  for (int i = 0; i < 100; ++i) objects += "{\"a\":";
  expect_error([&] { parse_json(objects, "f"); }, {"deeper than 64"});
  JsonLimits limits;
  limits.bytes = 10;
  expect_error([&] { parse_json("[1,2,3,4,5]", "f", limits); }, {"11 bytes", "at most 10"});
  limits = {};
  limits.values = 5;
  EXPECT_NO_THROW(parse_json("[1,2,3,4]", "f", limits));
  expect_error([&] { parse_json("[1,2,3,4,5]", "f", limits); }, {"more than 5 JSON values"});
}

TEST(Json, TypedFieldsNameKeyAndType) {
  const Json json = parse_json(
      R"({"i":4096,"f":1.5,"b":true,"s":"x","l":[1,2],"n":null,"big":18446744073709551615,
          "names":["a","b"],"o":{"k":1},"mixed":[1,"a"]})",
      "config.json");
  const std::string f = "config.json";
  EXPECT_EQ(get_int(json, "i", f), 4096);
  EXPECT_EQ(get_float(json, "i", f), 4096.0);
  EXPECT_EQ(get_float(json, "f", f), 1.5);
  EXPECT_TRUE(get_bool(json, "b", f));
  EXPECT_EQ(get_string(json, "s", f), "x");
  EXPECT_EQ(get_ints(json, "l", f), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(get_floats(json, "l", f), (std::vector<double>{1, 2}));
  EXPECT_EQ(get_strings(json, "names", f), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(get_int(get_object(json, "o", f), "k", "config.json: o"), 1);
  EXPECT_EQ(get_int(json, "none", f, 7), 7);
  EXPECT_EQ(get_int(json, "n", f, 7), 7);
  EXPECT_EQ(get_float(json, "none", f, 0.5), 0.5);
  EXPECT_EQ(get_string(json, "none", f, "d"), "d");
  EXPECT_TRUE(get_bool(json, "none", f, true));
  EXPECT_EQ(find_field(json, "n", f), nullptr);
  expect_error([&] { get_int(json, "none", f); }, {"config.json: the key 'none' is missing"});
  expect_error([&] { get_int(json, "n", f); }, {"the key 'n' is missing"});
  expect_error([&] { get_int(json, "s", f); },
               {"config.json: 's' must be an integer, found \"x\""});
  expect_error([&] { get_int(json, "f", f, 1); }, {"'f' must be an integer, found 1.5"});
  expect_error([&] { get_int(json, "big", f); }, {"'big' must be an integer"});
  expect_error([&] { get_bool(json, "i", f); }, {"'i' must be true or false, found 4096"});
  expect_error([&] { get_string(json, "l", f); }, {"'l' must be a string, found array"});
  expect_error([&] { get_float(json, "s", f); }, {"'s' must be a number"});
  expect_error([&] { get_ints(json, "mixed", f); }, {"'mixed' must be an integer, found \"a\""});
  expect_error([&] { get_ints(json, "i", f); }, {"'i' must be an array"});
  expect_error([&] { get_object(json, "l", f); }, {"'l' must be an object"});
  expect_error([&] { get_int(json["l"], "k", f); }, {"must be a JSON object with the key 'k'"});
}

TEST(Json, CanonicalTextSortsAndRoundTrips) {
  const std::string text = R"({"":0,"A":1.5,"a":[true,null,"é\n"],"b":{"x":0.1,"y":-1}})";
  EXPECT_EQ(canonical_json(
                parse_json(R"({"b":{"y":-1,"x":0.1},"a":[true,null,"é\n"],"A":1.50,"":0})", "f")),
            text);
  EXPECT_EQ(canonical_json(parse_json(text, "f")), text);
  EXPECT_EQ(pretty_json(parse_json("{\"a\":[1]}", "f")), "{\n \"a\": [\n  1\n ]\n}\n");
  expect_error([] { canonical_json(Json("\xff")); }, {"UTF-8"});
  expect_error([] { canonical_json(Json{{"a", {NAN}}}); }, {"not finite"});
}

TEST(Json, SurvivesDamage) {
  const std::string good = R"({"a":[1,-2.5e3,{"b":"x\u00e9"},[],true,null],"c":{"d":{"e":"☃"}}})";
  testing::survive_damage(good, 20000, [](std::span<const std::byte> damaged) {
    const std::string_view text(reinterpret_cast<const char*>(damaged.data()), damaged.size());
    const std::string dumped = canonical_json(parse_json(text, "f"));
    EXPECT_EQ(canonical_json(parse_json(dumped, "f")), dumped);
  });
}

}  // namespace
}  // namespace heed
