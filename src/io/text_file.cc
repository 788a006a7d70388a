#include "io/text_file.h"

#include <lzma.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "io/describe.h"
#include "io/error.h"
#include "io/file_kind.h"
#include "io/mapped_file.h"
#include "io/tokenizer/unicode.h"

namespace heed {
namespace {

const char* what_failed(lzma_ret status) {
  switch (status) {
    case LZMA_MEM_ERROR:
    case LZMA_MEMLIMIT_ERROR:
      return "unpacking needs more memory than is allowed; pack it again with xz -6";
    case LZMA_OPTIONS_ERROR:
      return "packed in a way that is not supported; pack it again with xz -6";
    case LZMA_BUF_ERROR:
    case LZMA_OK:
      return "the xz data is cut short; fetch it again";
    default:
      return "the xz data is damaged; fetch it again";
  }
}

std::string unpack_xz(std::string_view packed, const std::string& name, const TextLimits& limits) {
  lzma_stream stream = LZMA_STREAM_INIT;
  struct End {
    lzma_stream* stream;
    ~End() { lzma_end(stream); }
  } end{&stream};
  lzma_ret status = lzma_stream_decoder(&stream, limits.decoder_bytes, LZMA_CONCATENATED);
  stream.next_in = reinterpret_cast<const uint8_t*>(packed.data());
  stream.avail_in = packed.size();
  std::string out;
  size_t length = 0;
  while (status == LZMA_OK) {
    if (length == out.size()) {
      if (length > limits.bytes) {
        throw Error("{}: unpacks to more than {} bytes; split it", printable(name), limits.bytes);
      }
      out.resize(std::min(std::max(2 * out.size(), 4 * packed.size() + 4096), limits.bytes + 1));
    }
    stream.next_out = reinterpret_cast<uint8_t*>(out.data()) + length;
    stream.avail_out = out.size() - length;
    status = lzma_code(&stream, LZMA_FINISH);
    length = out.size() - stream.avail_out;
  }
  if (status != LZMA_STREAM_END) throw Error("{}: {}", printable(name), what_failed(status));
  if (length > limits.bytes) {
    throw Error("{}: unpacks to more than {} bytes; split it", printable(name), limits.bytes);
  }
  out.resize(length);
  return out;
}

// What the file is if it is no text, to follow "FILE: "; else "".
std::string no_text(std::span<const std::byte> bytes) {
  const FileFacts facts = file_facts(bytes);
  switch (facts.kind) {
    case FileKind::kPointer:
    case FileKind::kCompressed:
      return facts.text;
    case FileKind::kGguf:
    case FileKind::kForeign: {
      // A text may begin with the same letters.
      const auto head = bytes.first(std::min<size_t>(bytes.size(), 512));
      if (std::find(head.begin(), head.end(), std::byte{0}) == head.end()) return "";
      return facts.kind == FileKind::kGguf ? "is a GGUF model; a text is needed here" : facts.text;
    }
    default:
      return "";
  }
}

}  // namespace

std::string decode_text(std::span<const std::byte> bytes, const std::string& name,
                        const TextLimits& limits) {
  constexpr std::string_view kXz(
      "\xFD"
      "7zXZ\0",
      6);
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::string unpacked;
  if (text.starts_with(kXz)) {
    unpacked = unpack_xz(text, name, limits);
    text = unpacked;
  } else if (const std::string what = no_text(bytes); !what.empty()) {
    throw Error("{}: {}", printable(name), what);
  } else if (text.size() > limits.bytes) {
    throw Error("{}: {} bytes; texts of at most {} are read, split it", printable(name),
                text.size(), limits.bytes);
  }
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  if (!unicode::is_valid(text)) return unicode::to_valid(text);
  if (text.size() == unpacked.size()) return unpacked;
  return std::string(text);
}

std::string read_text_file(const std::string& path, const TextLimits& limits) {
  const MappedFile file(path);
  return decode_text(file.bytes(), path, limits);
}

}  // namespace heed
