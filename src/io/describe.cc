#include "io/describe.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <cerrno>
#include <cstring>

namespace heed {

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  size_t at = 0;
  while (at < text.size()) {
    if (out.size() >= max_bytes) return out + "...";
    utf8proc_int32_t code = -1;
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at;
    // At most four bytes make one character; the length keeps the call from scanning further.
    const auto length = utf8proc_iterate(
        bytes, static_cast<utf8proc_ssize_t>(std::min<size_t>(4, text.size() - at)), &code);
    const bool control =
        code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x2028 || code == 0x2029;
    if (length > 0 && !control) {
      out.append(text.substr(at, static_cast<size_t>(length)));
      at += static_cast<size_t>(length);
    } else {
      fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<unsigned char>(text[at]));
      ++at;
    }
  }
  return out;
}

std::string name_some(const std::vector<std::string>& names, size_t most) {
  std::string out;
  for (size_t i = 0; i < std::min(names.size(), most); ++i) {
    out += (i == 0 ? "" : ", ") + printable(names[i]);
  }
  if (names.size() > most) out += fmt::format(" and {} more", names.size() - most);
  return out;
}

std::string describe_errno(int error) {
  std::string said = std::strerror(error);
  switch (error) {
    case ENOENT:
      return said + "; check the path";
    case EACCES:
    case EPERM:
      return said + "; check the permissions, or choose another place";
    case EROFS:
      return said + "; choose another place";
    case ENOSPC:
    case EDQUOT:
      return said + "; free some space, or choose another place";
    case EMFILE:
    case ENFILE:
      return said + "; raise the limit with ulimit -n";
    default:
      return said;
  }
}

}  // namespace heed
