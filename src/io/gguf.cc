#include "io/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "io/describe.h"
#include "io/error.h"
#include "io/file_kind.h"

namespace heed {
namespace {

static_assert(std::endian::native == std::endian::little, "files are read in place");

constexpr int kMaxDims = 4;          // as in ggml
constexpr int kMaxArrayNesting = 4;  // arrays of arrays; no file in use has more than two levels
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;

// Far beyond every file in use; they keep what a hostile one of many gigabytes can make us allocate
// to a few hundred megabytes.
constexpr uint64_t kMaxValues = uint64_t{1} << 16;
constexpr uint64_t kMaxTensors = uint64_t{1} << 20;
constexpr uint64_t kMaxListed = uint64_t{1} << 24;  // elements of an array that is asked for
constexpr size_t kMaxKey = 4096;                    // bytes
constexpr size_t kMaxName = 256;

// Tensor types by their number in the file (ggml_type).
std::optional<DType> dtype_of(uint32_t type) {
  switch (type) {
    case 0:
      return DType::F32;
    case 1:
      return DType::F16;
    case 2:
      return DType::Q4_0;
    case 3:
      return DType::Q4_1;
    case 6:
      return DType::Q5_0;
    case 7:
      return DType::Q5_1;
    case 8:
      return DType::Q8_0;
    case 9:
      return DType::Q8_1;
    case 10:
      return DType::Q2_K;
    case 11:
      return DType::Q3_K;
    case 12:
      return DType::Q4_K;
    case 13:
      return DType::Q5_K;
    case 14:
      return DType::Q6_K;
    case 15:
      return DType::Q8_K;
    case 16:
      return DType::IQ2_XXS;
    case 17:
      return DType::IQ2_XS;
    case 18:
      return DType::IQ3_XXS;
    case 19:
      return DType::IQ1_S;
    case 20:
      return DType::IQ4_NL;
    case 21:
      return DType::IQ3_S;
    case 22:
      return DType::IQ2_S;
    case 23:
      return DType::IQ4_XS;
    case 24:
      return DType::I8;
    case 25:
      return DType::I16;
    case 26:
      return DType::I32;
    case 27:
      return DType::I64;
    case 28:
      return DType::F64;
    case 29:
      return DType::IQ1_M;
    case 30:
      return DType::BF16;
    case 34:
      return DType::TQ1_0;
    case 35:
      return DType::TQ2_0;
    case 39:
      return DType::MXFP4;
    default:
      return std::nullopt;
  }
}

// Bytes of a scalar; 0 for strings and arrays, nothing for a number that is no type.
std::optional<uint64_t> scalar_bytes(GgufType type) {
  switch (type) {
    case GgufType::U8:
    case GgufType::I8:
    case GgufType::BOOL:
      return 1;
    case GgufType::U16:
    case GgufType::I16:
      return 2;
    case GgufType::U32:
    case GgufType::I32:
    case GgufType::F32:
      return 4;
    case GgufType::U64:
    case GgufType::I64:
    case GgufType::F64:
      return 8;
    case GgufType::STRING:
    case GgufType::ARRAY:
      return 0;
  }
  return std::nullopt;
}

const char* type_name(GgufType type) {
  constexpr std::array kNames = {"uint8",  "int8",    "uint16",  "int16",  "uint32",
                                 "int32",  "float32", "boolean", "string", "array",
                                 "uint64", "int64",   "float64"};
  return kNames.at(static_cast<size_t>(type));
}

// Reads forward through the bytes; nothing is read or allowed for beyond their end.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& file) : bytes_(bytes), file_(file) {}

  size_t at() const { return at_; }
  uint64_t left() const { return bytes_.size() - at_; }
  void set_place(std::string place) { place_ = std::move(place); }

  template <typename... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw Error("{}: {}: {}", printable(file_), place_,
                fmt::format(format, std::forward<Args>(args)...));
  }

