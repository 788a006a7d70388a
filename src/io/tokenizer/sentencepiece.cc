// SentencePiece `.model` files, run by libsentencepiece itself.
#include <sentencepiece_processor.h>

#include <mutex>

#include "io/error.h"
#include "io/tokenizer/tokenizer.h"
#include "io/tokenizer/tokenizer_parts.h"

namespace heed {

namespace {

using Processor = sentencepiece::SentencePieceProcessor;

class LibraryModel : public tok::Model {
 public:
  explicit LibraryModel(std::shared_ptr<const Processor> processor)
      : processor_(std::move(processor)) {}
  void encode(std::string_view piece, std::vector<int32_t>& ids) const override {
    std::vector<int> found;
    const auto status = processor_->Encode({piece.data(), piece.size()}, &found);
    if (!status.ok()) throw Error("SentencePiece: {}", status.ToString());
    ids.insert(ids.end(), found.begin(), found.end());
  }

 private:
  std::shared_ptr<const Processor> processor_;
};

// Pieces to text by the rules of the library: U+2581 is a blank, the one at the front is dropped
// where the model adds one, bytes are bytes, an unknown piece is " U+2047 ". Control pieces, which
// the library leaves out, are written out.
class LibraryDecoder : public tok::Decoder {
 public:
  explicit LibraryDecoder(std::shared_ptr<const Processor> processor)
      : processor_(std::move(processor)) {
    // Does this model put a blank in front of a text?
    std::vector<std::string> pieces;
    if (processor_->Encode("a", &pieces).ok() && !pieces.empty()) {
      adds_blank_ = pieces[0].starts_with(tok::kLowerOneEighthBlock);
    }
  }
  void apply(std::vector<std::string>& tokens) const override {
    bool front = adds_blank_;
    for (std::string& token : tokens) {
      const int id = processor_->PieceToId(token);
      if (processor_->IsControl(id)) continue;
      if (processor_->IsByte(id)) {
        token.assign(1, static_cast<char>(std::stoi(token.substr(3, 2), nullptr, 16)));
      } else if (processor_->IsUnknown(id)) {
        // Any other text that the library does not know is an added token's.
        if (token == processor_->IdToPiece(id)) token = " \xE2\x81\x87 ";
      } else {
        std::string text;
        for (size_t at = 0; at < token.size();) {
          if (token.compare(at, 3, tok::kLowerOneEighthBlock) == 0) {
            if (!(front && at == 0)) text += ' ';
            at += 3;
          } else {
            text += token[at++];
          }
        }
        token = std::move(text);
      }
      front = false;
    }
  }

 private:
  std::shared_ptr<const Processor> processor_;
  bool adds_blank_ = false;
};

}  // namespace

Tokenizer Tokenizer::from_sentencepiece(const std::string& path) {
  auto processor = std::make_shared<Processor>();
  const auto status = processor->Load(path);
  if (!status.ok())
    throw Error("{}: cannot be read as a SentencePiece model: {}", path, status.ToString());
  auto parts = std::make_shared<Parts>();
  parts->file = path;
  for (int32_t id = 0; id < processor->GetPieceSize(); ++id) {
    const std::string& piece = processor->IdToPiece(id);
    parts->set_token(id, piece);
    parts->token_to_id.emplace(piece, id);
    if (!processor->IsControl(id)) continue;
    parts->add({.content = piece, .id = id, .special = true});
  }
  parts->model_tokens = parts->id_to_token.size();
  parts->special.bos = processor->bos_id();
  parts->special.eos = processor->eos_id();
  parts->special.unk = processor->unk_id();
  parts->special.pad = processor->pad_id();
  parts->special.add_bos = parts->special.bos >= 0;
  if (parts->special.eos >= 0) parts->special.stop = {parts->special.eos};
  parts->model = std::make_shared<LibraryModel>(processor);
  parts->decoder = std::make_shared<LibraryDecoder>(processor);
  return Tokenizer(std::move(parts));
}

}  // namespace heed
