#include "report/html.h"

#include <string_view>

#include "io/error.h"

// Both files are put into the program as they are; the build gives their paths.
#define HEED_EMBED(symbol, path)          \
  __asm__(                                \
      ".section .rodata\n"                \
      ".global " #symbol                  \
      "_begin\n"                          \
      ".global " #symbol "_end\n" #symbol \
      "_begin:\n"                         \
      ".incbin \"" path "\"\n" #symbol    \
      "_end:\n"                           \
      ".byte 0\n"                         \
      ".previous\n");                     \
  extern "C" const char symbol##_begin[]; \
  extern "C" const char symbol##_end[]

HEED_EMBED(heed_report_template, HEED_REPORT_TEMPLATE);
HEED_EMBED(heed_report_chart_js, HEED_CHART_JS);

namespace heed::report {
namespace {

void replace(std::string& text, std::string_view mark, std::string_view value) {
  const size_t at = text.find(mark);
  if (at == std::string::npos) throw Error("the report's template lacks {}", mark);
  text.replace(at, mark.size(), value);
}

// JSON inside <script>: nothing in it may end the element.
std::string for_script(const Json& json) {
  std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace), safe;
  for (char c : text) {
    if (c == '<') {
      safe += "\\u003c";
    } else {
      safe += c;
    }
  }
  return safe;
}

}  // namespace

std::string render_html(const Json& report) {
  std::string page(heed_report_template_begin, heed_report_template_end);
  // The data go in last: marks inside them stay as they are.
  replace(page, "/*CHART_JS*/", {heed_report_chart_js_begin, heed_report_chart_js_end});
  replace(page, "/*REPORT_JSON*/null", for_script(report));
  return page;
}

}  // namespace heed::report