  std::span<const std::byte> take(uint64_t count) {
    if (count > left()) {
      fail(
          "{} bytes are announced at byte {}, but only {} follow; the file is cut short or damaged",
          count, at_, left());
    }
    const auto out = bytes_.subspan(at_, static_cast<size_t>(count));
    at_ += static_cast<size_t>(count);
    return out;
  }

  template <typename T>
  T number() {
    T out;
    std::memcpy(&out, take(sizeof out).data(), sizeof out);
    return out;
  }

  std::string_view text(size_t longest = std::numeric_limits<size_t>::max()) {
    const auto bytes = take(number<uint64_t>());
    if (bytes.size() > longest) {
      fail("a name of {} bytes; at most {} are read", bytes.size(), longest);
    }
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  GgufType type() {
    const auto type = static_cast<GgufType>(number<uint32_t>());
    if (!scalar_bytes(type)) fail("the value type {} is not known", static_cast<uint32_t>(type));
    return type;
  }

  // Fails unless `count` things of at least `least` bytes each can still follow.
  void check_count(uint64_t count, uint64_t least, const char* things) const {
    if (count > left() / least) {
      fail("{} {} are announced, but only {} bytes follow; the file is cut short or damaged", count,
           things, left());
    }
  }

  GgufValue value(GgufType type) {
    GgufValue out;
    out.type = type;
    if (type == GgufType::ARRAY) {
      out.element = this->type();
      out.count = number<uint64_t>();
      out.data = elements(out.element, out.count, 1);
    } else if (type == GgufType::STRING) {
      const std::string_view text = this->text();
      out.data = std::as_bytes(std::span(text.data(), text.size()));
    } else {
      out.data = take(*scalar_bytes(type));
    }
    check_booleans(type == GgufType::ARRAY ? out.element : type, out.data);
    return out;
  }

 private:
  // The bytes of `count` elements of an array, which is checked to its ends.
  std::span<const std::byte> elements(GgufType type, uint64_t count, int nesting) {
    if (const uint64_t size = *scalar_bytes(type); size > 0) {
      check_count(count, size, "array elements");
      return take(count * size);
    }
    const size_t begin = at_;
    if (count > kMaxListed) {  // they are walked through, which would take hours in a huge file
      fail("an array of {} {}s; at most {} are read", count, type_name(type), kMaxListed);
    }
    if (type == GgufType::STRING) {
      check_count(count, sizeof(uint64_t), "strings");
      for (uint64_t i = 0; i < count; ++i) text();
    } else {
      if (nesting >= kMaxArrayNesting) fail("arrays nested deeper than {}", kMaxArrayNesting);
      check_count(count, sizeof(uint32_t) + sizeof(uint64_t), "arrays");
      for (uint64_t i = 0; i < count; ++i) {
        const GgufType inner = this->type();
        const uint64_t inner_count = number<uint64_t>();
        check_booleans(inner, elements(inner, inner_count, nesting + 1));
      }
    }
    return bytes_.subspan(begin, at_ - begin);
  }

  void check_booleans(GgufType type, std::span<const std::byte> data) const {
    if (type != GgufType::BOOL) return;
    const auto bad =
        std::find_if(data.begin(), data.end(), [](std::byte b) { return b > std::byte{1}; });
    if (bad != data.end()) fail("a boolean must be 0 or 1, found {}", static_cast<int>(*bad));
  }

  std::span<const std::byte> bytes_;
  const std::string& file_;
  std::string place_ = "header";
  size_t at_ = 0;
};

void read_header(Cursor& cursor, GgufFile& file, uint64_t& tensors, uint64_t& values) {
  const auto magic = cursor.take(4);
  if (std::memcmp(magic.data(), "GGUF", 4) != 0) cursor.fail("is not a GGUF file");
  file.version = cursor.number<uint32_t>();
  if (file.version != 2 && file.version != 3) {
    if ((file.version & 0xFFFF) == 0 && file.version != 0) {
      cursor.fail(
          "big-endian GGUF files are not read; turn it round with gguf-py's gguf_convert_endian.py "
          "or convert the model again");
    }
    cursor.fail("GGUF version {} is not read, only 2 and 3; convert the model again", file.version);
  }
  tensors = cursor.number<uint64_t>();
  values = cursor.number<uint64_t>();
  // A name length, a number of dimensions, a type and an offset; a key length, a type and a byte.
  cursor.check_count(tensors, 8 + 4 + 4 + 8, "tensors");
  cursor.check_count(values, 8 + 4 + 1, "metadata values");
  if (tensors > kMaxTensors || values > kMaxValues) {
    cursor.fail("{} tensors and {} metadata values; at most {} and {} are read", tensors, values,
                kMaxTensors, kMaxValues);
  }
}

void read_values(Cursor& cursor, GgufFile& file, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    cursor.set_place(fmt::format("metadata value {}", i));
    const std::string_view key = cursor.text(kMaxKey);
    cursor.set_place(fmt::format("metadata '{}'", printable(key)));
    const GgufType type = cursor.type();
    if (!file.values.emplace(std::string(key), cursor.value(type)).second) {
      cursor.fail("the key stands twice");
    }
  }
}

