#include "io/file_kind.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string_view>

#include "io/describe.h"
#include "io/error.h"

namespace heed {
namespace {

using std::string_view_literals::operator""sv;

constexpr size_t kLooked = 512;  // bytes that suffice for every kind

constexpr const char* kToSafetensors =
    "save it as safetensors (`save_pretrained` of transformers does) or convert it to GGUF";

struct Magic {
  size_t at;
  std::string_view bytes;
  FileKind kind;
  const char* what;
};

// Ordered: the first that fits counts.
constexpr std::array kMagics = {
    Magic{0, "GGUF"sv, FileKind::kGguf, ""},
    Magic{0, "version https://git-lfs.github.com/spec/"sv, FileKind::kPointer,
          "is a pointer of git-lfs, not the file itself; fetch it with `git lfs pull`"},
    Magic{0, "version https://hawser.github.com/spec/"sv, FileKind::kPointer,
          "is a pointer of git-lfs, not the file itself; fetch it with `git lfs pull`"},
    Magic{0, "\x1F\x8B"sv, FileKind::kCompressed,
          "is compressed with gzip; unpack it first (gunzip)"},
    Magic{0, "\xFD\x37zXZ\0"sv, FileKind::kCompressed,
          "is compressed with xz; unpack it first (unxz)"},
    Magic{0, "\x28\xB5\x2F\xFD"sv, FileKind::kCompressed,
          "is compressed with zstd; unpack it first (unzstd)"},
    Magic{4, "1AY&SY"sv, FileKind::kCompressed,
          "is compressed with bzip2; unpack it first (bunzip2)"},
    Magic{0, "\x04\x22\x4D\x18"sv, FileKind::kCompressed,
          "is compressed with lz4; unpack it first (unlz4)"},
    Magic{0, "7z\xBC\xAF\x27\x1C"sv, FileKind::kCompressed,
          "is a 7z archive; unpack it first (7z x)"},
    Magic{0, "Rar!\x1A\x07"sv, FileKind::kCompressed, "is a RAR archive; unpack it first"},
    Magic{257, "ustar"sv, FileKind::kCompressed, "is a tar archive; unpack it first (tar xf)"},
    Magic{0, "lmgg"sv, FileKind::kForeign,
          "is of GGML's oldest format, which nothing reads any more; convert the original model to "
          "GGUF"},
    Magic{0, "fmgg"sv, FileKind::kForeign,
          "is of the format GGMF from before GGUF; convert the original model to GGUF"},
    Magic{0, "tjgg"sv, FileKind::kForeign,
          "is of the format GGJT from before GGUF; convert the original model to GGUF"},
    Magic{0, "algg"sv, FileKind::kForeign,
          "is a LoRA adapter of the format GGLA; merge it into its model and convert that to GGUF"},
    Magic{0, "24ka"sv, FileKind::kForeign,
          "is one of llama2.c's newer exports; export it with --version 0"},
    Magic{0, "\x89HDF\r\n\x1A\n"sv, FileKind::kForeign,
          "is an HDF5 file (Keras or TensorFlow); save the model as safetensors"},
    Magic{0, "\x93NUMPY"sv, FileKind::kForeign,
          "is a NumPy array; save it with safetensors.numpy.save_file"},
    Magic{4, "TFL3"sv, FileKind::kForeign, "is a TensorFlow Lite model, which Heed does not read"},
    Magic{0,
          "\x7F"
          "ELF"sv,
          FileKind::kForeign, "is a program or library"},
};

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), std::min(bytes.size(), kLooked)};
}

bool begins(std::string_view text, size_t at, std::string_view magic) {
  return text.size() >= at + magic.size() && text.substr(at, magic.size()) == magic;
}

// Zip archives by the name of their first entry: PyTorch's begin with FOLDER/data.pkl.
std::string describe_zip(std::string_view text) {
  constexpr size_t kName = 30;  // where the name stands; its length stands at 26
  std::string_view name;
  if (text.size() > kName) {
    const size_t length = static_cast<unsigned char>(text[26]) +
                          static_cast<size_t>(static_cast<unsigned char>(text[27])) * 256;
    name = text.substr(kName, length);
  }
  if (name.ends_with("data.pkl") || name.ends_with(".format_version")) {
    return fmt::format("is a PyTorch checkpoint (pickled, in a zip archive); {}", kToSafetensors);
  }
  if (name.ends_with(".npy")) {
    return "is a NumPy archive; save its arrays with safetensors.numpy.save_file";
  }
  return "is a zip archive; unpack it first (unzip)";
}

// A pickle of protocol 2 to 5 begins with its number, and goes on with a frame, a number or a
// container.
bool is_pickle(std::string_view text) {
  return text.size() >= 3 && text[0] == '\x80' && text[1] >= 2 && text[1] <= 5 &&
         "\x95\x8A(}]\x8C"sv.find(text[2]) != text.npos;
}

// ONNX is a protobuf message: field 1, the version of the format, then field 2, who wrote it.
bool is_onnx(std::string_view text) {
  if (text.size() < 8 || text[0] != 8 || text[1] < 1 || text[1] > 30 || text[2] != 0x12) {
    return false;
  }
  const auto length = static_cast<unsigned char>(text[3]);
  if (length == 0 || length > 64 || text.size() < 4u + length) return false;
  return std::all_of(text.begin() + 4, text.begin() + 4 + length,
                     [](char c) { return c >= ' ' && c <= '~'; });
}

bool is_web_page(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == text.npos || text[first] != '<') return false;
  std::string word(text.substr(first, 14));
  for (char& c : word) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return word.starts_with("<!doctype html") || word.starts_with("<html");
}

}  // namespace

FileFacts file_facts(std::span<const std::byte> bytes) {
  const std::string_view text = text_of(bytes);
  if (text.empty()) return {FileKind::kEmpty, "is empty; fetch it again"};
  for (const Magic& magic : kMagics) {
    if (begins(text, magic.at, magic.bytes)) return {magic.kind, magic.what};
  }
  if (begins(text, 0, "PK\x03\x04")) {
    const std::string what = describe_zip(text);
    return {what.starts_with("is a zip") ? FileKind::kCompressed : FileKind::kForeign, what};
  }
  if (is_pickle(text)) {
    return {FileKind::kForeign,
            fmt::format("is pickled, as PyTorch's older checkpoints are; {}", kToSafetensors)};
  }
  if (is_onnx(text)) {
    return {FileKind::kForeign,
            "is an ONNX model, which Heed does not read; take the model that it was exported from"};
  }
  if (is_web_page(text)) {
    return {FileKind::kWebPage, "is a web page, not the file; fetch the file that it links to"};
  }
  return {};
}

bool is_gguf_file(const std::string& path) {
  std::error_code ignored;  // of a pipe nothing is read: it would be lost to its reader
  if (!std::filesystem::is_regular_file(path, ignored)) return false;
  std::ifstream in(path, std::ios::binary);
  char magic[4];
  return in.read(magic, sizeof magic) && std::string_view(magic, sizeof magic) == "GGUF";
}

void refuse_foreign(std::span<const std::byte> bytes, const std::string& name) {
  const FileFacts facts = file_facts(bytes);
  if (facts.kind == FileKind::kUnknown || facts.kind == FileKind::kGguf) return;
  throw Error("{}: {}", printable(name), facts.text);
}

}  // namespace heed
