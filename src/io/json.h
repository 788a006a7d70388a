// JSON for files that may be broken or hostile: parsing with limits, typed access to fields with
// errors that name file, key and expected type, and one canonical text of a value.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace heed {

using Json = nlohmann::json;

// What a text may hold at most. The defaults take every tokenizer.json in use and keep the parsed
// value under about 1 GB.
struct JsonLimits {
  size_t bytes = size_t{64} << 20;
  int depth = 64;
  size_t values = 5'000'000;
};

// Parses strict JSON (RFC 8259): a key that stands twice in one object, invalid UTF-8, half a
// surrogate pair, NaN, a number beyond a double and anything after the value are errors. `file`
// names the text in messages.
Json parse_json(std::string_view text, const std::string& file, const JsonLimits& limits = {});
Json read_json(const std::string& path, const JsonLimits& limits = {});

// Keys sorted by bytes, no spaces, UTF-8 as is, shortest decimal that reads back to the same
// double: equal values give equal bytes. Error for a string that is not UTF-8 and for NaN or
// infinity, which JSON cannot hold.
std::string canonical_json(const Json& value);
// The same, indented for people, with a newline at the end.
std::string pretty_json(const Json& value);

// The field `key` of an object, or null where it is absent or JSON null (configurations write both
// for "not given"). Error if `object` is not an object. `file` names the object in messages, e.g.
// "config.json" or "config.json: rope_scaling".
const Json* find_field(const Json& object, const std::string& key, const std::string& file);

// Required fields: Error if absent or of another type. An integer must be written without a
// fraction; a float may be written as an integer.
const Json& get_field(const Json& object, const std::string& key, const std::string& file);
int64_t get_int(const Json& object, const std::string& key, const std::string& file);
double get_float(const Json& object, const std::string& key, const std::string& file);
bool get_bool(const Json& object, const std::string& key, const std::string& file);
std::string get_string(const Json& object, const std::string& key, const std::string& file);
const Json& get_object(const Json& object, const std::string& key, const std::string& file);
const Json& get_array(const Json& object, const std::string& key, const std::string& file);
std::vector<int64_t> get_ints(const Json& object, const std::string& key, const std::string& file);
std::vector<double> get_floats(const Json& object, const std::string& key, const std::string& file);
std::vector<std::string> get_strings(const Json& object, const std::string& key,
                                     const std::string& file);

// Optional fields: `fallback` where absent or null; Error if present with another type.
int64_t get_int(const Json& object, const std::string& key, const std::string& file,
                int64_t fallback);
double get_float(const Json& object, const std::string& key, const std::string& file,
                 double fallback);
bool get_bool(const Json& object, const std::string& key, const std::string& file, bool fallback);
std::string get_string(const Json& object, const std::string& key, const std::string& file,
                       const std::string& fallback);

// The value itself as an integer (or float), for elements of arrays; `what` names it.
int64_t as_int(const Json& value, const std::string& what, const std::string& file);
double as_float(const Json& value, const std::string& what, const std::string& file);
std::string as_string(const Json& value, const std::string& what, const std::string& file);

// Reads `text` with a nlohmann SAX handler. That parser takes a zero byte for the end of the text;
// here it is an error, as RFC 8259 has it.
void scan_json(std::string_view text, const std::string& file, nlohmann::json_sax<Json>& handler);

// nlohmann's message without its "[json.exception...]" prefix, on one line.
std::string json_error_text(const std::exception& error);

}  // namespace heed
