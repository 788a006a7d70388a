// What a file is, told by its first bytes and never by its name.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace heed {

enum class FileKind {
  kUnknown,     // nothing that is known by its first bytes; llama2.c checkpoints are among these
  kEmpty,       // no bytes at all
  kGguf,        // of any version and byte order
  kPointer,     // what git-lfs leaves in place of a file
  kCompressed,  // a compressed file or an archive
  kForeign,     // a model, array or program of a format that Heed does not read
  kWebPage,     // HTML, as failed downloads leave it
};

struct FileFacts {
  FileKind kind = FileKind::kUnknown;
  // For all kinds but kUnknown and kGguf: what the file is and what to do, to follow "FILE: ", e.g.
  // "is compressed with gzip; unpack it first (gunzip)".
  std::string text;
};

// The kind of a file that begins with `bytes` (all of it, or at least its first 512 bytes).
FileFacts file_facts(std::span<const std::byte> bytes);

// Whether the regular file at `path` begins as GGUF files do. False for others and where it cannot
// be read.
bool is_gguf_file(const std::string& path);

// Throws Error, naming the file `name` and what it is, if it is of a kind other than kUnknown and
// kGguf. Readers call it where bytes are not what they expect.
void refuse_foreign(std::span<const std::byte> bytes, const std::string& name);

}  // namespace heed
