#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "io/describe.h"
#include "io/error.h"
#include "io/file_kind.h"
#include "io/json.h"

namespace heed {
namespace {

static_assert(std::endian::native == std::endian::little, "files are read in place");

struct NamedType {
  std::string_view name;
  DType dtype;
};
constexpr std::array kTypes = {
    NamedType{"F64", DType::F64},
    NamedType{"F32", DType::F32},
    NamedType{"F16", DType::F16},
    NamedType{"BF16", DType::BF16},
    NamedType{"F8_E4M3", DType::F8_E4M3},
    NamedType{"F8_E5M2", DType::F8_E5M2},
    NamedType{"I64", DType::I64},
    NamedType{"I32", DType::I32},
    NamedType{"I16", DType::I16},
    NamedType{"I8", DType::I8},
    NamedType{"U64", DType::U64},
    NamedType{"U32", DType::U32},
    NamedType{"U16", DType::U16},
    NamedType{"U8", DType::U8},
    NamedType{"BOOL", DType::BOOL},
    NamedType{"F8_E8M0", DType::F8_E8M0},
    NamedType{"F8_E4M3FNUZ", DType::F8_E4M3FNUZ},
    NamedType{"F8_E5M2FNUZ", DType::F8_E5M2FNUZ},
    NamedType{"C64", DType::C64},
    NamedType{"F4", DType::F4},
    NamedType{"F6_E2M3", DType::F6_E2M3},
    NamedType{"F6_E3M2", DType::F6_E3M2},
};

struct Range {
  uint64_t begin = 0;
  uint64_t end = 0;
};

// Takes the header's JSON apart as it is read, without building a tree: a header of the greatest
// length costs no more than the tensors it names. What the reference implementation (the crate
// safetensors 0.8, by serde) reads is read here too: `"__metadata__": null`, further fields of an
// entry with any value, an entry as the list [dtype, shape, data_offsets], and, of names that stand
// twice, the last.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  HeaderReader(TensorFile& out, std::vector<Range>& ranges) : out_(out), ranges_(ranges) {}

  bool null() override {
    if (skips()) return true;
    if (depth_ != 1 || entry_ != kMetadata) unexpected("null");
    begin_metadata();
    return true;
  }
  bool boolean(bool) override {
    if (skips()) return true;
    unexpected("true or false");
  }
  bool number_integer(number_integer_t) override {
    if (skips()) return true;
    if (list_ == nullptr) unexpected("a number");
    fail("a negative number in '{}'", field_);
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (skips()) return true;
    if (list_ == nullptr) unexpected("a number");
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      fail("{} in '{}' is too large", value, field_);
    }
    list_->push_back(static_cast<int64_t>(value));
    return true;
  }
  bool number_float(number_float_t, const string_t& text) override {
    if (skips()) return true;
    if (list_ == nullptr) unexpected("a number");
    fail("{} in '{}' is not an integer below 2^63", printable(text, 40), field_);
  }
  bool binary(binary_t&) override { return false; }

  bool string(string_t& value) override {
    if (skips()) return true;
    if (depth_ != 2 || list_ != nullptr) unexpected("a string");
    if (in_metadata_) {
      out_.metadata[field_] = std::move(value);
      return true;
    }
    if (field_ != "dtype") unexpected("a string");
    const auto found = std::find_if(kTypes.begin(), kTypes.end(),
                                    [&](const NamedType& type) { return type.name == value; });
    if (found == kTypes.end()) fail("the dtype '{}' is not known", printable(value, 40));
    dtype_ = found->dtype;
    return true;
  }

  bool key(string_t& name) override {
    if (skipped_ > 0) return true;
    if (depth_ == 1) {
      entry_ = std::move(name);
      return true;
    }
    field_ = std::move(name);
    if (!in_metadata_) begin_field();
    return true;
  }

  bool start_object(std::size_t) override {
    if (skips()) return open_skipped();
    if (depth_ == 2) unexpected("an object");
    if (++depth_ == 2) begin_entry(false);
    return true;
  }

  bool end_object() override {
    if (skipped_ > 0) return close_skipped();
    unknown_ = false;
    if (depth_-- == 2 && !in_metadata_) finish_tensor();
    return true;
  }

  bool start_array(std::size_t) override {
    if (skips()) return open_skipped();
    if (depth_ == 1 && entry_ != kMetadata) {
      ++depth_;
      begin_entry(true);
      return true;
    }
    if (depth_ != 2 || in_metadata_ || list_ != nullptr || field_ == "dtype") {
      unexpected("an array");
    }
    list_ = field_ == "shape" ? &shape_ : &offsets_;
    return true;
  }

