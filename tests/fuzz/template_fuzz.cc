// Chat templates: every text ends, with an output or a refusal, within its budget.
#include <string>

#include "fuzz.h"
#include "io/template/template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heed;
  static const auto messages = nlohmann::ordered_json::parse(
      R"([{"role":"system","content":"s"},{"role":"user","content":"Hi \n x"},
          {"role":"assistant","content":"a","tool_calls":[{"name":"f","arguments":{"x":1.5}}]}])");
  ChatOptions options;
  options.bos_token = "<s>";
  options.eos_token = "</s>";
  options.add_generation_prompt = true;
  options.max_steps = 4'000;
  options.max_bytes = 1 << 20;
  fuzz::attempt([&] {
    render_chat(std::string(reinterpret_cast<const char*>(data), size), messages, options);
  });
  return 0;
}
