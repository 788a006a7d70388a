// Template source to tokens, with the white space rules of trim_blocks and lstrip_blocks.
// Grammar: jinja2/lexer.py.
#pragma once

#include <string>
#include <vector>

namespace heed::jinja {

enum class Type {
  kData,
  kTagBegin,
  kTagEnd,
  kOutBegin,
  kOutEnd,
  kName,
  kString,
  kInteger,
  kReal,
  kOperator,
  kEnd
};

struct Token {
  Type type;
  std::string text;
  int line;
};

// The tokens of a whole template. Throws Error naming `name`, line and character.
std::vector<Token> tokenize(const std::string& source, const std::string& name);

}  // namespace heed::jinja
