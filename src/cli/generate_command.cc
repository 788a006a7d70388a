// heed generate: text from a model.
#include <cstdio>

#include "cache/plan_programs.h"
#include "cli/command.h"
#include "generate/generate.h"
#include "io/text_file.h"
#include "io/tokenizer/open.h"
#include "model/hub.h"

namespace heed::cli {
namespace {

struct Arguments {
  std::string model, tokenizer, prompt, file, system, plan, kv_dtype;
  bool chat = false, force = false;
  int64_t context = 0;
  GenerateOptions options;
};

at::ScalarType type_of(const std::string& name) {
  return name == "bfloat16" ? at::kBFloat16 : name == "float16" ? at::kHalf : at::kFloat;
}

void run(const Arguments& given, const CommonOptions& common) {
  if (given.prompt.empty() == given.file.empty()) {
    throw UsageError("give the prompt with --prompt or with --file");
  }
  const auto progress = make_progress();
  const std::string path = resolve_model(given.model, *progress);
  LoadOptions load;
  load.dtype = type_of(common.dtype);
  load.device = at::Device(common.device);
  load.context = given.context;
  check_sampling(given.options.sampling);
  const Decoder model = Decoder::load(path, load);
  const Tokenizer tokenizer = open_tokenizer(given.tokenizer.empty() ? path : given.tokenizer);
  const std::string text = given.file.empty() ? given.prompt : read_text_file(given.file);
  const auto ids =
      given.chat ? chat_ids(tokenizer, path, given.system, text) : prompt_ids(tokenizer, text);
  GenerateOptions options = given.options;
  options.sampling.seed = common.seed;
  options.kv_dtype = !given.kv_dtype.empty() ? type_of(given.kv_dtype)
                     : load.device.is_cpu()  ? at::kHalf
                                             : load.dtype;
  Programs programs;
  Plan plan;
  if (!given.plan.empty()) {
    plan = read_plan(given.plan);
    check_plan_fits(plan, given.plan, model.hash(), model.config().layers, model.config().kv_heads,
                    given.force);
  } else if (!model.config().plan.is_null()) {
    plan = parse_plan(model.config().plan.dump(), path + "/config.json: heed.plan");
  }
  if (!plan.heads.empty()) {
    programs = resolve_programs(plan);
    options.programs = &programs;
  }
  const Generation result = generate(model, tokenizer, ids, options, [&](const std::string& piece) {
    if (common.json) return;
    std::fputs(piece.c_str(), stdout);
    std::fflush(stdout);
  });
  const auto rate = [](int64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  const auto decoded = static_cast<int64_t>(result.tokens.size());
  if (common.json) {
    fmt::print("{}",
               pretty_json({{"text", result.text},
                            {"tokens", result.tokens},
                            {"finish", result.finish},
                            {"prompt_tokens", result.prompt_tokens},
                            {"prefill_seconds", result.prefill_seconds},
                            {"decode_seconds", result.decode_seconds},
                            {"prefill_tokens_per_second",
                             rate(result.prompt_tokens, result.prefill_seconds)},
                            {"decode_tokens_per_second", rate(decoded, result.decode_seconds)},
                            {"kv_bytes", result.kv_bytes},
                            {"kv_dtype", c10::toString(options.kv_dtype)}}));
    return;
  }
  fmt::print("\n");
  std::fflush(stdout);
  fmt::print(stderr,
             "\nprompt {} tokens, {:.1f} tokens/s; {} tokens generated ({}), {:.1f} tokens/s; keys "
             "and values "
             "{:.2f} MB\n",
             result.prompt_tokens, rate(result.prompt_tokens, result.prefill_seconds), decoded,
             result.finish, rate(decoded, result.decode_seconds),
             static_cast<double>(result.kv_bytes) / 1e6);
}

}  // namespace

void add_generate(CLI::App& app) {
  auto* command = app.add_subcommand("generate", "Continue a text, or answer in a chat");
  auto common = std::make_shared<CommonOptions>();
  auto given = std::make_shared<Arguments>();
  command->add_option("MODEL", given->model, "Folder, .gguf file, llama2.c .bin file or name")
      ->required();
  command->add_option("-p,--prompt", given->prompt, "The text to continue");
  command->add_option("-f,--file", given->file, "A text file to continue (plain or .xz)");
  command->add_flag("--chat", given->chat, "Put the prompt into the model's chat template");
  command->add_option("--system", given->system, "The system message, with --chat");
  command->add_option("-n,--tokens", given->options.max_tokens, "Tokens to generate at most")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  SamplingOptions& s = given->options.sampling;
  command->add_option("--temperature", s.temperature, "0 takes the likeliest token")
      ->capture_default_str();
  command->add_option("--top-k", s.top_k, "Choose among the k likeliest tokens; 0: off")
      ->capture_default_str();
  command->add_option("--top-p", s.top_p, "Choose among the fewest tokens of this probability")
      ->capture_default_str();
  command
      ->add_option("--min-p", s.min_p,
                   "Leave out tokens less likely than this part of the likeliest")
      ->capture_default_str();
  command->add_option("--repetition-penalty", s.repetition_penalty, "1: off")
      ->capture_default_str();
  command->add_option("--stop", given->options.stop, "End before this text; may be repeated")
      ->type_size(1)
      ->expected(1)
      ->take_all();
  command->add_flag("--ignore-eos", given->options.ignore_eos, "Go on after an end token");
  command->add_option("--tokenizer", given->tokenizer,
                      "Folder or file of the tokenizer, where it is not the model's (llama2.c)");
  command->add_option("--plan", given->plan, "Run the heads as a plan file says");
  command->add_flag("--force", given->force, "Take a plan for another model of equal shapes");
  command->add_option("--kv-dtype", given->kv_dtype, "Type of keys and values (float16 on the CPU)")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
  command
      ->add_option("--context", given->context, "Tokens that a sequence may have; 0: the model's")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--chunk", given->options.chunk, "Tokens of the prompt a pass")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  common->add_json(command);
  common->add_compute(command);
  common->add_seed(command);
  command->callback([common, given] {
    common->apply();
    run(*given, *common);
  });
}

}  // namespace heed::cli
