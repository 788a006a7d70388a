// From what a user names to what holds the model: folders, files, links, the hub's cache, and what
// is said where there is no model.
#include "io/model_path.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "io_test_helper.h"

namespace heed {
namespace {

namespace fs = std::filesystem;

using testing::Bytes;
using testing::expect_error;
using testing::write_all;

const std::string kTensors = Bytes().number<uint64_t>(2).raw("{}").str() + "more";
const std::string kGguf = Bytes().raw("GGUF").number<uint32_t>(3).number<uint64_t>(0).str();

class ModelPath : public ::testing::Test {
 protected:
  std::string at(const std::string& name) const { return temp_ / name; }
  void file(const std::string& name, const std::string& content) {
    fs::create_directories(fs::path(at(name)).parent_path());
    write_all(at(name), content);
  }
  void link(const std::string& to, const std::string& name) {
    fs::create_directories(fs::path(at(name)).parent_path());
    fs::create_symlink(to, at(name));
  }
  void expect_found(const std::string& given, const std::string& path, ModelFormat format) {
    const ModelPlace place = find_model(given);
    EXPECT_TRUE(fs::equivalent(place.path, path)) << given << ": " << place.path;
    EXPECT_EQ(place.format, format) << given;
  }
  test::TempFolder temp_;
};

TEST_F(ModelPath, AFolderByItsFilesAndByLinks) {
  file("m/config.json", "{}");
  file("m/model.safetensors", kTensors);
  file("m/model-00001-of-00002.safetensors", kTensors);
  link("m", "folder");
  link("m/model.safetensors", "weights");
  link("weights", "again");
  for (const char* given : {"m", "m/", "m/config.json", "m/model.safetensors", "folder",
                            "folder/model.safetensors", "weights", "again"}) {
    expect_found(at(given), at("m"), ModelFormat::kSafetensors);
  }
  // A shard that no index names is not the model.
  expect_error([&] { find_model(at("m/model-00001-of-00002.safetensors")); },
               {"00001-of-00002", "neither the model.safetensors", "model's folder"});
}

TEST_F(ModelPath, ShardsOfAnIndex) {
  file("m/config.json", "{}");
  file("m/one.safetensors", kTensors);
  file("m/other.safetensors", kTensors);
  file("m/model.safetensors.index.json", R"({"weight_map": {"a": "one.safetensors"}})");
  expect_found(at("m/one.safetensors"), at("m"), ModelFormat::kSafetensors);
  expect_found(at("m/model.safetensors.index.json"), at("m"), ModelFormat::kSafetensors);
  expect_error([&] { find_model(at("m/other.safetensors")); }, {"other.safetensors", "shards"});
}

TEST_F(ModelPath, TheHubsCache) {
  const std::string hub = "models--owner--name";
  file(hub + "/blobs/aa", "{}");
  file(hub + "/blobs/bb", kTensors);
  link("../../blobs/aa", hub + "/snapshots/r1/config.json");
  link("../../blobs/bb", hub + "/snapshots/r1/model.safetensors");
  const std::string r1 = at(hub + "/snapshots/r1");
  expect_found(at(hub), r1, ModelFormat::kSafetensors);
  expect_found(r1 + "/model.safetensors", r1, ModelFormat::kSafetensors);
  link(hub + "/snapshots/r1/model.safetensors", "out");
  expect_found(at("out"), r1, ModelFormat::kSafetensors);
  // A blob alone says of no model.
  expect_error([&] { find_model(at(hub + "/blobs/bb")); }, {"blobs/bb", "holds tensors"});
  link("../../blobs/aa", hub + "/snapshots/r2/config.json");
  expect_error([&] { find_model(at(hub)); }, {"2 snapshots", "r1, r2"});
  file(hub + "/refs/main", "r2\n");
  expect_found(at(hub), at(hub + "/snapshots/r2"), ModelFormat::kSafetensors);
  fs::remove_all(at(hub + "/snapshots"));
  fs::create_directories(at(hub + "/snapshots"));
  expect_error([&] { find_model(at(hub)); }, {"no snapshot"});
}

TEST_F(ModelPath, GgufByItsFirstBytes) {
  for (const char* name : {"MODEL.GGUF", "sha256-0123", "model.bin", "x.safetensors", "y.json"}) {
    file(name, kGguf);
    expect_found(at(name), at(name), ModelFormat::kGguf);
  }
  file("one/README.md", "# A model");
  file("one/m-00002-of-00002.gguf", kGguf);
  file("one/m-00001-of-00002.gguf", kGguf);
  expect_found(at("one"), at("one/m-00001-of-00002.gguf"), ModelFormat::kGguf);
  file("one/q8.gguf", kGguf);
  expect_error([&] { find_model(at("one")); },
               {"2 GGUF files", "m-00001-of-00002.gguf, q8.gguf", "one of them"});
}

TEST_F(ModelPath, ALlama2cCheckpointWhateverItsName) {
  Bytes bytes;
  for (const int32_t size : {8, 16, 1, 2, 2, 32, 16}) bytes.number(size);
  file("stories", bytes.str());
  expect_found(at("stories"), at("stories"), ModelFormat::kLlama2c);
}

TEST_F(ModelPath, SaysWhatThereIsInstead) {
  expect_error([&] { find_model(at("none")); }, {"none", "no such file or folder"});
  link("gone", "broken");
  expect_error([&] { find_model(at("broken")); }, {"broken", "is a link to gone"});
  fs::create_directories(at("empty"));
  expect_error([&] { find_model(at("empty")); }, {"empty", "config.json is missing"});
  file("lora/adapter_config.json", "{}");
  file("lora/adapter_model.safetensors", kTensors);
  expect_error([&] { find_model(at("lora")); }, {"adapter", "merge"});
  file("text.gguf", "not a model at all, just words");
  expect_error([&] { find_model(at("text.gguf")); },
               {"text.gguf", "not a model by its first bytes"});
  file("nothing.gguf", "");
  expect_error([&] { find_model(at("nothing.gguf")); }, {"nothing.gguf", "is empty"});
  file("short", "ab");
  expect_error([&] { find_model(at("short")); }, {"short", "not a model"});
  file("pytorch_model.bin", "\x80\x02}q.");
  expect_error([&] { find_model(at("pytorch_model.bin")); }, {"pickled", "safetensors"});
}

}  // namespace
}  // namespace heed
