// The report as one HTML file that opens offline: template.html with the data and Chart.js inside.
#pragma once

#include <string>

#include "io/json.h"

namespace heed::report {

// `report` as run_demo() makes it.
std::string render_html(const Json& report);

}  // namespace heed::report
