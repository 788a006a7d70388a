// See info.h.
#include "model/info.h"

#include <filesystem>
#include <set>

#include "cache/state_spec.h"
#include "io/tokenizer/open.h"
#include "model/decoder.h"
#include "model/hub.h"
#include "model/source.h"

namespace heed {

Json model_info(const std::string& name) {
  const ModelSource source = ModelSource::open(resolve_model(name));
  Decoder::check(source);
  const ModelConfig& c = source.config();
  Json out;
  out["path"] = source.path();
  out["format"] = source.format();
  Json types = Json::object();
  for (const auto& [type, bytes] : source.stored_types()) types[type] = bytes;
  out["stored_types"] = types;
  out["family"] = c.family;
  out["shapes"] = {
      {"layers", c.layers}, {"hidden", c.hidden},       {"intermediate", c.intermediate},
      {"heads", c.heads},   {"kv_heads", c.kv_heads},   {"head_dim", c.head_dim},
      {"vocab", c.vocab},   {"tied_embeddings", c.tied}};
  out["parameters"] = c.parameters();
  out["context"] = c.max_position;
  if (!c.learned_positions) out["rope"] = {{"type", c.rope.type}, {"base", c.rope.base}};
  out["windows"] = c.windows;
  Json mixers = Json::object();
  for (const auto& [layer, mixer] : c.mixers) mixers[std::to_string(layer)] = mixer.id;
  out["mixers"] = mixers;
  std::set<int64_t> lengths = {c.max_position};
  for (int64_t n = 1024; n < c.max_position && lengths.size() < 8; n *= 2) lengths.insert(n);
  Json rows = Json::array();
  const Decoder bare = Decoder::bare(c);
  for (int64_t tokens : lengths) {
    const auto bytes = [&](at::ScalarType type) {
      mixer::StateRequest request;
      request.kv_dtype = type;
      int64_t sum = 0;
      for (const Block& block : bare.blocks()) {
        for (const StatePart& part : block.mixer->state(request).parts) {
          if (const auto* kept = std::get_if<RowsPart>(&part)) sum += kept->formula_bytes(tokens);
        }
      }
      return sum;
    };
    rows.push_back(
        {{"tokens", tokens}, {"float16", bytes(at::kHalf)}, {"float32", bytes(at::kFloat)}});
  }
  out["kv_bytes"] = rows;
  out["tokenizer"] = nullptr;
  out["chat_template"] = "";
  try {
    const Tokenizer tokenizer = open_tokenizer(source.path());
    const SpecialTokens& special = tokenizer.special();
    out["tokenizer"] = {{"vocab", tokenizer.vocab_size()},
                        {"bos", special.bos},
                        {"eos", special.eos},
                        {"pad", special.pad},
                        {"unk", special.unk},
                        {"stop", special.stop},
                        {"add_bos", special.add_bos}};
    out["chat_template"] = read_chat_template(source.path());
  } catch (const Error& error) {
    out["tokenizer_error"] = error.what();
  }
  out["plan_hash"] = source.hash();
  return out;
}

}  // namespace heed
