// Patterns of tokenizer files in PCRE2's syntax.
#pragma once

#include <string>
#include <string_view>

namespace heed {

// `pattern` is in Oniguruma's own syntax (github.com/kkos/oniguruma, doc/RE), which Hugging Face
// `tokenizers` reads; the result means the same to PCRE2 with UTF, UCP and MULTILINE. What differs
// and is translated: {n,m}+ and other quantifiers of quantifiers, {,n}, {n}?, {m,n} with m > n; \v,
// \h, \R, \N, \O, \b, escapes of letters that mean the letter; (?m) for a dot that takes line ends,
// options that hold to the end of the group, (?W), (?D), (?S), (?P), (?x); classes within classes,
// && and POSIX brackets, all by Unicode's properties; names of properties (a script is its own
// characters, without its extensions); groups without a name beside named ones. Throws Error naming
// `where` and the construct for what has no counterpart: absent functions, callouts, conditions,
// \y, \M, levels of recursion, blocks and ages as properties.
std::string translate_pattern(std::string_view pattern, const std::string& where);

// A property of characters by Oniguruma's name for it, or an alias ("Han", "Lu", "uppercase
// letter", "alnum", "^Alpha"), as PCRE2 writes it inside a class; empty where there is none.
// `negated` becomes true where the text names the characters without the property.
std::string property_items(std::string_view name, bool& negated);

}  // namespace heed
