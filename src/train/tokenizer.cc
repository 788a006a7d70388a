#include "train/tokenizer.h"

#include <filesystem>

#include "data/corpus.h"
#include "io/atomic_file.h"
#include "io/json.h"
#include "io/text_file.h"
#include "io/tokenizer/bpe_trainer.h"

namespace heed::train {

void train_tokenizer(const std::vector<std::string>& files, const std::string& separator,
                     int64_t vocab_size, const std::string& folder, Progress& progress) {
  BpeTrainerOptions options;
  options.vocab_size = vocab_size;
  options.special_tokens = {kEndOfText};
  std::string text;
  std::vector<std::string_view> documents;
  size_t file = 0, document = 0;
  auto next = [&](std::string& out) {
    while (document == documents.size()) {
      if (file == files.size()) return false;
      text = read_text_file(files[file++]);
      documents = data::split_documents(text, separator);
      document = 0;
    }
    out = documents[document++];
    return true;
  };
  const std::string json = train_byte_bpe(next, options, progress);
  make_folders(folder);
  const std::filesystem::path base(folder);
  const Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                       {"bos_token", kEndOfText},
                       {"eos_token", kEndOfText},
                       {"add_bos_token", false},
                       {"add_eos_token", false},
                       {"clean_up_tokenization_spaces", false}};
  write_text_atomic((base / "tokenizer_config.json").string(), pretty_json(config));
  write_text_atomic((base / "tokenizer.json").string(), json);
}

}  // namespace heed::train
