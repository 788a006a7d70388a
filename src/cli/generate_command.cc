// heed generate: text from a model.
#include <chrono>
#include <cstdio>
#include <sstream>

#include "cache/plan/plan_programs.h"
#include "cli/command.h"
#include "cli/model_options.h"
#include "cli/options.h"
#include "cli/streams.h"
#include "generate/batch.h"
#include "generate/generate.h"
#include "io/machine_memory.h"
#include "io/text_file.h"
#include "io/tokenizer/open.h"
#include "model/hub.h"

namespace heed::cli {
namespace {

struct Arguments {
  std::string model, tokenizer, file, lines, system, plan, kv_dtype, weights;
  std::vector<std::string> prompts;
  bool chat = false, force = false;
  int64_t context = 0, side_by_side = 8;
  GenerateOptions options;
};

// What would have no effect is refused.
void check_together(const CLI::App& command, const Arguments& given) {
  const int ways = (given.prompts.empty() ? 0 : 1) + (given.file.empty() ? 0 : 1) +
                   (given.lines.empty() ? 0 : 1);
  if (ways != 1) throw UsageError("give the prompt with one of --prompt, --file and --prompts");
  if (given.prompts.size() < 2 && given.lines.empty()) {
    refuse(command, {"--side-by-side"}, "goes with several prompts");
  }
  if (!given.chat) refuse(command, {"--system"}, "goes with --chat");
  if (given.plan.empty()) refuse(command, {"--force"}, "goes with --plan");
  const SamplingOptions& s = given.options.sampling;
  check_sampling(s);
  if (s.temperature == 0) {
    const std::string why =
        "has no effect at temperature 0, where the likeliest token is taken; "
        "add --temperature 1";
    if (s.top_k != 0) refuse(command, {"--top-k"}, why);
    if (s.top_p != 1) refuse(command, {"--top-p"}, why);
    if (s.min_p != 0) refuse(command, {"--min-p"}, why);
  }
  for (const std::string& stop : given.options.stop) {
    if (stop.empty()) throw UsageError("--stop: the text is empty");
  }
}

// The plan of --plan, else the one that the model carries; dense where there is none.
Programs programs_of(const Arguments& given, const Decoder& model, const std::string& path) {
  Plan plan;
  if (!given.plan.empty()) {
    plan = read_plan(given.plan);
    check_plan_fits(plan, given.plan, model.hash(), model.config().layers, model.config().kv_heads,
                    given.force);
  } else if (!model.config().plan.is_null()) {
    plan = parse_plan(model.config().plan.dump(), path + "/config.json: heed.plan");
  }
  return plan.heads.empty() ? Programs() : resolve_programs(plan);
}

double rate(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
}

Json to_json(const Generation& result, at::ScalarType kv_dtype) {
  return {{"text", result.text},
          {"tokens", result.tokens},
          {"finish", result.finish},
          {"prompt_tokens", result.prompt_tokens},
          {"prefill_seconds", result.prefill_seconds},
          {"decode_seconds", result.decode_seconds},
          {"prefill_tokens_per_second", rate(result.prompt_tokens, result.prefill_seconds)},
          {"decode_tokens_per_second",
           rate(static_cast<int64_t>(result.tokens.size()), result.decode_seconds)},
          {"kv_bytes", result.kv_bytes},
          {"kv_dtype", c10::toString(kv_dtype)}};
}

void print_summary(const Generation& result) {
  const auto decoded = static_cast<int64_t>(result.tokens.size());
  fmt::print(stderr,
             "\nprompt {} tokens, {:.1f} tokens/s; {} tokens generated ({}), {:.1f} tokens/s; keys "
             "and values {:.2f} MB\n",
             result.prompt_tokens, rate(result.prompt_tokens, result.prefill_seconds), decoded,
             result.finish, rate(decoded, result.decode_seconds),
             static_cast<double>(result.kv_bytes) / 1e6);
}

// The texts to go on from: of every --prompt, of the file, or of each line that is not blank.
std::vector<std::string> texts_of(const Arguments& given) {
  if (!given.prompts.empty()) return given.prompts;
  if (!given.file.empty()) return {read_text_file(given.file)};
  std::vector<std::string> texts;
  std::istringstream lines(read_text_file(given.lines));
  for (std::string line; std::getline(lines, line);) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.find_first_not_of(" \t") != std::string::npos) texts.push_back(line);
  }
  if (texts.empty()) throw UsageError("{}: holds no prompt; write one a line", given.lines);
  return texts;
}

// Several prompts: side by side through the model, printed in their order, each as soon as those
// before it are there.
void run_several(const Decoder& model, const Tokenizer& tokenizer,
                 const std::vector<std::string>& texts, std::vector<Request> requests,
                 const Arguments& given, bool json) {
  Batch batch(model, tokenizer, {given.side_by_side, machine_memory() / 2});
  const at::ScalarType type = requests[0].options.kv_dtype;
  std::vector<int64_t> ids;
  for (Request& request : requests) ids.push_back(batch.add(std::move(request)));
  Json all = Json::array();
  int64_t tokens = 0, prompt_tokens = 0, kv_bytes = 0;
  const auto start = std::chrono::steady_clock::now();
  size_t done = 0;
  for (bool more = true; more;) {
    more = batch.step();
    for (; done < ids.size() && batch.ended(ids[done]); ++done) {
      const Generation result = batch.take(ids[done]);
      tokens += static_cast<int64_t>(result.tokens.size());
      prompt_tokens += result.prompt_tokens;
      kv_bytes += result.kv_bytes;
      if (json) {
        all.push_back(to_json(result, type));
        all.back()["prompt"] = texts[done];
      } else {
        print_now(fmt::format("{}>>> {}\n{}\n", done > 0 ? "\n" : "", texts[done], result.text));
      }
    }
  }
  if (json) {
    print_now(pretty_json(all));
  } else {
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    fmt::print(stderr,
               "\n{} prompts of {} tokens; {} tokens generated, {:.1f} tokens/s with prompts; keys "
               "and values {:.2f} MB\n",
               ids.size(), prompt_tokens, tokens, rate(tokens, spent.count()),
               static_cast<double>(kv_bytes) / 1e6);
  }
}

