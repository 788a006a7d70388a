#define PCRE2_CODE_UNIT_WIDTH 8
#include "io/tokenizer/regex.h"

#include <pcre2.h>

#include "io/describe.h"
#include "io/error.h"
#include "io/tokenizer/regex_translate.h"

namespace heed {

namespace {

// What one thread needs to match: room for one match, a stack for the compiled code, limits.
struct MatchScratch {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 * 1024, 16 * 1024 * 1024, nullptr);

  MatchScratch() {
    if (!data || !context) throw std::bad_alloc();
    pcre2_set_match_limit(context, 20'000'000);
    pcre2_set_heap_limit(context, 64 * 1024);  // KiB
    if (stack) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~MatchScratch() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  MatchScratch(const MatchScratch&) = delete;
  MatchScratch& operator=(const MatchScratch&) = delete;
};

}  // namespace

Regex::Regex(std::string_view pattern, const std::string& where) : where_(where) {
  const std::string translated = translate_pattern(pattern, where);
  int error = 0;
  PCRE2_SIZE offset = 0;
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);  // whatever the library was built with
  // PCRE2 10.42 counts a letter that a lookahead saw and the same letter behind it as two, and so
  // misses matches of (?=a).*a: no such shortcut where there is a lookahead.
  const uint32_t careful =
      translated.find("(?=") != std::string::npos ? PCRE2_NO_START_OPTIMIZE : 0;
  pcre2_code* code = pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_DUPNAMES | PCRE2_NEVER_BACKSLASH_C | careful,
      &error, &offset, context.get());
  if (!code) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof(message));
    throw Error("{}: the regular expression {} cannot be read: {}", where, printable(pattern),
                reinterpret_cast<const char*>(message));
  }
  code_ =
      std::shared_ptr<void>(code, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without it matching is slower, not wrong
}

bool Regex::find(std::string_view text, size_t from, size_t& start, size_t& end) const {
  static thread_local MatchScratch scratch;
  const int found = pcre2_match(static_cast<const pcre2_code*>(code_.get()),
                                reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                PCRE2_NO_UTF_CHECK, scratch.data, scratch.context);
  if (found == PCRE2_ERROR_NOMATCH) return false;
  if (found < 0) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(found, message, sizeof(message));
    throw Error("{}: matching the regular expression failed: {}", where_,
                reinterpret_cast<const char*>(message));
  }
  const PCRE2_SIZE* span = pcre2_get_ovector_pointer(scratch.data);
  start = span[0];
  end = span[1];
  if (end < start) end = start;  // \K inside a lookahead
  return true;
}

}  // namespace heed
