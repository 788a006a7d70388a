// See gguf_writer.h.
#include "io/gguf_writer.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "io/describe.h"
#include "io/error.h"

namespace heed {
namespace {

constexpr uint64_t kGgufAlignment = 32;

template <typename T>
void append(std::string& to, T value) {
  char bytes[sizeof value];  // little-endian, as every machine that Heed runs on
  std::memcpy(bytes, &value, sizeof value);
  to.append(bytes, sizeof value);
}

void append_text(std::string& to, std::string_view text) {
  append<uint64_t>(to, text.size());
  to.append(text);
}

std::string typed(GgufType type) {
  std::string out;
  append(out, static_cast<uint32_t>(type));
  return out;
}

std::string array_of(GgufType element, uint64_t count) {
  std::string out = typed(GgufType::ARRAY);
  append(out, static_cast<uint32_t>(element));
  append(out, count);
  return out;
}

// ggml's numbers of the types that are written (enum ggml_type).
uint32_t ggml_type(DType dtype, const std::string& name) {
  static const std::map<DType, uint32_t> numbers = {
      {DType::F32, 0},     {DType::F16, 1},   {DType::Q4_0, 2},  {DType::Q4_1, 3},
      {DType::Q5_0, 6},    {DType::Q5_1, 7},  {DType::Q8_0, 8},  {DType::Q2_K, 10},
      {DType::Q3_K, 11},   {DType::Q4_K, 12}, {DType::Q5_K, 13}, {DType::Q6_K, 14},
      {DType::IQ4_NL, 20}, {DType::I8, 24},   {DType::I16, 25},  {DType::I32, 26},
      {DType::I64, 27},    {DType::F64, 28},  {DType::BF16, 30}};
  const auto it = numbers.find(dtype);
  if (it == numbers.end()) {
    throw Error("tensor '{}': {} is not written to GGUF", printable(name), dtype_name(dtype));
  }
  return it->second;
}

uint64_t aligned(uint64_t offset) {
  return (offset + kGgufAlignment - 1) / kGgufAlignment * kGgufAlignment;
}

}  // namespace

void GgufMetadata::put(const std::string& key, std::string value) {
  const auto [place, fresh] = places_.emplace(key, entries_.size());
  if (fresh) entries_.push_back({key, {}});
  entries_[place->second].value = std::move(value);
}

void GgufMetadata::string(const std::string& key, std::string_view value) {
  std::string out = typed(GgufType::STRING);
  append_text(out, value);
  put(key, std::move(out));
}

void GgufMetadata::integer(const std::string& key, uint32_t value) {
  std::string out = typed(GgufType::U32);
  append(out, value);
  put(key, std::move(out));
}

void GgufMetadata::real(const std::string& key, float value) {
  std::string out = typed(GgufType::F32);
  append(out, value);
  put(key, std::move(out));
}

void GgufMetadata::boolean(const std::string& key, bool value) {
  std::string out = typed(GgufType::BOOL);
  append<uint8_t>(out, value ? 1 : 0);
  put(key, std::move(out));
}

void GgufMetadata::strings(const std::string& key, const std::vector<std::string>& values) {
  std::string out = array_of(GgufType::STRING, values.size());
  for (const std::string& value : values) append_text(out, value);
  put(key, std::move(out));
}

void GgufMetadata::integers(const std::string& key, const std::vector<int32_t>& values) {
  std::string out = array_of(GgufType::I32, values.size());
  for (const int32_t value : values) append(out, value);
  put(key, std::move(out));
}

void GgufMetadata::reals(const std::string& key, const std::vector<float>& values) {
  std::string out = array_of(GgufType::F32, values.size());
  for (const float value : values) append(out, value);
  put(key, std::move(out));
}

void GgufMetadata::copy(const std::string& key, const GgufValue& value) {
  std::string out =
      value.type == GgufType::ARRAY ? array_of(value.element, value.count) : typed(value.type);
  if (value.type == GgufType::STRING) append<uint64_t>(out, value.data.size());
  out.append(reinterpret_cast<const char*>(value.data.data()), value.data.size());
  put(key, std::move(out));
}

std::string GgufMetadata::bytes() const {
  std::string out;
  for (const Entry& entry : entries_) {
    append_text(out, entry.key);
    out += entry.value;
  }
  return out;
}

GgufWriter::GgufWriter(const std::string& path, const GgufMetadata& metadata,
                       std::vector<TensorSpec> tensors)
    : tensors_(std::move(tensors)), file_(path) {
  std::string header = "GGUF";
  append<uint32_t>(header, 3);
  append<uint64_t>(header, tensors_.size());
  append<uint64_t>(header, metadata.size());
  header += metadata.bytes();
  std::set<std::string_view> names;
  uint64_t offset = 0;
  for (const TensorSpec& t : tensors_) {
    const auto bytes = count_bytes(t.shape, t.dtype);
    if (!bytes) {
      throw Error("tensor '{}' {}: rows are not whole blocks of {}", printable(t.name),
                  shape_text(t.shape), dtype_name(t.dtype));
    }
    if (!names.insert(t.name).second) throw Error("tensor '{}' stands twice", printable(t.name));
    append_text(header, t.name);
    append(header, static_cast<uint32_t>(t.shape.size()));
    for (auto size = t.shape.rbegin(); size != t.shape.rend(); ++size) {
      append(header, static_cast<uint64_t>(*size));
    }
    append(header, ggml_type(t.dtype, t.name));
    append(header, offset);
    sizes_.push_back(static_cast<uint64_t>(*bytes));
    offset = aligned(offset + sizes_.back());
  }
  header.resize(aligned(header.size()));
  file_.write(header.data(), header.size());
  skip_written();
}

// Pads behind what is whole and goes on to the next tensor that has bytes.
void GgufWriter::skip_written() {
  while (current_ < tensors_.size() && written_ == sizes_[current_]) {
    const std::string zeros(aligned(written_) - written_, '\0');
    file_.write(zeros.data(), zeros.size());
    ++current_;
    written_ = 0;
  }
}

void GgufWriter::write(std::string_view name, const void* data, size_t bytes) {
  if (current_ == tensors_.size() || tensors_[current_].name != name ||
      written_ + bytes > sizes_[current_]) {
    throw Error("{}: {} bytes of tensor '{}' are out of turn", file_.path(), bytes,
                printable(std::string(name)));
  }
  file_.write(data, bytes);
  written_ += bytes;
  skip_written();
}

void GgufWriter::finish() {
  if (current_ != tensors_.size()) {
    throw Error("{}: tensor '{}' was not written", file_.path(),
                printable(tensors_[current_].name));
  }
  file_.commit();
}

}  // namespace heed
