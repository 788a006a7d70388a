// Safetensors: reading, writing, shards, and files that lie.
#include "io/safetensors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>

#include "io/json.h"
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

std::string make(const std::string& header, size_t data) {
  return Bytes().number<uint64_t>(header.size()).raw(header).raw(std::string(data, '\0')).str();
}

TensorFile parse(const std::string& text) {
  static std::vector<std::vector<std::byte>> kept;  // the result points into it
  kept.push_back(exact(text));
  return parse_safetensors(kept.back(), "x.safetensors");
}

TensorInfo info(const std::string& name, DType dtype, std::vector<int64_t> shape,
                const std::string& data) {
  return {name, dtype, std::move(shape), reinterpret_cast<const std::byte*>(data.data()),
          data.size()};
}

TEST(Safetensors, ReadsWhatThePythonPackageWrote) {
  const TensorFile file = open_safetensors(fixture("dequantised.safetensors"));
  ASSERT_EQ(file.tensors.size(), 11u);
  EXPECT_EQ(file.metadata.at("made by"), "make_gguf_fixtures.py");
  const TensorInfo& tensor = file.get("weight.F32");
  EXPECT_EQ(tensor.dtype, DType::F32);
  EXPECT_EQ(tensor.shape, (std::vector<int64_t>{3, 512}));
  EXPECT_EQ(tensor.bytes, 3u * 512 * 4);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data) % 8, 0u);
  EXPECT_EQ(file.find("weight.F64"), nullptr);
  expect_error([&] { file.get("weight.F64"); }, {"dequantised.safetensors", "weight.F64"});
}

TEST(Safetensors, WritesAndReadsEveryTypeInOrder) {
  TempFolder folder;
  const std::string data = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKL";  // 48 bytes
  std::vector<TensorInfo> tensors;
  const std::vector<DType> types = {DType::BOOL, DType::F8_E4M3, DType::BF16,    DType::F64,
                                    DType::I8,   DType::F16,     DType::I64,     DType::U8,
                                    DType::F32,  DType::I16,     DType::F8_E5M2, DType::I32,
                                    DType::U16,  DType::U64,     DType::U32};
  for (const DType type : types) {
    const int64_t count = 3;  // odd, so that small types leave nothing aligned by chance
    const std::string bytes =
        data.substr(tensors.size(), static_cast<size_t>(count) * dtype_info(type).bytes);
    static std::vector<std::string> kept(types.size());
    kept[tensors.size()] = bytes;
    tensors.push_back(
        info(std::string("z") + dtype_name(type), type, {count}, kept[tensors.size()]));
  }
  const std::string none;
  tensors.push_back(info("empty", DType::F32, {4, 0}, none));
  tensors.push_back(info("scalar \"☃\"\n", DType::F32, {}, tensors[8].data ? data : none));
  tensors.back().bytes = 4;
  write_safetensors(folder / "t.safetensors", tensors, {{"format", "pt"}, {"a", "\"\n"}});

  const TensorFile file = open_safetensors(folder / "t.safetensors");
  ASSERT_EQ(file.tensors.size(), tensors.size());
  EXPECT_EQ(file.metadata, (std::map<std::string, std::string>{{"format", "pt"}, {"a", "\"\n"}}));
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorInfo& got = file.tensors[i];
    EXPECT_EQ(got.name, tensors[i].name);
    EXPECT_EQ(got.dtype, tensors[i].dtype);
    EXPECT_EQ(got.shape, tensors[i].shape);
    ASSERT_EQ(got.bytes, tensors[i].bytes);
    EXPECT_EQ(std::memcmp(got.data, tensors[i].data, got.bytes), 0) << got.name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(got.data) % dtype_info(got.dtype).bytes, 0u) << got.name;
  }
  EXPECT_EQ(folder.files(), 1u);
  // The same tensors give the same bytes.
  write_safetensors(folder / "u.safetensors", tensors, {{"a", "\"\n"}, {"format", "pt"}});
  EXPECT_EQ(testing::read_all(folder / "t.safetensors"),
            testing::read_all(folder / "u.safetensors"));
}

