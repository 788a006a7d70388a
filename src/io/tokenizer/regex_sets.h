// Sets of characters that patterns name, as the inside of a PCRE2 class.
#pragma once

#include <string_view>

namespace heed {

// White_Space, and the word characters of Unicode technical standard 18.
inline constexpr const char* kSpaceItems =
    "\\t-\\r\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{"
    "3000}";
inline constexpr const char* kWordItems =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}"
    "\\x{1f170}-\\x{1f189}";

// Oniguruma's \w and \b, where they stand outside of classes, take these for word characters too.
inline constexpr const char* kWordExtras = "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";

// What stands in a POSIX bracket, [:name:]. `complement`: `unicode` lists what is not in the set.
struct PosixSet {
  std::string_view name;
  const char* unicode;
  bool complement;
  const char* ascii;  // under the option P
};
const PosixSet* posix_set(std::string_view name);  // null: no such name

}  // namespace heed