  bool end_array() override {
    if (skipped_ > 0) return close_skipped();
    if (list_ == nullptr) {  // an entry that is a list
      --depth_;
      finish_tensor();
    }
    list_ = nullptr;
    return true;
  }

  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::detail::exception& error) override {
    throw Error("{}: the header is not valid JSON: {}", printable(out_.path),
                json_error_text(error));
  }

 private:
  static constexpr std::string_view kMetadata = "__metadata__";
  static constexpr std::array<const char*, 3> kFields = {"dtype", "shape", "data_offsets"};
  static constexpr int kDeepest = 127;  // as serde_json

  template <typename... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
    throw Error("{}: header, entry '{}': {}", printable(out_.path), printable(entry_),
                fmt::format(format, std::forward<Args>(args)...));
  }

  [[noreturn]] void unexpected(const char* what) {
    if (depth_ == 0) {
      throw Error("{}: the header must be a JSON object, found {}", printable(out_.path), what);
    }
    if (depth_ == 1) fail("must be an object, found {}", what);
    fail("'{}' cannot be {}", printable(field_), what);
  }

  // Whether the value that begins belongs to a field that nobody asks for. In an entry that is a
  // list, the fields get their names here.
  bool skips() {
    if (skipped_ > 0 || unknown_) return true;
    if (depth_ == 2 && as_list_ && list_ == nullptr) {
      if (place_ == kFields.size()) fail("a list of dtype, shape and data_offsets goes on");
      field_ = kFields[place_++];
      begin_field();
    }
    return false;
  }

  bool open_skipped() {
    if (depth_ + ++skipped_ > kDeepest) fail("'{}' is nested too deep", printable(field_));
    return true;
  }

  bool close_skipped() {
    --skipped_;
    return true;
  }

  void begin_metadata() {
    if (std::exchange(seen_metadata_, true)) fail("stands twice");
  }

  void begin_entry(bool as_list) {
    in_metadata_ = entry_ == kMetadata;
    if (in_metadata_) begin_metadata();
    as_list_ = as_list;
    place_ = 0;
    seen_ = {};
    shape_.clear();
    offsets_.clear();
  }

  void begin_field() {
    const auto found = std::find(kFields.begin(), kFields.end(), field_);
    unknown_ = found == kFields.end();
    if (unknown_) return;
    if (std::exchange(seen_[static_cast<size_t>(found - kFields.begin())], true)) {
      fail("the key '{}' stands twice", field_);
    }
  }

  // Bytes of the tensor; types of less than a byte need whole bytes in all, not in each row.
  std::optional<int64_t> bytes() {
    const DTypeInfo& info = dtype_info(dtype_);
    if (info.block == 1) return count_bytes(shape_, dtype_);
    const std::optional<int64_t> elements = count_elements(shape_);
    if (!elements || !count_bytes(shape_, DType::U8)) return std::nullopt;
    if (*elements % info.block != 0) {
      fail("{} of shape {} does not fill whole bytes", info.name, printable(shape_text(shape_)));
    }
    return *elements / info.block * info.bytes;
  }

  void finish_tensor() {
    for (size_t i = 0; i < kFields.size(); ++i) {
      if (!seen_[i]) fail("'{}' is missing", kFields[i]);
    }
    if (offsets_.size() != 2) fail("'data_offsets' must hold two numbers");
    const Range range{static_cast<uint64_t>(offsets_[0]), static_cast<uint64_t>(offsets_[1])};
    if (range.begin > range.end)
      fail("data_offsets {} end before they begin", shape_text(offsets_));
    const std::optional<int64_t> bytes = this->bytes();
    if (!bytes) fail("the shape {} is too large", printable(shape_text(shape_)));
    if (static_cast<uint64_t>(*bytes) != range.end - range.begin) {
      fail("{} of shape {} takes {} bytes, but data_offsets {} hold {}", dtype_name(dtype_),
           printable(shape_text(shape_)), *bytes, shape_text(offsets_), range.end - range.begin);
    }
    TensorInfo tensor;
    tensor.name = entry_;
    tensor.dtype = dtype_;
    tensor.shape = shape_;
    tensor.bytes = static_cast<size_t>(*bytes);
    if (const TensorInfo* earlier = out_.find(entry_)) {
      const auto index = static_cast<size_t>(earlier - out_.tensors.data());
      out_.tensors[index] = std::move(tensor);
      ranges_[index] = range;
      return;
    }
    out_.add(std::move(tensor));
    ranges_.push_back(range);
  }

  TensorFile& out_;
  std::vector<Range>& ranges_;  // like out_.tensors
  int depth_ = 0;               // 1 in the header's object, 2 in an entry
  int skipped_ = 0;             // open objects and arrays of a field that nobody asks for
  bool unknown_ = false;        // the field is one of those
  std::string entry_;
  std::string field_;
  std::vector<int64_t>* list_ = nullptr;  // the array being read
  bool as_list_ = false;                  // the entry is a list; its next field is kFields[place_]
  size_t place_ = 0;
  bool in_metadata_ = false;
  bool seen_metadata_ = false;
  std::array<bool, 3> seen_ = {};  // like kFields
  DType dtype_ = DType::F32;
  std::vector<int64_t> shape_;
  std::vector<int64_t> offsets_;
};

