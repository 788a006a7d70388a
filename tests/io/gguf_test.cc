// GGUF: a file of the Python package `gguf`, files made by hand, and hostile ones.
#include "io/gguf.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "io_test_helper.h"

namespace heed {
namespace {

using testing::Bytes;
using testing::error_of;
using testing::exact;
using testing::expect_error;
using testing::fixture;
using testing::TempFolder;
using testing::write_all;

enum : uint32_t { kU8 = 0, kU32 = 4, kBool = 7, kString = 8, kArray = 9, kU64 = 10 };

Bytes header(uint64_t tensors, uint64_t values, uint32_t version = 3) {
  Bytes out;
  out.raw("GGUF").number<uint32_t>(version).number(tensors).number(values);
  return out;
}

Bytes& tensor(Bytes& out, std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
              uint64_t offset) {
  out.text(name).number<uint32_t>(static_cast<uint32_t>(dims.size()));
  for (const uint64_t size : dims) out.number(size);
  return out.number(type).number(offset);
}

GgufFile parse(const Bytes& bytes) {
  static std::vector<std::vector<std::byte>> kept;  // the file's views point into it
  kept.push_back(exact(bytes.str()));
  return parse_gguf(kept.back(), "x.gguf");
}

TEST(Gguf, ReadsTheFixture) {
  const GgufFile file = open_gguf(fixture("quantised.gguf"));
  EXPECT_EQ(file.version, 3u);
  EXPECT_EQ(file.string("general.architecture"), "llama");
  EXPECT_EQ(file.integer("test.uint8"), 200);
  EXPECT_EQ(file.integer("test.int8"), -100);
  EXPECT_EQ(file.integer("test.uint16"), 60000);
  EXPECT_EQ(file.integer("test.int16"), -30000);
  EXPECT_EQ(file.integer("test.uint32"), 4000000000);
  EXPECT_EQ(file.integer("test.int32"), -2000000000);
  EXPECT_EQ(file.integer("test.int64"), -(int64_t{1} << 62));
  expect_error([&] { file.integer("test.uint64"); }, {"test.uint64", "below 2^63", "uint64"});
  EXPECT_EQ(file.real("test.float32"), 0.1f);
  EXPECT_EQ(file.real("test.float64"), 0.1);
  EXPECT_EQ(file.real("test.int8"), -100.0);
  EXPECT_TRUE(file.boolean("test.bool"));
  EXPECT_EQ(file.string("test.string"), "naïve ☃");
  EXPECT_EQ(file.strings("test.strings"), (std::vector<std::string_view>{"a", "", "snow ☃"}));
  EXPECT_EQ(file.integers("test.integers"), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(file.reals("test.floats"), (std::vector<float>{0.5f, -1.25f}));
  EXPECT_EQ(file.integer("absent", 7), 7);
  EXPECT_EQ(file.string("absent", "z"), "z");
  EXPECT_EQ(file.real("absent", 0.5), 0.5);
  EXPECT_FALSE(file.boolean("absent", false));
  expect_error([&] { file.string("absent"); }, {"quantised.gguf", "'absent' is missing"});
  expect_error([&] { file.string("test.bool"); }, {"test.bool", "a string", "boolean"});
  expect_error([&] { file.strings("test.integers"); }, {"an array of strings", "array of int32"});
  expect_error([&] { file.integers("test.strings"); }, {"an array of integers", "array of string"});
  expect_error([&] { file.integer("test.bool", 3); }, {"test.bool", "an integer"});
  expect_error([&] { file.get("nothing"); }, {"quantised.gguf", "'nothing' is missing"});
}

TEST(Gguf, ShapesAreRowMajorAndOffsetsFollowTheAlignment) {
  for (const uint32_t version : {2u, 3u}) {
    Bytes bytes = header(2, 1, version);
    bytes.text("general.alignment").number<uint32_t>(kU32).number<uint32_t>(64);
    tensor(bytes, "b", {4, 3}, 0, 64);  // listed first, lies second
    tensor(bytes, "a", {5}, 0, 0);
    bytes.pad(64).raw(std::string(20, 'a')).pad(64).raw(std::string(48, 'b'));
    const GgufFile file = parse(bytes);
    EXPECT_EQ(file.alignment, 64u);
    ASSERT_EQ(file.tensors.size(), 2u);
    EXPECT_EQ(file.tensors[0].name, "b");
    EXPECT_EQ(file.get("b").shape, (std::vector<int64_t>{3, 4}));
    EXPECT_EQ(file.get("b").rows(), 3);
    EXPECT_EQ(static_cast<char>(file.get("b").data[47]), 'b');
    EXPECT_EQ(static_cast<char>(file.get("a").data[19]), 'a');
  }
}

TEST(Gguf, NestedArraysAndEmptyThings) {
  Bytes bytes = header(1, 3);
  bytes.text("nested").number<uint32_t>(kArray).number<uint32_t>(kArray).number<uint64_t>(2);
  bytes.number<uint32_t>(kU8).number<uint64_t>(3).raw("abc");
  bytes.number<uint32_t>(kString).number<uint64_t>(1).text("q");
  bytes.text("empty").number<uint32_t>(kArray).number<uint32_t>(kString).number<uint64_t>(0);
  bytes.text("after").number<uint32_t>(kU8).number<uint8_t>(9);
  tensor(bytes, "none", {0, 4}, 0, 0);
  const GgufFile file = parse(bytes);
  EXPECT_EQ(file.values.at("nested").count, 2u);
  EXPECT_TRUE(file.strings("empty").empty());
  EXPECT_EQ(file.integer("after"), 9);
  EXPECT_EQ(file.get("none").bytes, 0u);
  EXPECT_EQ(file.get("none").rows(), 0);
}

TEST(Gguf, RefusesHostileFiles) {
  const uint64_t huge = ~uint64_t{0};
  struct Case {
    Bytes bytes;
    std::vector<std::string> parts;
  };
  std::vector<Case> cases;
  const auto add = [&](Bytes bytes, std::vector<std::string> parts) {
    cases.push_back({std::move(bytes), std::move(parts)});
  };
  add(Bytes(), {"is empty"});
  add(Bytes().raw("GGU"), {"header", "cut short"});
  {
    Bytes many = header(0, (1 << 16) + 1).raw(std::string(13 << 17, '\0'));
    add(many, {"65537 metadata values", "at most 1048576 and 65536"});
    add(header(0, 1).text(std::string(4097, 'k')).pad(64), {"name of 4097 bytes"});
    Bytes name = header(1, 0);
    tensor(name, std::string(257, 'n'), {8}, 0, 0);
    add(name, {"name of 257 bytes"});
  }
  add(Bytes().raw("GGML").number<uint64_t>(0), {"not a GGUF file"});
  add(header(0, 0, 1), {"version 1"});
  add(header(0, 0, 0x03000000), {"big-endian", "gguf_convert_endian"});
  add(header(0, 0, 0), {"version 0"});
  add(header(huge, 0), {"18446744073709551615 tensors"});
  add(header(0, uint64_t{1} << 63), {"9223372036854775808 metadata values"});
  add(header(0, 1).number(huge).pad(64), {"metadata value 0", "18446744073709551615 bytes"});
  add(header(0, 1).text("k").number<uint32_t>(13).pad(64), {"'k'", "value type 13"});
  add(header(0, 1).text("k").number<uint32_t>(kBool).number<uint8_t>(2), {"'k'", "0 or 1"});
  add(header(0, 1).text("k").number<uint32_t>(kArray).number<uint32_t>(kU64).number(huge).pad(64),
      {"'k'", "array elements"});
  add(header(0, 1).text("k").number<uint32_t>(kArray).number<uint32_t>(kString).number(huge).pad(
          64),
      {"'k'", "strings"});
  add(header(0, 1).text("k").number<uint32_t>(kArray).number<uint32_t>(kArray).number(huge).pad(64),
      {"'k'", "arrays"});
  add(header(0, 1)
          .text("k")
          .number<uint32_t>(kArray)
          .number<uint32_t>(kString)
          .number((uint64_t{1} << 24) + 1)
          .pad(64),
      {"'k'", "at most 16777216"});
  {
    Bytes deep = header(0, 1).text("k").number<uint32_t>(kArray);
    for (int i = 0; i < 100; ++i) deep.number<uint32_t>(kArray).number<uint64_t>(1);
    add(deep, {"'k'", "nested deeper"});
  }
  {
    Bytes twice = header(0, 2);
    for (int i = 0; i < 2; ++i) twice.text("k").number<uint32_t>(kU8).number<uint8_t>(1);
    add(twice, {"'k'", "stands twice"});
  }
  for (const uint32_t alignment : {0u, 3u, 1u << 31}) {
    Bytes bytes = header(0, 1).text("general.alignment").number<uint32_t>(kU32);
    add(bytes.number(alignment), {"general.alignment", "power of two"});
  }
  add(header(0, 1).text("general.alignment").number<uint32_t>(kString).text("x"),
      {"general.alignment", "an integer"});
  const auto one = [&](std::vector<uint64_t> dims, uint32_t type, uint64_t offset, size_t data) {
    Bytes bytes = header(1, 0);
    tensor(bytes, "t", std::move(dims), type, offset);
    return bytes.pad(32).raw(std::string(data, '\0'));
  };
  add(one({1, 1, 1, 1, 1}, 0, 0, 64), {"'t'", "5 dimensions"});
  add(one({huge}, 0, 0, 64), {"'t'", "too large"});
  add(one({uint64_t{1} << 40, uint64_t{1} << 40}, 0, 0, 64), {"'t'", "too large"});
  add(one({uint64_t{1} << 62}, 0, 0, 64), {"'t'", "too large"});
  add(one({0, uint64_t{1} << 61}, 0, 0, 64), {"'t'", "too large"});
  add(one({uint64_t{1} << 61, 0}, 0, 0, 64), {"'t'", "too large"});
  add(one({8}, 4, 0, 64), {"'t'", "type 4"});
  add(one({8}, 999, 0, 64), {"'t'", "type 999"});
  add(one({33}, 2, 0, 64), {"'t'", "32 elements", "Q4_0"});
  add(one({}, 2, 0, 64), {"'t'", "Q4_0"});
  add(one({16}, 0, 32, 128), {"'t'", "leave a gap"});
  add(one({16}, 0, huge, 128), {"'t'", "leave a gap"});
  add(one({16}, 0, 0, 63), {"'t'", "64 bytes", "holds 63"});
  add(one({uint64_t{1} << 59}, 0, 0, 63), {"'t'", "holds 63"});
  {
    Bytes overlap = header(2, 0);
    tensor(overlap, "a", {16}, 0, 0);
    tensor(overlap, "b", {16}, 0, 32);
    add(overlap.pad(32).raw(std::string(128, '\0')), {"'b'", "overlap"});
    Bytes misaligned = header(2, 0);
    tensor(misaligned, "a", {5}, 0, 0);
    tensor(misaligned, "b", {16}, 0, 20);
    add(misaligned.pad(32).raw(std::string(128, '\0')), {"'b'", "not aligned"});
    Bytes twice = header(2, 0);
    tensor(twice, "a", {16}, 0, 0);
    tensor(twice, "a", {16}, 0, 64);
    add(twice.pad(32).raw(std::string(128, '\0')), {"'a'", "stands twice"});
    Bytes newline = header(2, 0);
    tensor(newline, "a\n\x1b[31m\xff", {16}, 0, 0);
    tensor(newline, "a\n\x1b[31m\xff", {16}, 0, 64);
    add(newline.pad(32), {"a\\x0a\\x1b[31m\\xff"});
  }
  for (const Case& one_case : cases) {
    const std::string text = error_of([&] { parse(one_case.bytes); });
    EXPECT_TRUE(text.starts_with("x.gguf: ")) << text;
    for (const std::string& part : one_case.parts) {
      EXPECT_NE(text.find(part), text.npos) << "'" << part << "' is not in: " << text;
    }
  }
}

// Files of a model in parts, as gguf-split writes them.
class GgufParts : public ::testing::Test {
 protected:
  std::string at(const std::string& name) const { return folder_ / name; }
  // Part `no` (from 0) of `count` with one tensor; `total` tensors in all.
  Bytes part(uint16_t no, uint16_t count, const std::string& name, uint32_t total,
             std::string_view model = "m") {
    Bytes out = header(1, 4);
    out.text("split.no").number<uint32_t>(2).number(no);
    out.text("split.count").number<uint32_t>(2).number(count);
    out.text("split.tensors.count")
        .number<uint32_t>(5)
        .number<int32_t>(static_cast<int32_t>(total));
    out.text("general.name").number<uint32_t>(kString).text(model);
    tensor(out, name, {1}, 0, 0);
    return out.pad(32).raw(name.substr(0, 4));
  }
  void write(const std::string& name, const Bytes& bytes) { write_all(at(name), bytes.str()); }
  void write_three() {
    write("m-00001-of-00003.gguf", part(0, 3, "aaaa", 3));
    write("m-00002-of-00003.gguf", part(1, 3, "bbbb", 3));
    write("m-00003-of-00003.gguf", part(2, 3, "cccc", 3));
  }
  TempFolder folder_;
};

TEST_F(GgufParts, AnyOfThemOpensAll) {
  write_three();
  std::filesystem::create_directories(at("links"));
  for (const char* n : {"1", "2", "3"}) {
    const std::string name = std::string("m-0000") + n + "-of-00003.gguf";
    std::filesystem::create_symlink("../" + name, at("links/" + name));
    std::filesystem::create_symlink(name, at(std::string("other") + n));
  }
  for (const char* given : {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf",
                            "m-00003-of-00003.gguf", "links/m-00002-of-00003.gguf", "other3"}) {
    const GgufFile file = open_gguf(at(given));
    ASSERT_EQ(file.tensors.size(), 3u) << given;
    EXPECT_EQ(file.mappings.size(), 3u);
    for (const char* name : {"aaaa", "bbbb", "cccc"}) {
      EXPECT_EQ(std::memcmp(file.get(name).data, name, 4), 0) << given << name;
    }
    EXPECT_EQ(file.string("general.name"), "m");
    EXPECT_TRUE(file.path.ends_with("m-00001-of-00003.gguf")) << file.path;
  }
  // A part alone, and a model of one part, need no name.
  write("alone", part(0, 1, "aaaa", 1));
  EXPECT_EQ(open_gguf(at("alone")).tensors.size(), 1u);
}

TEST_F(GgufParts, PartsThatAreMissingOrDoNotFit) {
  const std::string first = at("m-00001-of-00003.gguf"), third = at("m-00003-of-00003.gguf");
  write_three();
  std::filesystem::remove(at("m-00002-of-00003.gguf"));
  for (const std::string& given : {first, third}) {
    expect_error([&] { open_gguf(given); },
                 {given, "1 of the model's 3 files are missing", "m-00002-of-00003.gguf"});
  }
  const auto expect_second = [&](const Bytes& bytes, std::initializer_list<std::string> parts) {
    write_three();
    write("m-00002-of-00003.gguf", bytes);
    expect_error([&] { open_gguf(first); }, parts);
    expect_error([&] { open_gguf(third); }, parts);
  };
  expect_second(part(0, 3, "bbbb", 3), {"m-00002", "is file 1 of the model", "2 by its name"});
  expect_second(part(1, 4, "bbbb", 3), {"m-00002", "one of 4 files", "one of 3"});
  expect_second(part(1, 3, "bbbb", 3, "other"), {"m-00002", "'general.name'", "two models"});
  expect_second(part(1, 3, "bbbb", 5), {"m-00002", "split.tensors.count", "two models"});
  expect_second(part(1, 3, "aaaa", 3), {"m-00002", "'aaaa'", "earlier file"});
  expect_second(Bytes(), {"m-00002", "is empty"});
  write("m-00001-of-00002.gguf", part(0, 2, "aaaa", 3));
  write("m-00002-of-00002.gguf", part(1, 2, "bbbb", 3));
  expect_error([&] { open_gguf(at("m-00001-of-00002.gguf")); }, {"hold 2 tensors", "says 3"});
  write("m-00001-of-00005.gguf", part(0, 3, "aaaa", 3));
  expect_error([&] { open_gguf(at("m-00001-of-00005.gguf")); }, {"one of 3 files", "one of 5"});
  write("blob", part(0, 3, "aaaa", 3));
  expect_error([&] { open_gguf(at("blob")); }, {"blob", "one of 3 files", "-00001-of-00003.gguf"});
  write("huge-00001-of-65535.gguf", part(0, 65535, "aaaa", 3));
  expect_error([&] { open_gguf(at("huge-00001-of-65535.gguf")); }, {"65535", "at most 4096"});
}

TEST(Gguf, SurvivesDamage) {
  Bytes bytes = header(2, 3);
  bytes.text("general.alignment").number<uint32_t>(kU32).number<uint32_t>(32);
  bytes.text("list").number<uint32_t>(kArray).number<uint32_t>(kString).number<uint64_t>(2);
  bytes.text("ab").text("c");
  bytes.text("n").number<uint32_t>(kArray).number<uint32_t>(kArray).number<uint64_t>(1);
  bytes.number<uint32_t>(kU8).number<uint64_t>(2).raw("xy");
  tensor(bytes, "a", {32, 2}, 2, 0);
  tensor(bytes, "b", {3}, 0, 64);
  bytes.pad(32).raw(std::string(76, '\1'));
  const GgufFile good = parse(bytes);
  ASSERT_EQ(good.tensors.size(), 2u);
  testing::survive_damage(bytes.str(), 20000, [](std::span<const std::byte> damaged) {
    const GgufFile file = parse_gguf(damaged, "damaged");
    unsigned sum = 0;
    for (const TensorInfo& tensor : file.tensors) {
      for (size_t i = 0; i < tensor.bytes; ++i) sum += static_cast<unsigned>(tensor.data[i]);
    }
    EXPECT_LT(sum, 1u << 20);
    if (file.has("list") && file.values.at("list").element == GgufType::STRING) {
      EXPECT_LE(file.strings("list").size(), 2u);
    }
  });
}

}  // namespace
}  // namespace heed
