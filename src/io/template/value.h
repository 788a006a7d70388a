// Values of the template language, with Python's notions of truth, equality and text.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace heed::jinja {

class Value;
using List = std::vector<Value>;

// A mapping in insertion order. Keys are what Python can hash: texts, numbers, none, tuples of
// them; 1, 1.0 and true are one key.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  bool is_namespace = false;  // namespace(): the only thing that templates may change

  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  void set(const Value& key, Value value);
  void set(std::string_view key, Value value);
};

struct Arguments {
  std::vector<Value> list;
  std::vector<std::pair<std::string, Value>> named;
  int line = 0;
};
using Function = std::function<Value(const Arguments&)>;

struct Undefined {
  std::string name;  // for messages
};

class Value {
 public:
  Value() : data_(Undefined{}) {}
  static Value undefined(std::string name) { return Value(Data(Undefined{std::move(name)})); }
  static Value none() { return Value(Data(nullptr)); }
  static Value boolean(bool b) { return Value(Data(b)); }
  static Value integer(int64_t i) { return Value(Data(i)); }
  static Value real(double d) { return Value(Data(d)); }
  static Value text(std::string s) {
    return Value(Data(std::make_shared<const std::string>(std::move(s))));
  }
  // A text that is safe in HTML (Python's Markup): what plain text is joined to it is escaped.
  static Value markup(std::string s) {
    Value value = text(std::move(s));
    value.flag_ = true;
    return value;
  }
  static Value list(List items, bool tuple = false) {
    Value value{Data(std::make_shared<const List>(std::move(items)))};
    value.flag_ = tuple;
    return value;
  }
  static Value dict(Dict entries) {
    return Value(Data(std::make_shared<Dict>(std::move(entries))));
  }
  static Value function(Function f) {
    return Value(Data(std::make_shared<const Function>(std::move(f))));
  }
  static Value from_json(const nlohmann::ordered_json& json);

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<std::nullptr_t>(data_); }
  bool is_boolean() const { return std::holds_alternative<bool>(data_); }
  bool is_integer() const { return std::holds_alternative<int64_t>(data_); }
  bool is_real() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_boolean() || is_integer() || is_real(); }
  bool is_text() const { return std::holds_alternative<TextPointer>(data_); }
  bool is_markup() const { return is_text() && flag_; }
  bool is_list() const { return std::holds_alternative<ListPointer>(data_); }
  bool is_tuple() const { return is_list() && flag_; }
  bool is_dict() const { return std::holds_alternative<DictPointer>(data_); }
  bool is_function() const { return std::holds_alternative<FunctionPointer>(data_); }

  const std::string& undefined_name() const { return std::get<Undefined>(data_).name; }
  // Number as an integer or a double; booleans count as 0 and 1.
  bool is_whole() const { return is_integer() || is_boolean(); }
  int64_t as_integer() const {
    return is_boolean() ? std::get<bool>(data_) : std::get<int64_t>(data_);
  }
  double as_real() const {
    return is_real() ? std::get<double>(data_) : static_cast<double>(as_integer());
  }
  const std::string& as_text() const { return *std::get<TextPointer>(data_); }
  const List& as_list() const { return *std::get<ListPointer>(data_); }
  Dict& as_dict() const { return *std::get<DictPointer>(data_); }
  const Function& as_function() const { return *std::get<FunctionPointer>(data_); }

  bool truth() const;
  std::string type_name() const;               // Python's
  std::string str() const;                     // Python's str()
  std::string repr() const;                    // Python's repr()
  bool same_object(const Value& other) const;  // Python's `is`
  // Equality as in Python; never an error.
  bool equals(const Value& other) const;
  // May it be the key of a mapping?
  bool is_hashable() const;

 private:
  using TextPointer = std::shared_ptr<const std::string>;
  using ListPointer = std::shared_ptr<const List>;
  using DictPointer = std::shared_ptr<Dict>;
  using FunctionPointer = std::shared_ptr<const Function>;
  using Data = std::variant<Undefined, std::nullptr_t, bool, int64_t, double, TextPointer,
                            ListPointer, DictPointer, FunctionPointer>;
  explicit Value(Data data) : data_(std::move(data)) {}

  Data data_;
  bool flag_ = false;  // of a list: a tuple; of a text: markup
};

// Python's float text: the shortest that reads back, with ".0" for whole numbers.
std::string real_text(double value);

struct JsonStyle {
  int indent = -1;  // -1: one line
  bool ensure_ascii = false, sort_keys = false;
  std::string item_separator = ", ", key_separator = ": ";
};
// Python's json.dumps(); throws std::invalid_argument naming a type that JSON does not have.
std::string to_json(const Value& value, const JsonStyle& style, int depth = 0);

}  // namespace heed::jinja
