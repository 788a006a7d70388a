// Template source to a tree. Grammar and whitespace rules: jinja.palletsprojects.com/templates,
// jinja2/lexer.py and jinja2/parser.py.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "io/template/value.h"

namespace heed::jinja {

enum class Kind {
  // statements
  kBody,      // kids
  kText,      // text
  kOutput,    // kids[0]
  kFor,       // text: targets separated by commas; kids: iterable, body, else, condition (or null);
              // negated: it may call itself
  kIf,        // kids: condition, then, else (or null)
  kSet,       // text: targets; kids[0]; names a namespace attribute where `attribute` is set
  kSetBlock,  // text: target; kids: body, filters over kCaptured (or null)
  kFilterBlock,  // kids: body, filters over kCaptured
  kWith,         // named: variables and their values; kids[0]: body
  kCallBlock,    // kids: the call, the macro that it is given as `caller`
  kMacro,        // text: name; named: parameters and their defaults (or null); kids[0]: body
  kBreak,
  kContinue,
  // expressions
  kLiteral,    // value
  kName,       // text
  kCaptured,   // the text of the block around it
  kSpread,     // text: * or **; kids[0]; only among the arguments of a call
  kList,       // kids
  kTuple,      // kids
  kDict,       // kids: key, value, key, value, ...
  kAttribute,  // text; kids[0]
  kItem,       // kids: object, index
  kSlice,      // kids: object, start, stop, step (or null)
  kCall,       // kids: callee, arguments...; named
  kFilter,     // text; kids: input, arguments...; named
  kTest,       // text; kids: input, arguments...; negated
  kUnary,      // text: - + not
  kBinary,     // text: + - * / // % ** ~ and or
  kCompare,    // text: operators separated by commas; kids
  kTernary,    // kids: condition, then, else (or null)
};

struct Node;
using NodePointer = std::unique_ptr<Node>;

struct Node {
  Kind kind;
  int line;
  int height = 1;  // of the tree below
  std::string text, attribute;
  bool negated = false;
  Value value;
  std::vector<NodePointer> kids;
  std::vector<std::pair<std::string, NodePointer>> named;
};

// The tree of a whole template (a kBody). Throws Error naming `name`, line and construct.
NodePointer parse(const std::string& source, const std::string& name);

}  // namespace heed::jinja
