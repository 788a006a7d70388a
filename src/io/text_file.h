// Reading text files, plain or compressed with xz.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace heed {

// How much a text file may unpack to, and what the decompressor may use for itself.
struct TextLimits {
  size_t bytes = size_t{512} << 20;
  size_t decoder_bytes = size_t{256} << 20;
};

// The text of a file, whatever its name: xz is recognised by its first bytes. A byte order mark is
// dropped; what is not UTF-8 becomes U+FFFD, one for each longest broken part. Error if the file
// cannot be read, is a damaged or cut-off xz file, is compressed in another way, is no text by its
// first bytes (file_kind.h), or exceeds a limit.
std::string read_text_file(const std::string& path, const TextLimits& limits = {});

// The same from memory; `name` stands for the file in messages.
std::string decode_text(std::span<const std::byte> bytes, const std::string& name,
                        const TextLimits& limits = {});

}  // namespace heed
