// What `heed info` tells about a model, from its files' headers alone: also whether the tensors are
// those that its configuration asks for.
#pragma once

#include <string>

#include "io/json.h"

namespace heed {

// Keys: path, format, stored_types {type: bytes}, family, shapes {...}, parameters, context, rope,
// windows, mixers, kv_bytes [{tokens, float16, float32}] (dense, one sequence), tokenizer {vocab,
// bos, eos, stop, ...} or null with tokenizer_error, chat_template (text, "" if there is none),
// plan_hash. Throws the Error that loading the model would begin with.
Json model_info(const std::string& name_or_path);

}  // namespace heed