void run_one(const Decoder& model, const Tokenizer& tokenizer, const Request& request, bool json) {
  const Generation result =
      generate(model, tokenizer, request.prompt, request.options, [&](const std::string& piece) {
        if (!json) print_now(piece);
      });
  if (json) {
    print_now(pretty_json(to_json(result, request.options.kv_dtype)));
  } else {
    print_now("\n");
    print_summary(result);
  }
}

void run(const CLI::App& command, const Arguments& given, const CommonOptions& common) {
  stop_without_reader();
  const auto progress = make_progress();
  const std::string path = resolve_model(given.model, *progress);
  const LoadOptions load = load_options(common, given.weights, given.context);
  const Decoder model = Decoder::load(path, load);
  const Tokenizer tokenizer = open_tokenizer(given.tokenizer.empty() ? path : given.tokenizer);
  GenerateOptions options = given.options;
  options.sampling.seed = common.seed;
  options.kv_dtype = kv_dtype(given.kv_dtype, load);
  const Programs programs = programs_of(given, model, path);
  if (!programs.heads.empty()) options.programs = &programs;
  if (programs.dense_prefill) {
    refuse(command, {"--chunk"}, "has no effect with a plan that reads the prompt in one pass");
  }
  const std::vector<std::string> texts = texts_of(given);
  std::vector<Request> requests;
  for (const std::string& text : texts) {
    requests.push_back(
        {given.chat ? chat_ids(tokenizer, path, given.system, text) : prompt_ids(tokenizer, text),
         options,
         {}});
  }
  if (given.lines.empty() && texts.size() == 1) {
    run_one(model, tokenizer, requests[0], common.json);
  } else {
    run_several(model, tokenizer, texts, std::move(requests), given, common.json);
  }
}

}  // namespace

void add_generate(CLI::App& app) {
  auto* command = app.add_subcommand("generate", "Continue a text, or answer in a chat");
  auto common = std::make_shared<CommonOptions>();
  auto given = std::make_shared<Arguments>();
  common->add_model(command, given->model);
  command
      ->add_option("-p,--prompt", given->prompts,
                   "The text to continue; may be repeated: all go through the model side by side")
      ->type_size(1)
      ->expected(1)
      ->take_all();
  common->add_input(command, "-f,--file", given->file, "A text file to continue (plain or .xz)");
  common->add_input(command, "--prompts", given->lines,
                    "A text file with a prompt a line; blank lines are left out");
  command
      ->add_option("--side-by-side", given->side_by_side, "Of several prompts, how many at a time")
      ->check(whole(1, 1024))
      ->capture_default_str();
  command->add_flag("--chat", given->chat, "Put the prompt into the model's chat template");
  command->add_option("--system", given->system, "The system message, with --chat");
  command->add_option("-n,--tokens", given->options.max_tokens, "Tokens to generate at most")
      ->capture_default_str()
      ->check(whole(0));
  SamplingOptions& s = given->options.sampling;
  command->add_option("--temperature", s.temperature, "0 takes the likeliest token")
      ->check(real(0, 1e6))
      ->capture_default_str();
  command->add_option("--top-k", s.top_k, "Choose among the k likeliest tokens; 0: off")
      ->check(whole(0))
      ->capture_default_str();
  command->add_option("--top-p", s.top_p, "Choose among the fewest tokens of this probability")
      ->check(real(0, 1, true))
      ->capture_default_str();
  command
      ->add_option("--min-p", s.min_p,
                   "Leave out tokens less likely than this part of the likeliest")
      ->check(real(0, 1))
      ->capture_default_str();
  command->add_option("--repetition-penalty", s.repetition_penalty, "1: off")
      ->check(real(0, 1e6, true))
      ->capture_default_str();
  command->add_option("--stop", given->options.stop, "End before this text; may be repeated")
      ->type_size(1)
      ->expected(1)
      ->take_all();
  command->add_flag("--ignore-eos", given->options.ignore_eos, "Go on after an end token");
  common->add_input(command, "--tokenizer", given->tokenizer,
                    "Folder or file of the tokenizer, where it is not the model's (llama2.c)");
  common->add_input(command, "--plan", given->plan, "Run the heads as a plan file says");
  command->add_flag("--force", given->force, "Take a plan for another model of equal shapes");
  add_kv_dtype(command, given->kv_dtype);
  add_weights(command, given->weights);
  command
      ->add_option("--context", given->context, "Tokens that a sequence may have; 0: the model's")
      ->check(whole(0, kMostTokens));
  command->add_option("--chunk", given->options.chunk, "Tokens of the prompt a pass")
      ->capture_default_str()
      ->check(whole(1, kMostTokens));
  common->add_json(command);
  common->add_compute(command);
  common->add_seed(command);
  add_examples(command, {R"(heed generate smollm2 --chat -p "What is the capital of France?")",
                         R"(heed generate smollm2 --plan plan.json -p "Once upon a time")",
                         "heed generate smollm2 --file - < story.txt",
                         "heed generate smollm2 --prompts questions.txt --json"});
  command->callback([command, common, given] {
    check_together(*command, *given);
    common->apply();
    run(*command, *given, *common);
  });
}

}  // namespace heed::cli