std::vector<uint64_t> read_tensor_infos(Cursor& cursor, GgufFile& file, uint64_t count) {
  std::vector<uint64_t> offsets;
  for (uint64_t i = 0; i < count; ++i) {
    cursor.set_place(fmt::format("tensor {}", i));
    TensorInfo tensor;
    tensor.name = cursor.text(kMaxName);
    cursor.set_place(fmt::format("tensor '{}'", printable(tensor.name)));
    const auto dims = cursor.number<uint32_t>();
    if (dims > kMaxDims) cursor.fail("{} dimensions; at most {} are read", dims, kMaxDims);
    for (uint32_t d = 0; d < dims; ++d) {
      const auto size = cursor.number<uint64_t>();
      if (size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        cursor.fail("a dimension of {} is too large", size);
      }
      tensor.shape.push_back(static_cast<int64_t>(size));
    }
    std::reverse(tensor.shape.begin(), tensor.shape.end());
    const auto type = cursor.number<uint32_t>();
    const std::optional<DType> dtype = dtype_of(type);
    if (!dtype) cursor.fail("the tensor type {} is not known", type);
    tensor.dtype = *dtype;
    const DTypeInfo& info = dtype_info(tensor.dtype);
    const std::optional<int64_t> bytes = count_bytes(tensor.shape, tensor.dtype);
    if (!bytes) {
      cursor.fail(
          "the shape {} is too large, or its rows are not a multiple of the {} elements of a "
          "{} block",
          shape_text(tensor.shape), info.block, info.name);
    }
    tensor.bytes = static_cast<size_t>(*bytes);
    offsets.push_back(cursor.number<uint64_t>());
    if (!file.add(std::move(tensor))) cursor.fail("the name stands twice");
  }
  return offsets;
}

// Tensors follow each other in the data section, each padded to the alignment.
void place_tensors(GgufFile& file, const std::vector<uint64_t>& offsets,
                   std::span<const std::byte> data) {
  std::vector<size_t> order(offsets.size());
  std::iota(order.begin(), order.end(), size_t{0});
  // By bytes among equal offsets: empty tensors share theirs with the next.
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(offsets[a], file.tensors[a].bytes) <
           std::pair(offsets[b], file.tensors[b].bytes);
  });
  uint64_t at = 0;  // at most data.size() + alignment: cannot overflow
  for (const size_t i : order) {
    TensorInfo& tensor = file.tensors[i];
    const uint64_t offset = offsets[i];
    if (offset != at) {
      throw Error("{}: tensor '{}' begins at byte {} of the data, where {} is due: tensors {}",
                  printable(file.path), printable(tensor.name), offset, at,
                  offset < at ? "overlap or are not aligned" : "leave a gap");
    }
    if (offset > data.size() || tensor.bytes > data.size() - offset) {
      throw Error(
          "{}: tensor '{}' takes {} bytes from byte {} of the data, but the file holds {}; it has "
          "been cut short or is damaged, fetch it again",
          printable(file.path), printable(tensor.name), tensor.bytes, offset, data.size());
    }
    tensor.data = data.data() + offset;
    at = (offset + tensor.bytes + file.alignment - 1) / file.alignment * file.alignment;
  }
}

