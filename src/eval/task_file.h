// Tasks of a user's own: a file of lines {"kind": "...", "prompt": "...", "answer": "..."}.
#pragma once

#include <string>
#include <vector>

#include "data/needles.h"
#include "eval/workbench.h"

namespace heed::eval {

// The begin token that documents and prompts start with: {} where the tokenizer has none.
std::vector<int32_t> begin_of(const Tokenizer& tokenizer);

// Each line is a question: the begin token and the prompt, then the answer, tokenised apart. Lines
// in a row whose prompts begin alike become one document, which is read once. Blank lines are
// skipped, keys beyond the three are not looked at. Throws Error naming file and line for a line
// that is no such object, for one whose kind, prompt or answer is empty, and for one that does not
// fit into the model's context; and for a file without a task.
std::vector<data::NeedleDocument> read_tasks(const std::string& file, const Workbench& bench);

}  // namespace heed::eval