TEST(Safetensors, StreamsPartsInAnyOrder) {
  TempFolder folder;
  SafetensorsWriter writer(folder / "s", {{"a", DType::U8, {4}}, {"b", DType::F32, {2}}});
  writer.write("a", "ab", 2);
  writer.write("b", "12345678", 8);
  expect_error([&] { writer.finish(); }, {"'a' takes 4 bytes, but 2 were given"});
  writer.write("a", "cd", 2);
  expect_error([&] { writer.write("a", "e", 1); }, {"'a' takes 4 bytes, but 5"});
  expect_error([&] { writer.write("c", "e", 1); }, {"'c' was not announced"});
  EXPECT_FALSE(std::filesystem::exists(folder / "s"));
  writer.finish();
  const TensorFile file = open_safetensors(folder / "s");
  EXPECT_EQ(std::memcmp(file.get("a").data, "abcd", 4), 0);
  EXPECT_EQ(std::memcmp(file.get("b").data, "12345678", 8), 0);
}

TEST(Safetensors, WriterRefuses) {
  TempFolder folder;
  const auto write = [&](std::vector<TensorSpec> tensors) {
    SafetensorsWriter writer(folder / "s", std::move(tensors));
  };
  expect_error([&] { write({{"a", DType::U8, {1}}, {"a", DType::U8, {1}}}); }, {"'a'", "taken"});
  expect_error([&] { write({{"__metadata__", DType::U8, {1}}}); }, {"'__metadata__'", "taken"});
  expect_error([&] { write({{"a", DType::Q4_0, {32}}}); }, {"'a'", "Q4_0"});
  expect_error([&] { write({{"a", DType::U8, {-1}}}); }, {"'a'", "[-1]"});
  expect_error([&] { write({{"a\xff", DType::U8, {1}}}); }, {"UTF-8"});
  expect_error([&] { SafetensorsWriter(folder / "no/such/s", {}); }, {"no/such", "make it first"});
  expect_error([&] { SafetensorsWriter(folder.path(), {}); }, {"is a folder"});
  EXPECT_EQ(folder.files(), 0u);
}

TEST(Safetensors, AFullDiskLeavesNothingBehind) {
  TempFolder folder;
  write_all(folder / "s", "earlier");
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit small{4096, old.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string data(8192, 'x');
  const std::string text =
      error_of([&] { write_safetensors(folder / "s", {info("a", DType::U8, {8192}, data)}); });
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  EXPECT_NE(text.find("/s: cannot be written: File too large"), text.npos) << text;
  EXPECT_EQ(testing::read_all(folder / "s"), "earlier");
  EXPECT_EQ(folder.files(), 1u);
}

TEST(Safetensors, EmptyFileOfTensorsAndUnalignedHeaders) {
  EXPECT_TRUE(parse(make("{}", 0)).tensors.empty());
  const TensorFile file =
      parse(make(R"( {"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} )", 4));
  EXPECT_EQ(file.get("a").elements(), 1);
}

// What safetensors 0.8 was seen to accept (crate and Python package alike).
TEST(Safetensors, ReadsWhatTheReferenceReads) {
  const std::string a = R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})";
  const std::vector<std::string> headers = {
      R"({"__metadata__":null,)" + a + "}",
      R"({"__metadata__":{"k":"1","k":"2"},)" + a + "}",
      R"({"a":{"dtype":"U8","x":{"y":[1,null,{"z":2.5e3}],"dtype":7},"shape":[4],)"
      R"("data_offsets":[0,4],"x":-1,"n":null,"t":true,"s":"text"}})",
      "{" + a + "," + a + "}",
      R"({"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]},)" + a + "}",
      R"({"a":["U8",[4],[0,4]]})",
      " \n{" + a + "}\n\t  ",
      R"({"z":{"dtype":"U8","shape":[0],"data_offsets":[4,4]},)" + a + "}",
      R"({"a":{"x":)" + std::string(120, '[') + std::string(120, ']') +
          R"(,"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
  };
  for (const std::string& header : headers) {
    const TensorFile file = parse(make(header, 4));
    const TensorInfo& tensor = file.get("a");
    EXPECT_EQ(tensor.dtype, DType::U8) << header;
    EXPECT_EQ(tensor.shape, (std::vector<int64_t>{4})) << header;
    EXPECT_EQ(tensor.bytes, 4u) << header;
  }
  EXPECT_EQ(parse(make(headers[1], 4)).metadata.at("k"), "2");
  EXPECT_TRUE(parse(make(headers[0], 4)).metadata.empty());
  EXPECT_EQ(parse(make(headers[7], 4)).get("z").bytes, 0u);
  struct Type {
    const char* name;
    const char* shape;
    size_t bytes;
  };
  for (const Type& type :
       {Type{"F4", "[2]", 1}, Type{"F4", "[2,3]", 3}, Type{"F6_E2M3", "[4]", 3},
        Type{"F6_E3M2", "[2,2]", 3}, Type{"F8_E8M0", "[4]", 4}, Type{"F8_E4M3FNUZ", "[4]", 4},
        Type{"F8_E5M2FNUZ", "[4]", 4}, Type{"C64", "[1]", 8}}) {
    const TensorFile file =
        parse(make(fmt::format(R"({{"a":{{"dtype":"{}","shape":{},"data_offsets":[0,{}]}}}})",
                               type.name, type.shape, type.bytes),
                   type.bytes));
    EXPECT_STREQ(dtype_name(file.get("a").dtype), type.name);
    EXPECT_EQ(file.get("a").bytes, type.bytes);
  }
}

