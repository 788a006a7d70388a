#include "eval/workbench.h"

#include <filesystem>

#include <algorithm>
#include "data/tokenizer_codec.h"

#include "io/error.h"
#include "io/tokenizer/open.h"
#include "model/hub.h"

namespace heed::eval {
namespace fs = std::filesystem;

namespace {

std::string book(const char* name) {
  const auto path = fs::path(home_folder()) / "examples" / "books" / name;
  if (!fs::exists(path)) {
    throw Error(
        "{}: the book that comes with Heed is not there; set HEED_HOME to the repository, or "
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

std::string search_book() { return book("three-men-in-a-boat.txt.xz"); }
std::string test_book() { return book("walden.txt.xz"); }

data::Corpus open_text(const Workbench& bench, const std::vector<std::string>& files) {
  return data::Corpus::load(files, bench.codec, {"<|endofbook|>", "", 0});
}

}  // namespace heed::eval
