// Pieces of error messages: text from untrusted files made printable on one line, and system errors
// with what to do about them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace heed {

// `text` on one line: control characters and bytes that are not UTF-8 become \xHH, and all beyond
// `max_bytes` is cut with "...". For names that come out of a file.
std::string printable(std::string_view text, size_t max_bytes = 160);

// The first `most` of some names out of a file or folder, "and N more" where there are others.
std::string name_some(const std::vector<std::string>& names, size_t most = 4);

// What the system says about `error` (an errno value) and, for common ones, what to do.
std::string describe_errno(int error);

}  // namespace heed
