#include "io/json.h"

#include <cmath>
#include <limits>
#include <utility>

#include "io/describe.h"
#include "io/error.h"
#include "io/file_kind.h"
#include "io/mapped_file.h"

namespace heed {
namespace {

// Builds the value while nlohmann's parser reads; the parser itself does not recurse, and the depth
// is bounded here, so neither parsing nor a later dump can exhaust the stack.
class Builder : public nlohmann::json_sax<Json> {
 public:
  Builder(const std::string& file, const JsonLimits& limits) : file_(file), limits_(limits) {}

  bool null() override { return place(Json()) != nullptr; }
  bool boolean(bool value) override { return place(Json(value)) != nullptr; }
  bool number_integer(number_integer_t value) override { return place(Json(value)) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return place(Json(value)) != nullptr; }
  bool number_float(number_float_t value, const string_t&) override {
    return place(Json(value)) != nullptr;
  }
  bool string(string_t& value) override { return place(Json(std::move(value))) != nullptr; }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    auto& object = open_.back()->get_ref<Json::object_t&>();
    const auto [at, fresh] = object.try_emplace(std::move(name));
    if (!fresh) {
      throw Error("{}: not valid: the key '{}' stands twice in one object; keep one of them",
                  printable(file_), printable(at->first));
    }
    field_ = &at->second;
    return true;
  }
  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::detail::exception& error) override {
    throw Error("{}: not valid JSON: {}", printable(file_), json_error_text(error));
  }

  Json take() { return std::move(root_); }

 private:
  Json* place(Json value) {
    if (++values_ > limits_.values) {
      throw Error("{}: holds more than {} JSON values; is this the right file?", printable(file_),
                  limits_.values);
    }
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_array()) {
      auto& array = open_.back()->get_ref<Json::array_t&>();
      array.push_back(std::move(value));
      return &array.back();
    }
    *field_ = std::move(value);
    return field_;
  }

  bool open(Json value) {
    if (static_cast<int>(open_.size()) >= limits_.depth) {
      throw Error("{}: JSON nested deeper than {} levels is not read", printable(file_),
                  limits_.depth);
    }
    // The pointer stays valid: a container's elements do not move while one of them is open.
    open_.push_back(place(std::move(value)));
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  const std::string& file_;
  const JsonLimits& limits_;
  Json root_;
  std::vector<Json*> open_;  // the containers that have not ended, outermost first
  Json* field_ = nullptr;    // where the value after a key goes
  size_t values_ = 0;
};

[[noreturn]] void wrong_type(const Json& value, const std::string& what, const char* expected,
                             const std::string& file) {
  std::string shown = value.is_structured() ? value.type_name() : canonical_json(value);
  throw Error("{}: '{}' must be {}, found {}", printable(file), printable(what), expected,
              printable(shown, 60));
}

template <typename T, typename Get>
std::vector<T> list_of(const Json& object, const std::string& key, const std::string& file,
                       Get get) {
  std::vector<T> out;
  const Json& array = get_array(object, key, file);
  out.reserve(array.size());
  for (const Json& value : array) out.push_back(get(value, key, file));
  return out;
}

bool as_bool(const Json& value, const std::string& what, const std::string& file) {
  if (!value.is_boolean()) wrong_type(value, what, "true or false", file);
  return value.get<bool>();
}

void check_finite(const Json& value) {
  if (value.is_number_float() && !std::isfinite(value.get<double>())) {
    throw Error("a value that is not finite cannot be written as JSON");
  }
  if (value.is_structured()) {
    for (const Json& element : value) check_finite(element);
  }
}

std::string dump(const Json& value, int indent) {
  check_finite(value);
  try {
    return value.dump(indent);
  } catch (const Json::exception& error) {
    throw Error("cannot be written as JSON: {}", json_error_text(error));
  }
}

}  // namespace

std::string json_error_text(const std::exception& error) {
  std::string_view text = error.what();
  const size_t end = text.find("] ");
  if (text.starts_with("[json.exception") && end != text.npos) text.remove_prefix(end + 2);
  return printable(text, 300);
}

