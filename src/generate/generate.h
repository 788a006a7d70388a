// Text from a model: prompts, stop rules, streaming. What the command line, the server and the
// evaluations share.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "generate/sampler.h"
#include "io/json.h"
#include "io/tokenizer/tokenizer.h"
#include "model/decoder.h"

namespace heed {

struct GenerateOptions {
  int64_t max_tokens = 256;
  SamplingOptions sampling;
  std::vector<std::string> stop;  // the text ends before the first of these
  bool ignore_eos = false;
  at::ScalarType kv_dtype = at::kHalf;
  const Programs* programs = nullptr;  // null: dense
  int64_t chunk = 512;                 // tokens of the prompt a pass
};

struct Generation {
  std::string text;             // without the stop string
  std::vector<int64_t> tokens;  // with the one that ended it
  std::string finish;           // "eos", "stop" or "length"
  int64_t prompt_tokens = 0;
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t kv_bytes = 0;  // allocated at the end
};

// Ids of a plain prompt; the begin token is put in front where the model was trained with one.
std::vector<int64_t> prompt_ids(const Tokenizer& tokenizer, const std::string& text);

// Ids of a conversation in the model's chat template, ready for the assistant's turn. `system` may
// be empty. Throws UsageError if the model has no template.
std::vector<int64_t> chat_ids(const Tokenizer& tokenizer, const std::string& model_path,
                              const std::string& system, const std::string& user);

// Feeds the prompt and samples until a stop rule holds. `on_text` is given the text piece by piece,
// each valid UTF-8, held back as long as it may belong to a stop string. Throws UsageError for an
// empty prompt or one that does not fit into the context.
Generation generate(const Decoder& model, const Tokenizer& tokenizer,
                    const std::vector<int64_t>& prompt, const GenerateOptions& options,
                    const std::function<void(const std::string&)>& on_text = {});

}  // namespace heed
