// The program `heed`: one subcommand a verb, each in src/cli/VERB_command.cc.
#include <csignal>
#include <cstdio>

#include "cli/command.h"
#include "heed/cli_registry.inc"
#include "io/error.h"
#include "io/progress.h"

namespace {

extern "C" void on_interrupt(int) {
  // A second Ctrl-C ends the program at once.
  if (heed::g_interrupted.exchange(true)) std::_Exit(130);
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGINT, on_interrupt);
  std::signal(SIGTERM, on_interrupt);
  std::signal(SIGPIPE, SIG_IGN);
  CLI::App app{
      "Heed: measures attention heads, replaces them by cheaper mechanisms, runs the result."};
  app.name("heed");
  app.require_subcommand(0, 1);
  app.set_version_flag("--version", HEED_VERSION);
  for (auto add : heed::cli::k_cli_registry) add(app);
  try {
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) std::fputs(app.help().c_str(), stdout);
    return std::fflush(stdout) == 0 ? 0 : 1;
  } catch (const CLI::ParseError& e) {
    // CLI11 prints help and version as "errors" with exit code 0; all others are wrong usage.
    const int code = app.exit(e);
    return code == 0 ? 0 : 2;
  } catch (const heed::Error& e) {
    std::fprintf(stderr, "heed: %s\n", e.what());
    return e.exit_code();
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "heed: out of memory; try a smaller context, batch or model\n");
    return 1;
  } catch (const std::exception& e) {
    // PyTorch's messages carry a C++ backtrace after the first line.
    const std::string what = e.what();
    std::fprintf(stderr, "heed: %s\n", what.substr(0, what.find('\n')).c_str());
    return 1;
  }
}
