// Files told by their first bytes: what each reader says of a file that is something else.
#include "io/file_kind.h"

#include <gtest/gtest.h>

#include "io/gguf.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/text_file.h"
#include "io_test_helper.h"

namespace heed {
namespace {

using testing::error_of;
using testing::exact;
using testing::expect_error;
using testing::TempFolder;
using testing::write_all;
using std::string_literals::operator""s;

const std::string kPointer =
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n";

std::string zip_of(const std::string& name) {
  testing::Bytes out;
  out.raw("PK\x03\x04")
      .raw(std::string(22, '\0'))
      .number<uint16_t>(static_cast<uint16_t>(name.size()));
  return out.number<uint16_t>(0).raw(name).raw("content").str();
}

struct Sample {
  std::string bytes;
  FileKind kind;
  std::string says;
};

std::vector<Sample> samples() {
  std::string tar(512, '\0');
  tar.replace(0, 5, "a.txt").replace(257, 5, "ustar");
  return {
      {"", FileKind::kEmpty, "is empty"},
      {kPointer, FileKind::kPointer, "git lfs pull"},
      {"\x1F\x8B\x08\0\0\0"s, FileKind::kCompressed, "gzip"},
      {"\xFD\x37zXZ\0\0\4"s, FileKind::kCompressed, "xz"},
      {"\x28\xB5\x2F\xFD\x24\0"s, FileKind::kCompressed, "zstd"},
      {"BZh91AY&SY\x01"s, FileKind::kCompressed, "bzip2"},
      {"\x04\x22\x4D\x18@"s, FileKind::kCompressed, "lz4"},
      {"7z\xBC\xAF\x27\x1C\0\4"s, FileKind::kCompressed, "7z"},
      {tar, FileKind::kCompressed, "tar"},
      {zip_of("notes.txt"), FileKind::kCompressed, "zip archive"},
      {zip_of("archive/data.pkl"), FileKind::kForeign, "PyTorch"},
      {zip_of("arr_0.npy"), FileKind::kForeign, "NumPy"},
      {"\x80\x02}q\0"s, FileKind::kForeign, "pickled"},
      {"\x80\x04\x95\x10\0\0\0\0\0\0\0"s, FileKind::kForeign, "pickled"},
      {"\x08\x08\x12\x07pytorch\x1A\x05"s, FileKind::kForeign, "ONNX"},
      {"lmgg\1\0\0\0"s, FileKind::kForeign, "GGML"},
      {"fmgg\1\0\0\0"s, FileKind::kForeign, "GGMF"},
      {"tjgg\3\0\0\0"s, FileKind::kForeign, "GGJT"},
      {"24ka\1\0\0\0"s, FileKind::kForeign, "--version 0"},
      {"\x89HDF\r\n\x1A\n\0"s, FileKind::kForeign, "HDF5"},
      {"\x93NUMPY\1\0"s, FileKind::kForeign, "NumPy"},
      {"\x1C\0\0\0TFL3"s, FileKind::kForeign, "TensorFlow Lite"},
      {"<!DOCTYPE html><html>"s, FileKind::kWebPage, "web page"},
      {"\n <HTML lang=\"en\">"s, FileKind::kWebPage, "web page"},
      {"GGUF\3\0\0\0"s, FileKind::kGguf, ""},
      {"Call me Ishmael.", FileKind::kUnknown, ""},
      {"{\"a\": 1}", FileKind::kUnknown, ""},
      {"\x80", FileKind::kUnknown, ""},
      {"PK", FileKind::kUnknown, ""},
      {"\x08\x08\x12\x40short"s, FileKind::kUnknown, ""},
  };
}

TEST(FileKind, IsToldByTheFirstBytes) {
  for (const Sample& sample : samples()) {
    const auto bytes = exact(sample.bytes);
    const FileFacts facts = file_facts(bytes);
    EXPECT_EQ(facts.kind, sample.kind) << sample.bytes;
    EXPECT_NE(facts.text.find(sample.says), std::string::npos) << facts.text;
    EXPECT_EQ(facts.text.empty(), sample.says.empty());
  }
}

TEST(FileKind, EveryReaderNamesIt) {
  TempFolder folder;
  const std::string path = folder / "model.gguf";  // the name says nothing
  for (const Sample& sample : samples()) {
    if (sample.says.empty()) continue;
    write_all(path, sample.bytes);
    expect_error([&] { open_gguf(path); }, {path, sample.says});
    expect_error([&] { open_safetensors(path); }, {path, sample.says});
    if (sample.kind != FileKind::kEmpty) {
      expect_error([&] { read_json(path); }, {path, sample.says});
    }
    EXPECT_FALSE(is_gguf_file(path));
  }
  write_all(path, "GGUF\3\0\0\0"s);
  EXPECT_TRUE(is_gguf_file(path));
  EXPECT_FALSE(is_gguf_file(folder / "none"));
  EXPECT_FALSE(is_gguf_file(folder.path()));
}

TEST(FileKind, TextsAreTexts) {
  TempFolder folder;
  const std::string path = folder / "corpus.txt";
  for (const char* text : {"GGUF is a format.", "lmgg, he said", "24ka", "<html>is text too</html>",
                           "BZh, wrote the Bulgarian", ""}) {
    write_all(path, text);
    EXPECT_EQ(read_text_file(path), text);
  }
  write_all(path, kPointer);
  expect_error([&] { read_text_file(path); }, {path, "git lfs pull"});
  write_all(path, "\x1F\x8B\x08\0\0\0"s);
  expect_error([&] { read_text_file(path); }, {path, "gunzip"});
  write_all(path, "GGUF\3\0\0\0"s);
  expect_error([&] { read_text_file(path); }, {path, "GGUF model"});
}

}  // namespace
}  // namespace heed
