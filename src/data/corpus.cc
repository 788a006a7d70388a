// Token files: a header {magic, bytes a token, documents, tokens}, the length of every document
// (uint64), then the tokens of all documents, 2 bytes each where the vocabulary allows it.
#include "data/corpus.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <filesystem>
#include <mutex>
#include <thread>

#include "data/random.h"
#include "io/atomic_file.h"
#include "io/error.h"
#include "io/mapped_file.h"
#include "io/text_file.h"

namespace heed::data {
namespace {

namespace fs = std::filesystem;

struct Header {
  char magic[8];
  uint64_t width, documents, tokens;
};
constexpr char kMagic[8] = {'H', 'E', 'E', 'D', 'T', 'O', 'K', '1'};

// A 64-bit hash for cache names: eight bytes at a time through the mixer of SplitMix64.
uint64_t hash_bytes(uint64_t hash, std::string_view bytes) {
  for (size_t n = 0; n < bytes.size(); n += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + n, std::min<size_t>(8, bytes.size() - n));
    hash = Random(hash ^ word).next();
  }
  return Random(hash, bytes.size()).next();
}

// Calls fn(n) for n in [0, count) on several threads; the first exception is thrown again here.
template <typename Fn>
void for_each_parallel(int64_t count, int threads, Fn&& fn) {
  if (threads <= 0) threads = std::max(1u, std::thread::hardware_concurrency());
  threads = static_cast<int>(std::min<int64_t>(threads, count));
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  auto work = [&] {
    try {
      for (int64_t n; (n = next.fetch_add(1)) < count;) {
        check_interrupted();
        fn(n);
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next.store(count);
    }
  };
  std::vector<std::thread> pool;
  for (int n = 1; n < threads; ++n) pool.emplace_back(work);
  work();
  for (auto& thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
}

void check_ids(std::span<const int32_t> ids, int64_t vocab_size) {
  for (const int32_t id : ids) {
    if (id < 0 || (vocab_size > 0 && id >= vocab_size)) {
      throw Error("the tokenizer gave token {}, outside its vocabulary of {}", id, vocab_size);
    }
  }
}

}  // namespace

std::vector<std::string_view> split_documents(std::string_view text, std::string_view separator) {
  std::vector<std::string_view> documents;
  auto add = [&](std::string_view document) {
    while (!document.empty() && (document.front() == '\n' || document.front() == '\r')) {
      document.remove_prefix(1);
    }
    while (!document.empty() && (document.back() == '\n' || document.back() == '\r')) {
      document.remove_suffix(1);
    }
    if (!document.empty()) documents.push_back(document);
  };
  if (separator.empty()) {
    if (!text.empty()) documents.push_back(text);
    return documents;
  }
  size_t begin = 0;
  for (size_t at = 0; (at = text.find(separator, at)) != std::string_view::npos;) {
    const size_t end = at + separator.size();
    const bool line_begins = at == 0 || text[at - 1] == '\n';
    const bool line_ends = end == text.size() || text[end] == '\n' || text[end] == '\r';
    if (line_begins && line_ends) {
      add(text.substr(begin, at - begin));
      begin = end;
    }
    at = end;
  }
  add(text.substr(begin));
  return documents;
}

// Tokens in memory or in a mapped file, 2 or 4 bytes each.
struct Corpus::Storage {
  std::vector<int32_t> memory;
  std::unique_ptr<MappedFile> file;
  const std::byte* data = nullptr;
  size_t width = 4;
};

Corpus Corpus::from_documents(const std::vector<std::vector<int32_t>>& documents) {
  Corpus corpus;
  auto storage = std::make_shared<Storage>();
  for (const auto& document : documents) {
    if (document.empty()) continue;
    corpus.index_.push_back({corpus.tokens_, static_cast<int64_t>(document.size())});
    corpus.tokens_ += static_cast<int64_t>(document.size());
    storage->memory.insert(storage->memory.end(), document.begin(), document.end());
  }
  storage->data = reinterpret_cast<const std::byte*>(storage->memory.data());
  corpus.storage_ = std::move(storage);
  return corpus;
}

Corpus Corpus::from_texts(const std::vector<std::string>& texts, const TextCodec& codec) {
  std::vector<std::vector<int32_t>> documents;
  for (const auto& text : texts) documents.push_back(codec.encode(text));
  return from_documents(documents);
}

Corpus Corpus::open(const std::string& path) {
  auto storage = std::make_shared<Storage>();
  storage->file = std::make_unique<MappedFile>(path);
  const auto bytes = storage->file->bytes();
  Header header{};
  if (bytes.size() >= sizeof(header)) std::memcpy(&header, bytes.data(), sizeof(header));
  const uint64_t most = bytes.size();  // no count can exceed the file's bytes
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0 ||
      (header.width != 2 && header.width != 4) || header.documents > most || header.tokens > most ||
      bytes.size() !=
          sizeof(header) + header.documents * sizeof(uint64_t) + header.tokens * header.width) {
    throw Error("{}: not a whole token file; remove it, it will be made again", path);
  }
  Corpus corpus;
  const std::byte* at = bytes.data() + sizeof(header);
  for (uint64_t n = 0; n < header.documents; ++n, at += sizeof(uint64_t)) {
    uint64_t length;
    std::memcpy(&length, at, sizeof(length));
    if (length > header.tokens - static_cast<uint64_t>(corpus.tokens_)) {
      throw Error("{}: document {} is longer than the file; remove it", path, n);
    }
    corpus.index_.push_back({corpus.tokens_, static_cast<int64_t>(length)});
    corpus.tokens_ += static_cast<int64_t>(length);
  }
  storage->data = at;
  storage->width = header.width;
  corpus.storage_ = std::move(storage);
  return corpus;
}

Corpus Corpus::load(const std::vector<std::string>& files, const TextCodec& codec,
                    const CorpusOptions& options, Progress& progress) {
  if (files.empty()) throw UsageError("a corpus needs at least one file");
  progress.begin("reading text", static_cast<int64_t>(files.size()));
  std::vector<std::string> texts(files.size());
  std::atomic<int64_t> read{0};
  for_each_parallel(static_cast<int64_t>(files.size()), options.threads, [&](int64_t n) {
    texts[n] = read_text_file(files[n]);
    read.fetch_add(1);
  });
  progress.update(read.load());
  progress.end();

  std::string path;
  if (!options.cache.empty()) {
    uint64_t hash = hash_bytes(hash_bytes(1, codec.hash), options.separator);
    for (const auto& text : texts) hash = hash_bytes(hash, text);
    path = (fs::path(options.cache) / fmt::format("{:016x}.tokens", hash)).string();
    if (fs::exists(path)) return open(path);
  }

  std::vector<std::string_view> documents;
  for (const auto& text : texts) {
    const auto more = split_documents(text, options.separator);
    documents.insert(documents.end(), more.begin(), more.end());
  }
  progress.begin("tokenising", static_cast<int64_t>(documents.size()));
  std::vector<std::vector<int32_t>> tokens(documents.size());
  std::atomic<int64_t> done{0};
  std::mutex reporting;
  for_each_parallel(static_cast<int64_t>(documents.size()), options.threads, [&](int64_t n) {
    tokens[n] = codec.encode(documents[n]);
    check_ids(tokens[n], codec.vocab_size);
    const int64_t finished = done.fetch_add(1) + 1;
    const std::lock_guard lock(reporting);
    progress.update(finished);
  });
  progress.end();
  int64_t total = 0;
  for (const auto& ids : tokens) total += static_cast<int64_t>(ids.size());
  if (total == 0) throw Error("{}: holds no text", files.front());
  if (path.empty()) return from_documents(tokens);

  make_folders(options.cache);
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.width = codec.vocab_size > 0 && codec.vocab_size <= 65536 ? 2 : 4;
  header.documents = tokens.size();
  header.tokens = static_cast<uint64_t>(total);
  AtomicFile file(path);
  file.write(&header, sizeof(header));
  for (const auto& ids : tokens) {
    const uint64_t length = ids.size();
    file.write(&length, sizeof(length));
  }
  for (const auto& ids : tokens) {
    if (header.width == 2) {
      const std::vector<uint16_t> narrow(ids.begin(), ids.end());
      file.write(narrow.data(), narrow.size() * sizeof(uint16_t));
    } else {
      file.write(ids.data(), ids.size() * sizeof(int32_t));
    }
  }
  file.commit();
  return open(path);
}

void Corpus::copy(int64_t document, int64_t begin, std::span<int32_t> out) const {
  const int64_t from = index_[document].begin + begin;
  const std::byte* at = storage_->data + from * static_cast<int64_t>(storage_->width);
  if (storage_->width == 4) {
    std::memcpy(out.data(), at, out.size_bytes());
    return;
  }
  for (size_t n = 0; n < out.size(); ++n, at += 2) {
    uint16_t id;
    std::memcpy(&id, at, 2);
    out[n] = id;
  }
}

std::vector<int32_t> Corpus::slice(int64_t document, int64_t begin, int64_t count) const {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  copy(document, begin, tokens);
  return tokens;
}

Corpus Corpus::subset(const std::vector<int64_t>& documents) const {
  Corpus part;
  part.storage_ = storage_;
  for (const int64_t document : documents) {
    part.index_.push_back(index_[document]);
    part.tokens_ += index_[document].length;
  }
  return part;
}

std::pair<Corpus, Corpus> Corpus::hold_out(int64_t count, uint64_t seed) const {
  if (count < 0 || count >= documents()) {
    throw UsageError("cannot hold out {} of {} documents", count, documents());
  }
  std::vector<int64_t> order(static_cast<size_t>(documents()));
  for (size_t n = 0; n < order.size(); ++n) order[n] = static_cast<int64_t>(n);
  Random random(seed, 0x686f6c64);  // "hold"
  random.shuffle(order);
  std::vector<int64_t> held(order.begin(), order.begin() + count);
  std::vector<int64_t> rest(order.begin() + count, order.end());
  std::sort(held.begin(), held.end());
  std::sort(rest.begin(), rest.end());
  return {subset(rest), subset(held)};
}

}  // namespace heed::data