void scan_json(std::string_view text, const std::string& file, nlohmann::json_sax<Json>& handler) {
  if (const size_t zero = text.find('\0'); zero != text.npos) {
    throw Error("{}: not valid JSON: a zero byte at position {}", printable(file), zero);
  }
  Json::sax_parse(text.begin(), text.end(), &handler);
}

Json parse_json(std::string_view text, const std::string& file, const JsonLimits& limits) {
  if (text.size() > limits.bytes) {
    throw Error("{}: {} bytes of JSON; at most {} are read", printable(file), text.size(),
                limits.bytes);
  }
  Builder builder(file, limits);
  scan_json(text, file, builder);
  return builder.take();
}

Json read_json(const std::string& path, const JsonLimits& limits) {
  const MappedFile file(path);
  refuse_foreign(file.bytes(), path);
  return parse_json(file.text(), path, limits);
}

std::string canonical_json(const Json& value) { return dump(value, -1); }
std::string pretty_json(const Json& value) { return dump(value, 1) + "\n"; }

const Json* find_field(const Json& object, const std::string& key, const std::string& file) {
  if (!object.is_object()) {
    throw Error("{}: must be a JSON object with the key '{}', found {}", printable(file),
                printable(key), object.type_name());
  }
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

const Json& get_field(const Json& object, const std::string& key, const std::string& file) {
  const Json* field = find_field(object, key, file);
  if (field == nullptr) throw Error("{}: the key '{}' is missing", printable(file), printable(key));
  return *field;
}

int64_t as_int(const Json& value, const std::string& what, const std::string& file) {
  constexpr auto kMax = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<uint64_t>() > kMax)) {
    wrong_type(value, what, "an integer", file);
  }
  return value.get<int64_t>();
}

double as_float(const Json& value, const std::string& what, const std::string& file) {
  if (!value.is_number()) wrong_type(value, what, "a number", file);
  return value.get<double>();
}

std::string as_string(const Json& value, const std::string& what, const std::string& file) {
  if (!value.is_string()) wrong_type(value, what, "a string", file);
  return value.get<std::string>();
}

int64_t get_int(const Json& object, const std::string& key, const std::string& file) {
  return as_int(get_field(object, key, file), key, file);
}

double get_float(const Json& object, const std::string& key, const std::string& file) {
  return as_float(get_field(object, key, file), key, file);
}

bool get_bool(const Json& object, const std::string& key, const std::string& file) {
  return as_bool(get_field(object, key, file), key, file);
}

std::string get_string(const Json& object, const std::string& key, const std::string& file) {
  return as_string(get_field(object, key, file), key, file);
}

const Json& get_object(const Json& object, const std::string& key, const std::string& file) {
  const Json& value = get_field(object, key, file);
  if (!value.is_object()) wrong_type(value, key, "an object", file);
  return value;
}

const Json& get_array(const Json& object, const std::string& key, const std::string& file) {
  const Json& value = get_field(object, key, file);
  if (!value.is_array()) wrong_type(value, key, "an array", file);
  return value;
}

std::vector<int64_t> get_ints(const Json& object, const std::string& key, const std::string& file) {
  return list_of<int64_t>(object, key, file, as_int);
}

std::vector<double> get_floats(const Json& object, const std::string& key,
                               const std::string& file) {
  return list_of<double>(object, key, file, as_float);
}

std::vector<std::string> get_strings(const Json& object, const std::string& key,
                                     const std::string& file) {
  return list_of<std::string>(object, key, file, as_string);
}

int64_t get_int(const Json& object, const std::string& key, const std::string& file,
                int64_t fallback) {
  const Json* field = find_field(object, key, file);
  return field == nullptr ? fallback : as_int(*field, key, file);
}

double get_float(const Json& object, const std::string& key, const std::string& file,
                 double fallback) {
  const Json* field = find_field(object, key, file);
  return field == nullptr ? fallback : as_float(*field, key, file);
}

bool get_bool(const Json& object, const std::string& key, const std::string& file, bool fallback) {
  const Json* field = find_field(object, key, file);
  return field == nullptr ? fallback : as_bool(*field, key, file);
}

std::string get_string(const Json& object, const std::string& key, const std::string& file,
                       const std::string& fallback) {
  const Json* field = find_field(object, key, file);
  return field == nullptr ? fallback : as_string(*field, key, file);
}

}  // namespace heed
