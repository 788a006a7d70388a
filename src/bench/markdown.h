// Tables of documents, made from the JSON of `heed bench` and from nothing else.
#pragma once

#include <string>
#include <vector>

#include "io/json.h"

namespace heed::bench {

// A sentence on the machine and a Markdown table of the records whose name has a match of `filter`
// (a regular expression; empty: all). `path` names the file in messages. Error for a file that is
// not what `heed bench` writes, UsageError where nothing matches.
std::string markdown_table(const Json& file, const std::string& path, const std::string& filter);

// `text` with everything between each line
//   <!-- heed bench table [--filter 'REGEX'] FILE... -->
// and the next line `<!-- end of table -->` made anew; FILEs are looked for in `folder`. Error,
// naming `document`, where the second line is missing.
std::string refresh_tables(const std::string& text, const std::string& folder,
                           const std::string& document);

// What `heed bench table FILE...` prints.
std::string markdown_tables(const std::vector<std::string>& paths, const std::string& filter);

}  // namespace heed::bench
