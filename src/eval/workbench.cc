#include "eval/workbench.h"

#include <algorithm>
#include <filesystem>

#include "data/tokenizer_codec.h"
#include "io/error.h"
#include "io/tokenizer/open.h"
#include "model/hub.h"

namespace heed::eval {
namespace fs = std::filesystem;

namespace {

std::string shipped(const char* folder, const char* name) {
  const auto path = fs::path(home_folder()) / "examples" / folder / name;
  if (!fs::exists(path)) {
    throw Error(
        "{}: the text that comes with Heed is not there; set HEED_HOME to the repository, or "
        "give text of your own with --data",
        path.string());
  }
  return path.string();
}

}  // namespace

Workbench open_workbench(const std::string& model, const LoadOptions& options, Progress& progress) {
  const std::string path = resolve_model(model, progress);
  auto tokenizer = open_tokenizer(path);
  auto codec = data::tokenizer_codec(tokenizer, path);
  return {path, Decoder::load(path, options), std::move(tokenizer), std::move(codec)};
}

int64_t usual_length(const Decoder& model) { return std::min<int64_t>(4096, model.context()); }

std::string search_book() { return shipped("books", "three-men-in-a-boat.txt.xz"); }
std::string test_book() { return shipped("books", "walden.txt.xz"); }
std::vector<std::string> test_texts() {
  return {test_book(), shipped("texts", "encyclopaedia.txt.xz"), shipped("texts", "plays.txt.xz")};
}

data::Corpus open_text(const Workbench& bench, const std::vector<std::string>& files) {
  return data::Corpus::load(files, bench.codec, {"<|endofbook|>", "", 0});
}

}  // namespace heed::eval
