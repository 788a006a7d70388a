// Chat templates: Jinja as published models use it, with the settings of Hugging Face transformers
// (ImmutableSandboxedEnvironment, trim_blocks, lstrip_blocks, loop controls, {% generation %}, its
// own tojson, raise_exception, strftime_now). Compared with Python's Jinja2 on the templates of
// tests/io/fixtures/templates.
//
// Statements: for (with if, else, recursive, break, continue), if, set (also of a block, with
// filters, and of namespace attributes), macro, call, filter, with, generation, raw, comments.
// Expressions: all of Jinja's; filters, tests, functions and the methods of strings, lists and
// mappings are the tables of filters.cc, tests.cc, globals.cc and methods.cc. Integers have 64
// bits. What needs other files (include, import, extends, block) or is not in the tables is an
// Error that names the construct and its line.
#pragma once

#include <cstdint>
#include <ctime>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace heed {

struct ChatOptions {
  bool add_generation_prompt = false;
  std::string bos_token, eos_token;  // empty: not defined in the template
  // More variables (an object), such as tools, documents, enable_thinking.
  nlohmann::ordered_json extra = nlohmann::ordered_json::object();
  std::optional<std::tm> now;          // what strftime_now sees; the clock if not given
  std::string name = "chat template";  // in messages
  // A template that does more is stopped with an Error: evaluated nodes, and bytes of all texts and
  // lists made on the way.
  int64_t max_steps = 5'000'000;
  int64_t max_bytes = int64_t{256} << 20;
};

// The text of `messages` (a list of objects such as {"role": "user", "content": "..."}).
std::string render_chat(const std::string& source, const nlohmann::ordered_json& messages,
                        const ChatOptions& options);

}  // namespace heed