TEST(Safetensors, RefusesHostileFiles) {
  struct Case {
    std::string bytes;
    std::vector<std::string> parts;
  };
  const auto length = [](uint64_t value, const std::string& rest) {
    return Bytes().number(value).raw(rest).str();
  };
  // One tensor `a` whose entry is `entry`, and `data` bytes.
  const auto one = [](const std::string& entry, size_t data) {
    return make("{\"a\":" + entry + "}", data);
  };
  const std::string a = R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})";
  const auto entry = [](const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return "{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
  };
  const std::vector<Case> cases = {
      {"", {"is empty"}},
      {"1234567", {"7 bytes are too few"}},
      {length(uint64_t{1} << 63, "{}"), {"9223372036854775808", "at most 100000000"}},
      {length(~uint64_t{0}, "{}"), {"18446744073709551615"}},
      {length(100'000'001, "{}"), {"100000001"}},
      {length(100'000'000, "{}"), {"100000000 bytes is announced", "only 2 follow"}},
      {length(3, "{}"), {"only 2 follow"}},
      {make("", 0), {"not valid JSON"}},
      {make("[]", 0), {"must be a JSON object", "an array"}},
      {make("7", 0), {"must be a JSON object", "a number"}},
      {make("{", 0), {"not valid JSON"}},
      {make("{} x", 0), {"not valid JSON"}},
      {make(std::string("{}\0 x", 5), 0), {"zero byte"}},
      {make("{\"a\xff\":1}", 0), {"not valid JSON", "UTF-8"}},
      {make("{\"a\\ud800\":1}", 0), {"not valid JSON", "surrogate"}},
      {make(std::string(1000, '['), 0), {"must be a JSON object"}},
      {make(R"({"__metadata__":{},"__metadata__":{}})", 0), {"__metadata__", "stands twice"}},
      {make(R"({"__metadata__":null,"__metadata__":{}})", 0), {"__metadata__", "stands twice"}},
      {make(R"({"__metadata__":[]})", 0), {"__metadata__", "must be an object, found an array"}},
      {make(R"({"__metadata__":"x"})", 0), {"__metadata__", "must be an object, found a string"}},
      {make(R"({"__metadata__":{"k":null}})", 0), {"__metadata__", "'k' cannot be null"}},
      {make(R"({"__metadata__":{"k":1}})", 0), {"__metadata__", "'k' cannot be a number"}},
      {make(R"({"__metadata__":{"k":{}}})", 0), {"__metadata__", "'k' cannot be an object"}},
      {make(R"({"__metadata__":{"k":[]}})", 0), {"__metadata__", "'k' cannot be an array"}},
      {make(R"({"a":null})", 0), {"'a'", "must be an object"}},
      {make(R"({"a":[]})", 0), {"'a'", "'dtype' is missing"}},
      {make(R"({"a":["U8",[1]]})", 0), {"'a'", "'data_offsets' is missing"}},
      {make(R"({"a":["U8",[1],[0,1],7]})", 1), {"'a'", "goes on"}},
      {make(R"({"a":["U8",{},[0,1]]})", 1), {"'a'", "'shape' cannot be an object"}},
      {make(R"({"a":[null,[1],[0,1]]})", 1), {"'a'", "'dtype' cannot be null"}},
      {make(R"({"a":[[1],"U8",[0,1]]})", 1), {"'a'", "'dtype' cannot be an array"}},
      {one(R"({"x":)" + std::string(126, '[') + std::string(126, ']') + "}", 0),
       {"'a'", "'x' is nested too deep"}},
      {one(R"({"x":NaN})", 0), {"not valid JSON"}},
      {one(R"({"dtype":"U8","dtype":"U8"})", 0), {"'a'", "'dtype' stands twice"}},
      {one(R"({"dtype":7})", 0), {"'a'", "'dtype' cannot be a number"}},
      {one(R"({"dtype":["U8"]})", 0), {"'a'", "'dtype' cannot be an array"}},
      {one(R"({"dtype":"U8"})", 0), {"'a'", "'shape' is missing"}},
      {one(R"({"dtype":"U8","shape":[]})", 0), {"'a'", "'data_offsets' is missing"}},
      {one(R"({"shape":[],"data_offsets":[0,1]})", 1), {"'a'", "'dtype' is missing"}},
      {one(entry("F4", "[3]", "[0,2]"), 2), {"'a'", "F4 of shape [3] does not fill whole bytes"}},
      {one(entry("F6_E2M3", "[5]", "[0,4]"), 4), {"'a'", "does not fill whole bytes"}},
      {one(entry("F4", "[4611686018427387904,4]", "[0,4]"), 4), {"'a'", "too large"}},
      {one(entry("U7", "[1]", "[0,1]"), 1), {"'a'", "dtype 'U7'"}},
      {one(entry("U8", "[-1]", "[0,1]"), 1), {"'a'", "negative", "shape"}},
      {one(entry("U8", "[1.0]", "[0,1]"), 1), {"'a'", "1.0", "not an integer"}},
      {one(entry("U8", "[1e99]", "[0,1]"), 1), {"'a'", "not an integer"}},
      {one(entry("U8", "[\"1\"]", "[0,1]"), 1), {"'a'", "'shape' cannot be a string"}},
      {one(entry("U8", "[[1]]", "[0,1]"), 1), {"'a'", "'shape' cannot be an array"}},
      {one(entry("U8", "[18446744073709551615]", "[0,1]"), 1), {"'a'", "too large"}},
      {one(entry("U8", "[99999999999999999999999]", "[0,1]"), 1), {"'a'", "not an integer"}},
      {one(entry("U8", "[4294967296,4294967296]", "[0,0]"), 0), {"'a'", "too large"}},
      {one(entry("F64", "[4611686018427387904]", "[0,0]"), 0), {"'a'", "too large"}},
      {one(entry("F32", "[2]", "[0,4]"), 4), {"'a'", "takes 8 bytes", "hold 4"}},
      {one(entry("F32", "[]", "[0,8]"), 8), {"'a'", "takes 4 bytes", "hold 8"}},
      {one(entry("U8", "[4]", "[4,0]"), 4), {"'a'", "end before they begin"}},
      {one(entry("U8", "[4]", "[0]"), 4), {"'a'", "two numbers"}},
      {one(entry("U8", "[4]", "[0,2,4]"), 4), {"'a'", "two numbers"}},
      {one(entry("U8", "[4]", "[0,4]"), 3), {"'a'", "ends at byte 4", "holds 3"}},
      {one(entry("U8", "[4]", "[0,4]"), 5), {"1 bytes follow the last tensor"}},
      {one(entry("U8", "[4]", "[1,5]"), 5), {"'a'", "gap"}},
      {one(entry("U8", "[4]", "[9223372036854775803,9223372036854775807]"), 4), {"'a'", "gap"}},
      {make("{" + a + ",\"b\":" + entry("U8", "[4]", "[2,6]") + "}", 6), {"'b'", "inside another"}},
      {make("{" + a + ",\"b\":" + entry("U8", "[4]", "[0,4]") + "}", 4), {"inside another"}},
      {make("{" + a + ",\"b\":" + entry("U8", "[4]", "[6,10]") + "}", 10), {"'b'", "gap"}},
      {make("{" + a + ",\"b\":" + entry("U8", "[0]", "[2,2]") + "}", 4), {"inside another"}},
      {make("{}", 1), {"1 bytes follow the last tensor"}},
  };
  for (const Case& one_case : cases) {
    const std::string text = error_of([&] { parse(one_case.bytes); });
    EXPECT_TRUE(text.starts_with("x.safetensors: ")) << text;
    for (const std::string& part : one_case.parts) {
      EXPECT_NE(text.find(part), text.npos) << "'" << part << "' is not in: " << text;
    }
  }
}

