// The program `heed`: one subcommand a verb, each in src/cli/VERB_command.cc.
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <system_error>

#include "cli/command.h"
#include "cli/streams.h"
#include "heed/cli_registry.inc"
#include "io/describe.h"
#include "io/error.h"
#include "io/progress.h"

namespace {

extern "C" void on_interrupt(int) {
  // A second Ctrl-C ends the program at once.
  if (heed::g_interrupted.exchange(true)) std::_Exit(130);
}

// CLI11 prints help and the version as "errors" with exit code 0; all others are wrong usage.
int end_of_parsing(const CLI::App& app, const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) return app.exit(error);
  std::string what = error.what(), verb;
  std::replace(what.begin(), what.end(), '\n', ' ');
  for (const CLI::App* command : app.get_subcommands()) verb = " " + command->get_name();
  std::fprintf(stderr, "heed: %s; `heed%s --help` lists the options\n", what.c_str(), verb.c_str());
  return 2;
}

int nobody_reads() {
  std::fprintf(stderr, "heed: nobody reads the output any more; stopped\n");
  return 1;
}

// Results that nobody could read are a failure.
int end_of_output() {
  errno = 0;
  const bool failed = std::ferror(stdout) != 0;
  if (std::fflush(stdout) == 0 && !failed) return 0;
  if (errno == EPIPE) return nobody_reads();
  std::fprintf(stderr, "heed: the output cannot be written%s%s\n", errno != 0 ? ": " : "",
               errno != 0 ? heed::describe_errno(errno).c_str() : "; is the disk full?");
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  // PyTorch asks for huge pages where this is set before its first tensor: caches, weights and
  // activations are read a fifth faster. Most systems give them only to who asks.
  ::setenv("THP_MEM_ALLOC_ENABLE", "1", /*overwrite=*/0);
  std::signal(SIGINT, on_interrupt);
  std::signal(SIGTERM, on_interrupt);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // a write beyond the limit then fails as on a full disk
  CLI::App app{
      "Heed: measures attention heads, replaces them by cheaper mechanisms, runs the result."};
  app.name("heed");
  app.require_subcommand(0, 1);
  app.set_version_flag("--version", HEED_VERSION);
  for (auto add : heed::cli::k_cli_registry) add(app);
  try {
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) std::fputs(app.help().c_str(), stdout);
    return end_of_output();
  } catch (const CLI::ParseError& e) {
    return end_of_parsing(app, e);
  } catch (const heed::Interrupted& e) {
    if (heed::cli::reader_gone()) return nobody_reads();
    std::fprintf(stderr, "heed: %s\n", e.what());
    return e.exit_code();
  } catch (const heed::Error& e) {
    std::fprintf(stderr, "heed: %s\n", heed::cli::as_given(e.what()).c_str());
    return e.exit_code();
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "heed: out of memory; try a smaller context, batch or model\n");
    return 1;
  } catch (const std::system_error& e) {
    if (e.code() == std::errc::broken_pipe) return nobody_reads();
    std::fprintf(stderr, "heed: %s\n", heed::cli::as_given(e.what()).c_str());
    return 1;
  } catch (const std::exception& e) {
    // PyTorch's messages carry a C++ backtrace after the first line.
    const std::string what = heed::cli::as_given(e.what());
    std::fprintf(stderr, "heed: %s\n", what.substr(0, what.find('\n')).c_str());
    return 1;
  }
}