template <typename T>
T load(const std::byte* from) {
  T out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

// The integer at `from`, if `type` is an integer type and the value fits.
std::optional<int64_t> load_integer(GgufType type, const std::byte* from) {
  switch (type) {
    case GgufType::U8:
      return load<uint8_t>(from);
    case GgufType::I8:
      return load<int8_t>(from);
    case GgufType::U16:
      return load<uint16_t>(from);
    case GgufType::I16:
      return load<int16_t>(from);
    case GgufType::U32:
      return load<uint32_t>(from);
    case GgufType::I32:
      return load<int32_t>(from);
    case GgufType::I64:
      return load<int64_t>(from);
    case GgufType::U64: {
      const auto value = load<uint64_t>(from);
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

std::optional<double> load_real(GgufType type, const std::byte* from) {
  if (type == GgufType::F32) return load<float>(from);
  if (type == GgufType::F64) return load<double>(from);
  if (const auto integer = load_integer(type, from)) return static_cast<double>(*integer);
  return std::nullopt;
}

[[noreturn]] void wrong_type(const GgufFile& file, std::string_view key, const GgufValue& value,
                             const char* expected) {
  std::string found = type_name(value.type);
  if (value.type == GgufType::ARRAY) found += fmt::format(" of {}", type_name(value.element));
  throw Error("{}: metadata '{}' must be {}, found {}", printable(file.path), printable(key),
              expected, found);
}

void check_listed(const GgufFile& file, std::string_view key, const GgufValue& value) {
  if (value.count > kMaxListed) {
    throw Error("{}: metadata '{}' has {} elements; at most {} are read", printable(file.path),
                printable(key), value.count, kMaxListed);
  }
}

template <typename T, typename Load>
std::vector<T> list_of(const GgufFile& file, std::string_view key, const GgufValue& value,
                       const char* expected, Load load_element) {
  const uint64_t size = value.type == GgufType::ARRAY ? *scalar_bytes(value.element) : 0;
  if (size == 0) wrong_type(file, key, value, expected);
  check_listed(file, key, value);
  std::vector<T> out;
  out.reserve(value.count);
  for (uint64_t i = 0; i < value.count; ++i) {
    const auto element = load_element(value.element, value.data.data() + i * size);
    if (!element) wrong_type(file, key, value, expected);
    out.push_back(static_cast<T>(*element));
  }
  return out;
}

}  // namespace

const GgufValue& GgufFile::value(std::string_view key) const {
  const auto found = values.find(key);
  if (found == values.end()) {
    throw Error("{}: the metadata key '{}' is missing", printable(path), printable(key));
  }
  return found->second;
}

std::string GgufFile::string(std::string_view key) const {
  const GgufValue& found = value(key);
  if (found.type != GgufType::STRING) wrong_type(*this, key, found, "a string");
  return {reinterpret_cast<const char*>(found.data.data()), found.data.size()};
}

int64_t GgufFile::integer(std::string_view key) const {
  const GgufValue& found = value(key);
  const auto out = load_integer(found.type, found.data.data());
  if (!out) wrong_type(*this, key, found, "an integer below 2^63");
  return *out;
}

double GgufFile::real(std::string_view key) const {
  const GgufValue& found = value(key);
  const auto out = load_real(found.type, found.data.data());
  if (!out) wrong_type(*this, key, found, "a number");
  return *out;
}

bool GgufFile::boolean(std::string_view key) const {
  const GgufValue& found = value(key);
  if (found.type != GgufType::BOOL) wrong_type(*this, key, found, "a boolean");
  return found.data[0] != std::byte{0};
}

std::vector<std::string_view> GgufFile::strings(std::string_view key) const {
  const GgufValue& found = value(key);
  if (found.type != GgufType::ARRAY || found.element != GgufType::STRING) {
    wrong_type(*this, key, found, "an array of strings");
  }
  check_listed(*this, key, found);
  std::vector<std::string_view> out;
  out.reserve(found.count);
  Cursor cursor(found.data, path);
  for (uint64_t i = 0; i < found.count; ++i) out.push_back(cursor.text());
  return out;
}

std::vector<int64_t> GgufFile::integers(std::string_view key) const {
  return list_of<int64_t>(*this, key, value(key), "an array of integers below 2^63", load_integer);
}

std::vector<float> GgufFile::reals(std::string_view key) const {
  return list_of<float>(*this, key, value(key), "an array of numbers", load_real);
}

std::string GgufFile::string(std::string_view key, std::string_view fallback) const {
  return has(key) ? string(key) : std::string(fallback);
}

int64_t GgufFile::integer(std::string_view key, int64_t fallback) const {
  return has(key) ? integer(key) : fallback;
}

double GgufFile::real(std::string_view key, double fallback) const {
  return has(key) ? real(key) : fallback;
}

bool GgufFile::boolean(std::string_view key, bool fallback) const {
  return has(key) ? boolean(key) : fallback;
}

GgufFile parse_gguf(std::span<const std::byte> bytes, const std::string& name) {
  refuse_foreign(bytes, name);
  GgufFile file;
  file.path = name;
  Cursor cursor(bytes, name);
  uint64_t tensors = 0;
  uint64_t values = 0;
  read_header(cursor, file, tensors, values);
  read_values(cursor, file, values);
  cursor.set_place("metadata 'general.alignment'");
  if (file.has("general.alignment")) {
    const int64_t alignment = file.integer("general.alignment");
    if (alignment <= 0 || static_cast<uint64_t>(alignment) > kMaxAlignment ||
        !std::has_single_bit(static_cast<uint64_t>(alignment))) {
      cursor.fail("must be a power of two of at most {}, found {}", kMaxAlignment, alignment);
    }
    file.alignment = static_cast<uint64_t>(alignment);
  }
  const std::vector<uint64_t> offsets = read_tensor_infos(cursor, file, tensors);
  // A file without tensors may end before the padding.
  const uint64_t begin = (cursor.at() + file.alignment - 1) / file.alignment * file.alignment;
  place_tensors(file, offsets, bytes.subspan(std::min<uint64_t>(begin, bytes.size())));
  return file;
}

namespace {

GgufFile open_part(const std::string& path) {
  auto mapping = std::make_shared<const MappedFile>(path);
  GgufFile file = parse_gguf(mapping->bytes(), path);
  file.mappings.push_back(std::move(mapping));
  return file;
}

constexpr int64_t kMaxParts = 4096;

// Of NAME-00002-of-00005.gguf: what stands before and behind the part's number, the parts, and
// which this is, from 1.
struct PartName {
  std::string before, after;
  int64_t part = 0, parts = 0;
  std::string path(int64_t n) const { return fmt::format("{}{:05}{}", before, n, after); }
};
std::optional<PartName> part_name(const std::string& path) {
  constexpr size_t kDigits = 5;
  constexpr std::string_view kOf = "-of-";
  const auto number = [&](size_t at) -> int64_t {
    int64_t value = 0;
    for (size_t i = at; i < at + kDigits; ++i) {
      if (path[i] < '0' || path[i] > '9') return -1;
      value = 10 * value + (path[i] - '0');
    }
    return value;
  };
  const size_t of = path.rfind(kOf);
  const size_t slash = path.rfind('/');
  if (of == path.npos || of < kDigits + 1 || path[of - kDigits - 1] != '-' ||
      (slash != path.npos && of - kDigits - 1 < slash) || path.size() < of + kOf.size() + kDigits) {
    return std::nullopt;
  }
  PartName out{path.substr(0, of - kDigits), path.substr(of), number(of - kDigits),
               number(of + kOf.size())};
  if (out.part < 1 || out.parts < out.part || out.parts > kMaxParts) return std::nullopt;
  return out;
}

// The name that tells where the other parts lie: the path's own or, where that is a link of another
// name, that of the file it leads to.
PartName need_part_name(const std::string& path, int64_t parts) {
  if (const auto name = part_name(path)) return *name;
  std::error_code ignored;
  const auto target = std::filesystem::canonical(path, ignored);
  if (const auto name = part_name(target.string())) return *name;
  throw Error(
      "{}: is one of {} files of a model, but is not named so that the others can be found; name "
      "them NAME-00001-of-{:05}.gguf and so on",
      printable(path), parts, parts);
}

// What a part says about itself: split.no (from 0), split.count and split.tensors.count.
void check_part(const GgufFile& part, const GgufFile& first, int64_t no, int64_t parts) {
  const int64_t count = part.integer("split.count", 0);
  if (count != parts) {
    throw Error("{}: says that it is one of {} files (split.count), its name says one of {}",
                printable(part.path), count, parts);
  }
  if (const int64_t own = part.integer("split.no"); own != no) {
    throw Error("{}: is file {} of the model by what it says (split.no is {}), {} by its name",
                printable(part.path), own + 1, own, no + 1);
  }
  for (const auto& [key, value] : part.values) {
    const auto other = first.values.find(key);
    if (key == "split.no" || other == first.values.end()) continue;
    const GgufValue& one = other->second;
    if (one.type != value.type ||
        !std::equal(one.data.begin(), one.data.end(), value.data.begin(), value.data.end())) {
      throw Error("{}: its metadata '{}' differs from that of {}; they are parts of two models",
                  printable(part.path), printable(key), printable(first.path));
    }
  }
}

GgufFile open_parts(const PartName& name, int64_t parts) {
  std::vector<std::string> missing;
  for (int64_t n = 1; n <= parts; ++n) {
    std::error_code ignored;
    const std::filesystem::path path = name.path(n);
    if (!std::filesystem::exists(path, ignored)) missing.push_back(path.filename().string());
  }
  if (!missing.empty()) {
    throw Error("{}: {} of the model's {} files are missing ({}); fetch them too",
                printable(name.path(name.part)), missing.size(), parts, name_some(missing));
  }
  GgufFile out = open_part(name.path(1));
  check_part(out, out, 0, parts);
  for (int64_t n = 2; n <= parts; ++n) {
    GgufFile part = open_part(name.path(n));
    check_part(part, out, n - 1, parts);
    for (TensorInfo& tensor : part.tensors) {
      const std::string tensor_name = tensor.name;
      if (!out.add(std::move(tensor))) {
        throw Error("{}: tensor '{}' stands in an earlier file of the model too",
                    printable(part.path), printable(tensor_name));
      }
    }
    out.mappings.insert(out.mappings.end(), part.mappings.begin(), part.mappings.end());
  }
  const auto tensors = static_cast<int64_t>(out.tensors.size());
  if (const int64_t said = out.integer("split.tensors.count", tensors); said != tensors) {
    throw Error("{}: the model's {} files hold {} tensors, split.tensors.count says {}",
                printable(out.path), parts, tensors, said);
  }
  return out;
}

}  // namespace

GgufFile open_gguf(const std::string& path) {
  GgufFile file = open_part(path);
  const int64_t parts = file.integer("split.count", 0);
  if (parts == 0 || parts == 1) return file;
  if (parts < 0 || parts > kMaxParts) {
    throw Error("{}: 'split.count' is {}; models of at most {} files are read", printable(path),
                parts, kMaxParts);
  }
  const PartName name = need_part_name(path, parts);
  if (name.parts != parts) {
    throw Error("{}: says that it is one of {} files (split.count), its name says one of {}",
                printable(path), parts, name.parts);
  }
  return open_parts(name, parts);
}

}  // namespace heed