// The tensors must cover [0, size) exactly once.
void check_cover(const TensorFile& file, const std::vector<Range>& ranges, uint64_t size) {
  std::vector<size_t> order(ranges.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(ranges[a].begin, ranges[a].end) < std::pair(ranges[b].begin, ranges[b].end);
  });
  uint64_t at = 0;
  for (const size_t i : order) {
    const Range& range = ranges[i];
    const std::string name = printable(file.tensors[i].name);
    if (range.begin != at) {
      throw Error("{}: tensor '{}' begins at byte {} of the data, {} byte {}", printable(file.path),
                  name, range.begin,
                  range.begin < at ? "inside another tensor that ends at"
                                   : "leaving a gap after the one that ends at",
                  at);
    }
    if (range.end > size) {
      throw Error(
          "{}: tensor '{}' ends at byte {} of the data, but the file holds {}; it has been cut "
          "short or is damaged, fetch it again",
          printable(file.path), name, range.end, size);
    }
    at = range.end;
  }
  if (at != size) {
    throw Error("{}: {} bytes follow the last tensor; the file is damaged, fetch it again",
                printable(file.path), size - at);
  }
}

TensorFile open_shards(const std::string& folder, const std::string& index_path) {
  const Json index = read_json(index_path);
  const Json& map = get_object(index, "weight_map", index_path);
  std::set<std::string> names;
  for (const auto& [name, value] : map.items()) {
    const std::string shard = as_string(value, name, index_path);
    if (shard.empty() || shard == ".." || shard.find('/') != shard.npos ||
        shard.find('\0') != shard.npos) {
      throw Error("{}: '{}' names the file '{}'; a plain file name in the same folder is needed",
                  printable(index_path), printable(name), printable(shard));
    }
    names.insert(shard);
  }
  std::vector<std::string> missing;
  for (const std::string& shard : names) {
    std::error_code ignored;
    if (!std::filesystem::exists(folder + "/" + shard, ignored)) missing.push_back(shard);
  }
  if (!missing.empty()) {
    throw Error("{}: {} of the {} files that it names are missing ({}); fetch them too",
                printable(index_path), missing.size(), names.size(), name_some(missing));
  }
  TensorFile out;
  out.path = folder;
  std::map<std::string, TensorFile> shards;
  for (const std::string& shard : names) {
    const TensorFile& file =
        shards.emplace(shard, open_safetensors(folder + "/" + shard)).first->second;
    out.mappings.insert(out.mappings.end(), file.mappings.begin(), file.mappings.end());
    out.metadata.insert(file.metadata.begin(), file.metadata.end());
  }
  for (const auto& [name, value] : map.items()) {
    out.add(shards.at(value.get<std::string>()).get(name));
  }
  return out;
}

// What a folder without safetensors holds in their place, as a clause; "" if nothing known.
std::string other_weights(const std::string& folder) {
  std::vector<std::string> found;
  std::error_code ignored;
  bool adapter = false;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    const std::string end = entry.path().extension().string();
    adapter |= name == "adapter_config.json";
    for (const char* known : {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx",
                              ".ckpt", ".gguf", ".tflite"}) {
      if (end == known) found.push_back(name);
    }
  }
  if (adapter) {
    return "; it is an adapter (LoRA): merge it into its model (`merge_and_unload` of peft) and "
           "save that";
  }
  if (found.empty()) return "";
  std::sort(found.begin(), found.end());
  return fmt::format(
      "; of weights it holds {}: save them as safetensors (`save_pretrained` of "
      "transformers does)",
      name_some(found));
}

}  // namespace

TensorFile parse_safetensors(std::span<const std::byte> bytes, const std::string& name) {
  TensorFile out;
  out.path = name;
  refuse_foreign(bytes, name);
  uint64_t length = 0;
  if (bytes.size() < sizeof length) {
    throw Error("{}: {} bytes are too few for a safetensors file", printable(name), bytes.size());
  }
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length > kMaxSafetensorsHeader) {
    throw Error(
        "{}: a header of {} bytes is announced, at most {} are read; not a safetensors file?",
        printable(name), length, kMaxSafetensorsHeader);
  }
  const uint64_t rest = bytes.size() - sizeof length;
  if (length > rest) {
    throw Error("{}: a header of {} bytes is announced, but only {} follow; the file is cut short",
                printable(name), length, rest);
  }
  const char* header = reinterpret_cast<const char*>(bytes.data()) + sizeof length;
  std::vector<Range> ranges;
  HeaderReader reader(out, ranges);
  scan_json({header, static_cast<size_t>(length)}, name, reader);
  check_cover(out, ranges, rest - length);
  const std::byte* data = bytes.data() + sizeof length + length;
  for (size_t i = 0; i < ranges.size(); ++i) out.tensors[i].data = data + ranges[i].begin;
  return out;
}

