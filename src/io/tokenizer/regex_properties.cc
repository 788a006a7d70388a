// Names of character properties: general categories, POSIX brackets, scripts and binary properties,
// by Oniguruma's names (doc/UNICODE_PROPERTIES), loosely compared as there.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cctype>
#include <map>

#include "io/tokenizer/regex_sets.h"
#include "io/tokenizer/regex_translate.h"

namespace heed {

namespace {

// Long and short names of the general categories.
const std::map<std::string_view, const char*>& categories() {
  static const std::map<std::string_view, const char*> names = {
      {"c", "C"},     {"other", "C"},
      {"cc", "Cc"},   {"control", "Cc"},
      {"cf", "Cf"},   {"format", "Cf"},
      {"cn", "Cn"},   {"unassigned", "Cn"},
      {"co", "Co"},   {"privateuse", "Co"},
      {"cs", "Cs"},   {"surrogate", "Cs"},
      {"l", "L"},     {"letter", "L"},
      {"lc", "L&"},   {"casedletter", "L&"},
      {"ll", "Ll"},   {"lowercaseletter", "Ll"},
      {"lm", "Lm"},   {"modifierletter", "Lm"},
      {"lo", "Lo"},   {"otherletter", "Lo"},
      {"lt", "Lt"},   {"titlecaseletter", "Lt"},
      {"lu", "Lu"},   {"uppercaseletter", "Lu"},
      {"m", "M"},     {"mark", "M"},
      {"mc", "Mc"},   {"spacingmark", "Mc"},
      {"me", "Me"},   {"enclosingmark", "Me"},
      {"mn", "Mn"},   {"nonspacingmark", "Mn"},
      {"n", "N"},     {"number", "N"},
      {"nd", "Nd"},   {"decimalnumber", "Nd"},
      {"nl", "Nl"},   {"letternumber", "Nl"},
      {"no", "No"},   {"othernumber", "No"},
      {"p", "P"},     {"punctuation", "P"},
      {"pc", "Pc"},   {"connectorpunctuation", "Pc"},
      {"pd", "Pd"},   {"dashpunctuation", "Pd"},
      {"pe", "Pe"},   {"closepunctuation", "Pe"},
      {"pf", "Pf"},   {"finalpunctuation", "Pf"},
      {"pi", "Pi"},   {"initialpunctuation", "Pi"},
      {"po", "Po"},   {"otherpunctuation", "Po"},
      {"ps", "Ps"},   {"openpunctuation", "Ps"},
      {"s", "S"},     {"symbol", "S"},
      {"sc", "Sc"},   {"currencysymbol", "Sc"},
      {"sk", "Sk"},   {"modifiersymbol", "Sk"},
      {"sm", "Sm"},   {"mathsymbol", "Sm"},
      {"so", "So"},   {"othersymbol", "So"},
      {"z", "Z"},     {"separator", "Z"},
      {"zl", "Zl"},   {"lineseparator", "Zl"},
      {"zp", "Zp"},   {"paragraphseparator", "Zp"},
      {"zs", "Zs"},   {"spaceseparator", "Zs"},
      {"any", "Any"}, {"combiningmark", "M"}};
  return names;
}

bool compiles(const std::string& pattern) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
  pcre2_code_free(code);
  return code != nullptr;
}

}  // namespace

const PosixSet* posix_set(std::string_view name) {
  static constexpr PosixSet kSets[] = {
      {"alnum", "\\p{Alphabetic}\\p{Nd}", false, "0-9A-Za-z"},
      {"alpha", "\\p{Alphabetic}", false, "A-Za-z"},
      {"ascii", "\\x{0}-\\x{7f}", false, "\\x{0}-\\x{7f}"},
      {"blank", "\\p{Zs}\\t", false, "\\x20\\t"},
      {"cntrl", "\\p{Cc}", false, "\\x{0}-\\x{1f}\\x{7f}"},
      {"digit", "\\p{Nd}", false, "0-9"},
      {"graph", "\\p{Z}\\p{Cc}\\p{Cn}\\p{Cs}", true, "!-~"},
      {"lower", "\\p{Lowercase}", false, "a-z"},
      {"print", "\\p{Zl}\\p{Zp}\\p{Cc}\\p{Cn}\\p{Cs}", true, "\\x20-~"},
      {"punct", "\\p{P}\\p{S}", false, "!-\\/:-@\\[-`\\{-~"},
      {"space", kSpaceItems, false, "\\t-\\r\\x20"},
      {"upper", "\\p{Uppercase}", false, "A-Z"},
      {"xdigit", "0-9A-Fa-f", false, "0-9A-Fa-f"},
      {"word", kWordItems, false, "0-9A-Z_a-z"}};
  for (const PosixSet& set : kSets) {
    if (set.name == name) return &set;
  }
  return nullptr;
}

std::string property_items(std::string_view name, bool& negated) {
  if (name.starts_with('^')) {
    negated = !negated;
    name.remove_prefix(1);
  }
  std::string plain;
  for (const char c : name) {
    if (c == ' ' || c == '_' || c == '-') continue;
    if (!std::isalnum(static_cast<unsigned char>(c))) return "";
    plain += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  if (plain == "punct") return "\\p{P}";  // the category, unlike [:punct:]
  if (const PosixSet* set = posix_set(plain)) {
    negated = negated != set->complement;
    return set->unicode;
  }
  if (plain == "assigned") {
    negated = !negated;
    return "\\p{Cn}";
  }
  if (const auto found = categories().find(plain); found != categories().end()) {
    return std::string("\\p{") + found->second + '}';
  }
  if (plain.empty() || plain.starts_with("in") || plain.starts_with("xp")) return "";
  for (const char* extra : {"xan", "xsp", "xwd", "xuc"}) {  // PCRE2's own
    if (plain == extra) return "";
  }
  const std::string script = "\\p{sc:" + plain + '}', binary = "\\p{" + plain + '}';
  return compiles(script) ? script : compiles(binary) ? binary : "";
}

}  // namespace heed
