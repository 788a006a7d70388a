// See task_file.h.
#include "eval/task_file.h"

#include <algorithm>
#include <string_view>

#include "io/error.h"
#include "io/json.h"
#include "io/text_file.h"

namespace heed::eval {
namespace {

struct Task {
  std::string kind, answer_text;
  std::vector<int32_t> prompt, answer;
};

// `where`: file and line.
Task parse_task(std::string_view line, const std::string& where, const Workbench& bench) {
  const Json json = parse_json(line, where);
  Task task;
  const std::string prompt = get_string(json, "prompt", where);
  task.kind = get_string(json, "kind", where);
  task.answer_text = get_string(json, "answer", where);
  for (const auto& [key, text] : {std::pair<const char*, const std::string*>{"kind", &task.kind},
                                  {"prompt", &prompt},
                                  {"answer", &task.answer_text}}) {
    if (text->empty()) throw Error("{}: {} is empty; write some text", where, key);
  }
  task.prompt = begin_of(bench.tokenizer);
  data::append(task.prompt, bench.tokenizer.encode(prompt));
  task.answer = bench.tokenizer.encode(task.answer_text);
  if (task.prompt.empty() || task.answer.empty()) {
    throw Error("{}: the tokenizer makes no token of its {}", where,
                task.answer.empty() ? "answer" : "prompt");
  }
  const int64_t asked = std::ssize(task.prompt) + std::ssize(task.answer);
  if (asked > bench.model.context()) {
    throw Error(
        "{}: prompt and answer have {} tokens, the model was made for {}; shorten the prompt",
        where, asked, bench.model.context());
  }
  return task;
}

int64_t common_prefix(const std::vector<int32_t>& a, int64_t most, const std::vector<int32_t>& b) {
  const int64_t size = std::min({most, std::ssize(a), std::ssize(b)});
  return std::mismatch(a.begin(), a.begin() + size, b.begin()).first - a.begin();
}

// Tasks [first, last), whose prompts have their first `shared` tokens in common.
data::NeedleDocument document_of(const std::vector<Task>& tasks, size_t first, size_t last,
                                 int64_t shared) {
  data::NeedleDocument document;
  const auto& prompt = tasks[first].prompt;
  document.tokens.assign(prompt.begin(), prompt.begin() + shared);
  for (size_t n = first; n < last; ++n) {
    data::NeedleDocument::Needle needle;
    needle.kind = tasks[n].kind;
    needle.value = tasks[n].answer_text;
    needle.question.assign(tasks[n].prompt.begin() + shared, tasks[n].prompt.end());
    needle.answer = tasks[n].answer;
    document.needles.push_back(std::move(needle));
  }
  return document;
}

}  // namespace

std::vector<int32_t> begin_of(const Tokenizer& tokenizer) {
  const int32_t bos = tokenizer.special().bos;
  return bos < 0 ? std::vector<int32_t>{} : std::vector{bos};
}

std::vector<data::NeedleDocument> read_tasks(const std::string& file, const Workbench& bench) {
  const std::string text = read_text_file(file);
  std::vector<Task> tasks;
  int64_t number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    tasks.push_back(parse_task(line, fmt::format("{}:{}", file, number), bench));
  }
  if (tasks.empty()) {
    throw Error(
        "{}: no task in it; write lines {{\"kind\": \"...\", \"prompt\": \"...\", \"answer\": "
        "\"...\"}}",
        file);
  }
  std::vector<data::NeedleDocument> documents;
  constexpr size_t kMostQuestions = 32;  // that are scored in one pass
  for (size_t first = 0; first < tasks.size();) {
    // Every question keeps a token of its own; a document is shared while it is most of a prompt.
    int64_t shared = std::ssize(tasks[first].prompt) - 1;
    size_t last = first + 1;
    for (; last < tasks.size() && last - first < kMostQuestions; ++last) {
      const auto& next = tasks[last].prompt;
      const int64_t both =
          std::min(common_prefix(tasks[first].prompt, shared, next), std::ssize(next) - 1);
      if (2 * both < std::max(shared, std::ssize(next))) break;
      shared = both;
    }
    documents.push_back(document_of(tasks, first, last, shared));
    first = last;
  }
  return documents;
}

}  // namespace heed::eval
