// Many sequences side by side: requests join and leave at any step, each with its own sampling,
// stop rules, limits and plan; one pass of the model feeds a token of every running one.
#pragma once

#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "generate/generate.h"

namespace heed {

struct Request {
  std::vector<int64_t> prompt;  // ids, at least one
  GenerateOptions options;      // `programs` must live as long as the request
  // Given the text piece by piece, each valid UTF-8. What it throws ends this request alone.
  std::function<void(const std::string&)> on_text;
};

struct BatchOptions {
  int64_t sequences = 64;  // that run side by side at most
  // Of the states of all running sequences, each counted at the longest that it may become; a
  // request that does not fit beside the others waits for its turn. 0: no limit.
  int64_t bytes = 0;
};

// The same prompt gives the same text alone and among others, as far as a product of several rows
// rounds as one of a single row does.
class Batch {
 public:
  // Both must live as long as the batch.
  Batch(const Decoder& model, const Tokenizer& tokenizer, const BatchOptions& options = {});
  ~Batch();
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  // Queues a request and returns its id. Throws UsageError for an empty prompt, one that does not
  // fit into the context, options out of range, and a request that alone exceeds the bytes.
  int64_t add(Request request);

  // Lets waiting requests in, first come first served; feeds the next chunk of the oldest prompt
  // that has not been read; then chooses and feeds one token of every running sequence. False when
  // nothing is left to do. Throws Interrupted.
  bool step();

  // Ends a request wherever it is: its finish is "cancelled". Also from inside on_text. Nothing
  // happens if it has ended.
  void cancel(int64_t id);

  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  // Bytes that the running sequences may come to need.
  int64_t bytes() const { return used_; }

  bool ended(int64_t id) const { return results_.count(id) > 0; }
  // The result of a request that has ended, which is forgotten by this; rethrows what ended it
  // (scores that are no numbers, an exception of on_text). UsageError where it has not ended.
  Generation take(int64_t id);

 private:
  struct Sequence;
  struct Ended {
    Generation generation;
    std::exception_ptr error;
  };

  void admit();
  void read_prompt();
  void choose(Sequence& sequence);
  void feed();
  void collect();

  const Decoder& model_;
  const Tokenizer& tokenizer_;
  BatchOptions options_;
  // Pages and slots of those who leave serve those who come. It has no limit of its own: what is
  // let in is counted at its longest, and a state that grows or moves is there twice for a moment.
  std::shared_ptr<StatePool> pool_;
  int64_t next_id_ = 0, used_ = 0;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;
  std::map<int64_t, Ended> results_;
};

}  // namespace heed
