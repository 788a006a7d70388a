// Model files as users have them, through the whole program: what is taken by another name or path,
// and one line with exit code 1 for what is no model.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>

#include "io/json.h"
#include "run_heed.h"

namespace heed {
namespace files_cli_test {

namespace fs = std::filesystem;

using test::expect_refused;
using test::run_heed;

const std::string kLlama = HEED_SOURCE_DIR "/tests/model/fixtures/llama";

class Files : public test::CliTest {
 protected:
  void file(const std::string& name, const std::string& bytes) const {
    std::ofstream(path(name), std::ios::binary) << bytes;
  }
  static Json info(const std::string& model) {
    const test::Result r = run_heed("info --json '" + model + "'");
    EXPECT_EQ(r.code, 0) << r.text;
    return r.code == 0 ? Json::parse(r.text) : Json();
  }
  // A copy of the fixture whose safetensors header is `change`d.
  std::string with_header(const std::function<void(std::string&)>& change) const {
    fs::copy(kLlama, path("model"),
             fs::copy_options::overwrite_existing | fs::copy_options::recursive);
    std::ifstream in(kLlama + "/model.safetensors", std::ios::binary);
    uint64_t length = 0;
    in.read(reinterpret_cast<char*>(&length), sizeof length);
    std::string header(length, ' ');
    in.read(header.data(), static_cast<std::streamsize>(length));
    const std::string data{std::istreambuf_iterator<char>(in), {}};
    change(header);
    length = header.size();
    std::ofstream out(path("model/model.safetensors"), std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), sizeof length);
    out << header << data;
    return path("model");
  }
};

TEST_F(Files, HeadersThatSafetensorsReads) {
  const Json expected = info(kLlama)["plan_hash"];
  const std::string nothing = with_header([](std::string& h) {
    const size_t at = h.find("\"__metadata__\"");
    if (at != h.npos) h.erase(at, h.find('}', at) + 2 - at);
    h.insert(1, "\"__metadata__\":null,");
  });
  EXPECT_EQ(info(nothing)["plan_hash"], expected);
  const std::string more = with_header(
      [](std::string& h) { h.insert(h.find("\"dtype\""), "\"origin\":{\"rank\":[0,1]},"); });
  EXPECT_EQ(info(more)["plan_hash"], expected);
}

TEST_F(Files, OneModelByEveryPath) {
  const Json expected = info(kLlama)["plan_hash"];
  fs::create_symlink(kLlama + "/model.safetensors", path("weights"));
  fs::create_directory_symlink(kLlama, path("folder"));
  for (const std::string& model : {kLlama + "/model.safetensors", kLlama + "/config.json",
                                   path("weights"), path("folder"), path("folder/")}) {
    EXPECT_EQ(info(model)["plan_hash"], expected) << model;
  }
}

TEST_F(Files, WhatIsNoModelIsNamed) {
  const auto expect = [&](const std::string& name, const std::string& text) {
    expect_refused(run_heed("info '" + path(name) + "'"), 1, text);
    expect_refused(run_heed("generate '" + path(name) + "' -p Hi -n 1"), 1, text);
  };
  file("pointer.gguf", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n");
  expect("pointer.gguf", "git lfs pull");
  file("model.gguf", std::string("\x1F\x8B\x08\0\0\0", 6));
  expect("model.gguf", "gzip");
  file("pytorch_model.bin", std::string("\x80\x02}q\0", 5));
  expect("pytorch_model.bin", "pickled");
  file("old.bin", std::string("tjgg\3\0\0\0", 8));
  expect("old.bin", "GGJT");
  file("empty.gguf", "");
  expect("empty.gguf", "is empty");
  file("page.gguf", "<!DOCTYPE html><html>404</html>");
  expect("page.gguf", "web page");
  file("words.txt", "It was the best of times");
  expect("words.txt", "not a model by its first bytes");
  fs::create_symlink("gone", path("link"));
  expect("link", "is a link to gone");
  fs::create_directories(path("nothing"));
  expect("nothing", "config.json is missing");
  fs::create_directories(path("half"));
  fs::copy(kLlama + "/config.json", path("half/config.json"));
  file("half/pytorch_model.bin", "\x80\x02}q");
  expect("half", "pytorch_model.bin: save them as safetensors");
  file("half/model.safetensors",
       "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n");
  expect("half", "half/model.safetensors: is a pointer of git-lfs");
}

}  // namespace files_cli_test
}  // namespace heed