TensorFile open_safetensors(const std::string& path) {
  auto mapping = std::make_shared<const MappedFile>(path);
  TensorFile out = parse_safetensors(mapping->bytes(), path);
  out.mappings.push_back(std::move(mapping));
  return out;
}

TensorFile open_safetensors_folder(const std::string& folder) {
  const std::string single = folder + "/model.safetensors";
  const std::string index = folder + "/model.safetensors.index.json";
  std::error_code ignored;
  if (std::filesystem::exists(single, ignored)) return open_safetensors(single);
  if (std::filesystem::exists(index, ignored)) return open_shards(folder, index);
  for (const std::string& link : {single, index}) {
    if (std::filesystem::is_symlink(link, ignored)) {
      throw Error("{}: is a link to a file that is not there; fetch the model again",
                  printable(link));
    }
  }
  const std::string others = other_weights(folder);
  throw Error("{}: holds neither model.safetensors nor model.safetensors.index.json{}",
              printable(folder), others.empty() ? "; give the folder of a model" : others);
}

SafetensorsWriter::SafetensorsWriter(std::string path, std::vector<TensorSpec> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : tensors_(std::move(tensors)), slots_(tensors_.size()), file_(std::move(path)) {
  const auto element_bytes = [&](size_t i) { return dtype_info(tensors_[i].dtype).bytes; };
  std::vector<size_t> order(tensors_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return element_bytes(a) > element_bytes(b); });
  uint64_t at = 0;
  for (const size_t i : order) {
    const TensorSpec& tensor = tensors_[i];
    const std::optional<int64_t> bytes = count_bytes(tensor.shape, tensor.dtype);
    if (is_quantised(tensor.dtype) || !bytes) {
      throw Error("{}: tensor '{}' ({} {}) cannot be stored as safetensors",
                  printable(file_.path()), printable(tensor.name), dtype_name(tensor.dtype),
                  shape_text(tensor.shape));
    }
    if (tensor.name == "__metadata__" || !index_.emplace(tensor.name, i).second) {
      throw Error("{}: a tensor named '{}' cannot be written: the name is taken",
                  printable(file_.path()), printable(tensor.name));
    }
    slots_[i] = {at, static_cast<uint64_t>(*bytes), 0};
    at += slots_[i].bytes;
  }

  // Put together by hand: a Json object would sort the names.
  std::string header = "{";
  if (!metadata.empty()) header += "\"__metadata__\":" + canonical_json(Json(metadata));
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TensorSpec& tensor = tensors_[i];
    const Json entry = {{"dtype", dtype_name(tensor.dtype)},
                        {"shape", tensor.shape},
                        {"data_offsets", {slots_[i].begin, slots_[i].begin + slots_[i].bytes}}};
    if (header.size() > 1) header += ",";
    header += canonical_json(Json(tensor.name)) + ":" + canonical_json(entry);
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t length = header.size();
  if (length > kMaxSafetensorsHeader) {
    throw Error("{}: a header of {} bytes is longer than the format allows",
                printable(file_.path()), length);
  }
  file_.write_at(0, &length, sizeof length);
  file_.write_at(sizeof length, header.data(), header.size());
  for (Slot& slot : slots_) slot.begin += sizeof length + length;
}

void SafetensorsWriter::write(std::string_view name, const void* data, size_t bytes) {
  const auto found = index_.find(name);
  if (found == index_.end()) {
    throw Error("{}: tensor '{}' was not announced", printable(file_.path()), printable(name));
  }
  Slot& slot = slots_[found->second];
  if (bytes > slot.bytes - slot.written) {
    throw Error("{}: tensor '{}' takes {} bytes, but {} were given", printable(file_.path()),
                printable(name), slot.bytes, slot.written + bytes);
  }
  file_.write_at(slot.begin + slot.written, data, bytes);
  slot.written += bytes;
}

void SafetensorsWriter::finish() {
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].written != slots_[i].bytes) {
      throw Error("{}: tensor '{}' takes {} bytes, but {} were given", printable(file_.path()),
                  printable(tensors_[i].name), slots_[i].bytes, slots_[i].written);
    }
  }
  file_.commit();
}

void write_safetensors(const std::string& path, const std::vector<TensorInfo>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<TensorSpec> specs;
  specs.reserve(tensors.size());
  for (const TensorInfo& tensor : tensors) {
    specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  SafetensorsWriter writer(path, std::move(specs), metadata);
  for (const TensorInfo& tensor : tensors) writer.write(tensor.name, tensor.data, tensor.bytes);
  writer.finish();
}

}  // namespace heed
