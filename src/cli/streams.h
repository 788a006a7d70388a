// Standard input and output, pipes and what stands at their other end.
#pragma once

#include <string>
#include <string_view>

namespace heed::cli {

// The name that standard output has as a file (what `--out -` becomes).
inline constexpr const char* kStandardOutput = "/dev/stdout";

// A path under which what the user named can be opened as a file, from its start and more than
// once: `given` itself where it is a file, a folder or nothing; for "-" (standard input) and for
// pipes the name of a copy in memory, which lasts as long as the program. Throws UsageError if
// standard input is asked for twice, Error for a device and for more than half of this machine's
// memory.
std::string as_file(const std::string& given);

// `text` with the copies' names replaced by those that the user gave: for messages.
std::string as_given(std::string text);

// Prints to standard output at once. Throws Error if it cannot be written.
void print_now(std::string_view text);

// From now on long work ends (check_interrupted()) as soon as nobody reads standard output any
// more; for commands whose only product is what they stream.
void stop_without_reader();
// True when that has happened.
bool reader_gone();

}  // namespace heed::cli
