#include "io/tokenizer/tokenize_file.h"

#include "io/atomic_file.h"
#include "io/error.h"
#include "io/json.h"

namespace heed {

namespace {

constexpr JsonLimits kLimits{.bytes = size_t{1} << 30, .depth = 8, .values = 50'000'000};

Json read_list(const std::string& path) {
  try {
    Json list = read_json(path, kLimits);
    if (list.is_array()) return list;
  } catch (const UsageError&) {
    throw;
  } catch (const Error& error) {  // what the caller gave does not fit
    throw UsageError("{}", error.what());
  }
  throw UsageError("{}: expected a JSON list", path);
}

}  // namespace

void tokenize_file(const Tokenizer& tokenizer, const std::string& in, const std::string& out) {
  const Json list = read_list(in);
  Json ids = Json::array();
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i].is_string()) throw UsageError("{}: item {} is not a string", in, i);
    ids.push_back(tokenizer.encode(list[i].get_ref<const std::string&>()));
  }
  write_text_atomic(out, canonical_json(ids) + "\n");
}

void detokenize_file(const Tokenizer& tokenizer, const std::string& in, const std::string& out) {
  const Json list = read_list(in);
  Json texts = Json::array();
  std::vector<int32_t> ids;
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i].is_array()) throw UsageError("{}: item {} is not a list of ids", in, i);
    ids.clear();
    for (const Json& item : list[i]) {
      const bool fits = item.is_number_integer() && item >= 0 && item < tokenizer.vocab_size();
      if (!fits) {
        throw UsageError("{}: item {} holds {}, which is no id of a vocabulary of {}", in, i,
                         item.dump(), tokenizer.vocab_size());
      }
      ids.push_back(item.get<int32_t>());
    }
    texts.push_back(tokenizer.decode(ids));
  }
  write_text_atomic(out, canonical_json(texts) + "\n");
}

}  // namespace heed