TEST(Safetensors, SurvivesDamage) {
  const std::string good =
      make(R"({"__metadata__":{"k":"v"},"a":{"dtype":"U8","shape":[2,2],"data_offsets":[4,8]},)"
           R"("b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
           8);
  ASSERT_EQ(parse(good).tensors.size(), 2u);
  testing::survive_damage(good, 20000, [](std::span<const std::byte> damaged) {
    const TensorFile file = parse_safetensors(damaged, "damaged");
    unsigned sum = 0;
    for (const TensorInfo& tensor : file.tensors) {
      for (size_t i = 0; i < tensor.bytes; ++i) sum += static_cast<unsigned>(tensor.data[i]);
    }
    EXPECT_LT(sum, 4096u);
  });
}

TEST(Safetensors, ReadsShards) {
  TempFolder folder;
  expect_error([&] { open_safetensors_folder(folder.path()); },
               {"neither model.safetensors nor model.safetensors.index.json"});
  const std::string data = "abcdefgh";
  write_safetensors(folder / "m-1.safetensors", {info("a", DType::U8, {8}, data)});
  write_safetensors(folder / "m-2.safetensors",
                    {info("b", DType::F32, {2}, data), info("extra", DType::U8, {8}, data)});
  const auto index = [&](const std::string& map) {
    write_all(folder / "model.safetensors.index.json",
              "{\"metadata\":{},\"weight_map\":" + map + "}");
    return open_safetensors_folder(folder.path());
  };
  const TensorFile file = index(R"({"b":"m-2.safetensors","a":"m-1.safetensors"})");
  ASSERT_EQ(file.tensors.size(), 2u);
  EXPECT_EQ(file.mappings.size(), 2u);
  EXPECT_EQ(file.get("b").dtype, DType::F32);
  EXPECT_EQ(std::memcmp(file.get("a").data, "abcdefgh", 8), 0);
  expect_error([&] { index(R"({"c":"m-1.safetensors"})"); }, {"m-1.safetensors", "'c' is missing"});
  expect_error([&] { index(R"({"a":"m-3.safetensors","b":"m-2.safetensors"})"); },
               {"1 of the 2 files", "m-3.safetensors", "fetch"});
  expect_error([&] { index(R"({"a":"../m-1.safetensors"})"); }, {"'../m-1.safetensors'", "plain"});
  expect_error([&] { index(R"({"a":"/etc/passwd"})"); }, {"'/etc/passwd'", "plain"});
  expect_error([&] { index(R"({"a":1})"); }, {"'a' must be a string, found 1"});
  expect_error([&] { index(R"({"a":"m-1.safetensors","a":"m-1.safetensors"})"); },
               {"stands twice"});
  // One file under two names.
  std::filesystem::create_symlink("m-1.safetensors", folder / "link.safetensors");
  EXPECT_EQ(index(R"({"a":"link.safetensors","b":"m-2.safetensors"})").get("a").bytes, 8u);
  std::filesystem::create_symlink("gone", folder / "model.safetensors");
  std::filesystem::remove(folder / "model.safetensors.index.json");
  expect_error([&] { open_safetensors_folder(folder.path()); },
               {"model.safetensors", "link to a file that is not there"});
  std::filesystem::remove(folder / "model.safetensors");
  expect_error([&] { open_safetensors_folder(folder.path()); },
               {"link.safetensors, m-1.safetensors, m-2.safetensors", "save_pretrained"});
  write_all(folder / "adapter_config.json", "{}");
  expect_error([&] { open_safetensors_folder(folder.path()); }, {"adapter", "merge"});
  write_safetensors(folder / "model.safetensors", {info("only", DType::U8, {8}, data)});
  EXPECT_NE(open_safetensors_folder(folder.path()).find("only"), nullptr);
}

}  // namespace
}  // namespace heed
