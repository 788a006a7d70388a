// Corpora, packing, records and the Kneser-Ney baseline.
#include "data/corpus.h"

#include <gtest/gtest.h>
#include <sqlite3.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "data/kneser_ney.h"
#include "data/packing.h"
#include "data/records.h"
#include "io/error.h"

namespace heed::data {
namespace corpus_test {

namespace fs = std::filesystem;

const std::string kBooks = HEED_SOURCE_DIR "/tests/data/books.txt";
const std::string kHeldOut = HEED_SOURCE_DIR "/tests/data/heldout.txt";

struct Folder {
  fs::path path = fs::temp_directory_path() / fs::path("heed-data-" + std::to_string(::getpid()));
  Folder() { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
};

Corpus random_corpus(const std::vector<int64_t>& lengths) {
  std::vector<std::vector<int32_t>> documents;
  int32_t next = 0;
  for (const int64_t length : lengths) {
    documents.emplace_back();
    for (int64_t n = 0; n < length; ++n) documents.back().push_back(next++);
  }
  return Corpus::from_documents(documents);
}

TEST(Corpus, SplitsAtSeparatorLinesOnly) {
  const auto documents = split_documents("a\n<|x|>\nb <|x|> c\n\n<|x|>\r\nd\n<|x|>\n", "<|x|>");
  EXPECT_EQ(documents, (std::vector<std::string_view>{"a", "b <|x|> c", "d"}));
  EXPECT_EQ(split_documents("a\n<|x|>\nb", "").size(), 1u);
  EXPECT_TRUE(split_documents("", "").empty());
}

TEST(Corpus, CacheHoldsTheSameTokensForAnyNumberOfThreads) {
  const Folder folder;
  const auto codec = byte_codec();
  const auto memory = Corpus::load({kBooks, kHeldOut}, codec, {.separator = "<|endofbook|>"});
  ASSERT_EQ(memory.documents(), 4);
  for (const int threads : {1, 3}) {
    const CorpusOptions options{"<|endofbook|>", (folder.path / std::to_string(threads)).string(),
                                threads};
    for (int round = 0; round < 2; ++round) {  // made, then read
      const auto cached = Corpus::load({kBooks, kHeldOut}, codec, options);
      ASSERT_EQ(cached.documents(), memory.documents());
      ASSERT_EQ(cached.tokens(), memory.tokens());
      for (int64_t d = 0; d < cached.documents(); ++d) {
        EXPECT_EQ(cached.slice(d, 0, cached.length(d)), memory.slice(d, 0, memory.length(d)));
      }
    }
  }
}

TEST(Corpus, AnotherTokenizerOrTextIsAnotherCacheFile) {
  const Folder folder;
  auto codec = byte_codec();
  const CorpusOptions options{"", folder.path.string(), 1};
  Corpus::load({kBooks}, codec, options);
  codec.hash = "other";
  Corpus::load({kBooks}, codec, options);
  Corpus::load({kHeldOut}, codec, options);
  int files = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(folder.path)) ++files;
  EXPECT_EQ(files, 3);
}

TEST(Corpus, RefusesABrokenCache) {
  const Folder folder;
  const CorpusOptions options{"", folder.path.string(), 1};
  Corpus::load({kHeldOut}, byte_codec(), options);
  for (const auto& entry : fs::directory_iterator(folder.path)) {
    fs::resize_file(entry.path(), fs::file_size(entry.path()) - 1);
  }
  EXPECT_THROW(Corpus::load({kHeldOut}, byte_codec(), options), Error);
}

TEST(Corpus, HoldsOutDocuments) {
  const auto corpus = random_corpus({10, 20, 30, 40});
  const auto [rest, held] = corpus.hold_out(1, 7);
  EXPECT_EQ(rest.documents(), 3);
  EXPECT_EQ(held.documents(), 1);
  EXPECT_EQ(rest.tokens() + held.tokens(), 100);
  EXPECT_THROW(corpus.hold_out(4, 7), UsageError);
}

// Over one epoch every token is an input once (but for the left-over), every target is the token
// that follows, and no piece crosses documents.
TEST(Packing, CoversTheCorpusOnce) {
  const auto corpus = random_corpus({1000, 3, 17, 64, 63, 65, 500, 1});
  Packing packing(corpus, {.length = 64, .seed = 3, .end_of_text = 5000});
  const int64_t rows = packing.rows_per_epoch();
  const auto batch = packing.batch(0, rows);
  ASSERT_EQ(static_cast<int64_t>(batch.ids.size()), rows * 64);
  EXPECT_GT(rows * 64, corpus.tokens() - 64);
  std::set<int32_t> seen;
  std::set<int32_t> lasts;  // the last token of each document
  int32_t last = -1;
  for (int64_t d = 0; d < corpus.documents(); ++d) {
    last += static_cast<int32_t>(corpus.length(d));
    lasts.insert(last);
  }
  for (size_t p = 0; p + 1 < batch.cu_seqlens.size(); ++p) {
    const int64_t begin = batch.cu_seqlens[p], end = batch.cu_seqlens[p + 1];
    ASSERT_LT(begin, end);
    EXPECT_LE(end - begin, batch.longest);
    for (int64_t n = begin; n < end; ++n) {
      const int32_t id = batch.ids[n];
      EXPECT_TRUE(seen.insert(id).second);
      EXPECT_EQ(batch.targets[n], lasts.contains(id) ? 5000 : id + 1);
      if (n + 1 < end) {
        EXPECT_EQ(batch.ids[n + 1], id + 1);
      }
    }
  }
}

TEST(Packing, RowsFollowFromSeedAndNumberAlone) {
  const auto codec = byte_codec();
  const auto corpus = Corpus::load({kBooks}, codec, {.separator = "<|endofbook|>"});
  const RecallGenerator recall(corpus, codec);
  const PackingOptions options{.length = 512, .seed = 1, .end_of_text = 256, .recall = 0.3};
  Packing one(corpus, options, &recall), two(corpus, options, &recall);
  const auto rows = one.batch(0, 1500);  // two epochs and more
  const auto late = two.batch(1203, 9);
  ASSERT_EQ(late.ids.size(), 9u * 512);
  EXPECT_TRUE(std::equal(late.ids.begin(), late.ids.end(), rows.ids.begin() + 1203 * 512));
  EXPECT_TRUE(
      std::equal(late.targets.begin(), late.targets.end(), rows.targets.begin() + 1203 * 512));
  const auto early = two.batch(7, 2);  // and back
  EXPECT_TRUE(std::equal(early.ids.begin(), early.ids.end(), rows.ids.begin() + 7 * 512));
  Packing other(corpus, {.length = 512, .seed = 2, .end_of_text = 256}, nullptr);
  EXPECT_NE(other.batch(0, 1).ids, two.batch(0, 1).ids);
}

TEST(Packing, RefusesWhatCannotBe) {
  EXPECT_THROW(Packing(random_corpus({10}), {.length = 64}), UsageError);
  EXPECT_THROW(Packing(random_corpus({1000}), {.length = 64, .recall = 0.5}), UsageError);
}

TEST(Packing, ValidationRowsAreSpreadAndFixed) {
  const auto corpus = random_corpus({1000, 100});
  const auto batches = validation_batches(corpus, 50, 10, 4, 5000);
  ASSERT_EQ(batches.size(), 3u);
  EXPECT_EQ(batches[0].ids.size(), 200u);
  EXPECT_EQ(batches[2].ids.size(), 100u);
  EXPECT_EQ(batches[0].ids[0], 0);
  EXPECT_EQ(batches[0].cu_seqlens, (std::vector<int64_t>{0, 50, 100, 150, 200}));
  EXPECT_GE(batches[2].ids[50], 1000 - 50);
}

TEST(Records, KeepsRunsMetricsAndResults) {
  const Folder folder;
  const std::string path = (folder.path / "deep" / "records.sqlite").string();
  int64_t run;
  {
    Records records(path);
    run = records.begin_run("train", "tiny", "runs/tiny", R"({"a":1})");
    const std::pair<std::string, double> values[] = {{"loss", 3.5}, {"lr", 1e-3}};
    records.add_metrics(run, 10, values);
    const std::pair<std::string, double> later[] = {{"loss", 2.5}};
    records.add_metrics(run, 20, later);
    records.put_result("model", "3.2", R"({"score":0.5})");
    records.put_result("model", "3.2", R"({"score":0.7})");
    records.finish_run(run, "interrupted");
  }
  Records records(path);
  ASSERT_EQ(records.runs("train").size(), 1u);
  EXPECT_TRUE(records.runs("eval").empty());
  EXPECT_EQ(records.runs()[0].status, "interrupted");
  EXPECT_EQ(records.find_run("runs/tiny")->id, run);
  EXPECT_FALSE(records.find_run("runs/other"));
  EXPECT_EQ(records.metrics(run, "loss").size(), 2u);
  records.resume_run(run, 10);
  ASSERT_EQ(records.metrics(run, "loss").size(), 1u);
  EXPECT_EQ(records.metrics(run, "loss")[0].value, 3.5);
  EXPECT_EQ(*records.get_result("model", "3.2"), R"({"score":0.7})");
  EXPECT_FALSE(records.get_result("model", "0.0"));
  EXPECT_EQ(records.results("model").size(), 1u);
}

TEST(Records, RefusesOtherFilesAndNewerSchemas) {
  const Folder folder;
  const std::string path = (folder.path / "x.sqlite").string();
  std::ofstream(path) << std::string(4096, 'x');
  EXPECT_THROW(Records{path}, Error);
  fs::remove(path);
  { Records make(path); }
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &db), SQLITE_OK);
  sqlite3_exec(db, "PRAGMA user_version=99", nullptr, nullptr, nullptr);
  sqlite3_close(db);
  EXPECT_THROW(Records{path}, Error);
}

// Probabilities sum to 1 after any context, and a bigram model agrees with the equations written
// out with maps.
TEST(KneserNey, IsADistributionAndFollowsTheEquations) {
  const int64_t vocab = 12;
  Random random(5);
  std::vector<std::vector<int32_t>> documents(3);
  for (auto& document : documents) {
    for (int n = 0; n < 400; ++n) {
      document.push_back(static_cast<int32_t>(random.below(3) * random.below(5)));
    }
  }
  const auto corpus = Corpus::from_documents(documents);
  for (const int order : {1, 2, 3, 5}) {
    const KneserNey model(corpus, order, vocab, 11);
    for (int trial = 0; trial < 50; ++trial) {
      std::vector<int32_t> context;
      for (int n = 0; n < 6; ++n) context.push_back(static_cast<int32_t>(random.below(vocab)));
      double sum = 0;
      for (int32_t w = 0; w < vocab; ++w) sum += model.probability(context, w);
      EXPECT_NEAR(sum, 1, 1e-12);
    }
  }

  std::map<std::pair<int, int>, int> bigrams;
  for (const auto& document : documents) {
    int before = 11;
    for (const int w : document) ++bigrams[{before, w}], before = w;
  }
  std::map<int, int> continuations;
  for (const auto& [gram, count] : bigrams) ++continuations[gram.second];
  auto discounts = [](const std::vector<int>& counts) {
    double n[5] = {};
    for (const int c : counts) {
      if (c <= 4) ++n[c];
    }
    const double y = n[1] > 0 ? n[1] / (n[1] + 2 * n[2]) : 0.5;
    std::vector<double> d(4);
    for (int c = 1; c <= 3; ++c) {
      d[c] = std::clamp(n[c] > 0 ? c - (c + 1) * y * n[c + 1] / n[c] : y, 0.0, double(c));
    }
    return d;
  };
  std::vector<int> high, low;
  for (const auto& [gram, count] : bigrams) high.push_back(count);
  for (const auto& [w, count] : continuations) low.push_back(count);
  const auto d2 = discounts(high), d1 = discounts(low);
  const KneserNey model(corpus, 2, vocab, 11);
  for (int c = 0; c < 9; ++c) {
    double total = 0, gamma = 0;
    for (const auto& [gram, count] : bigrams) {
      if (gram.first != c) continue;
      total += count;
      gamma += d2[std::min(count, 3)];
    }
    if (total == 0) continue;
    for (int w = 0; w < vocab; ++w) {
      double sum = 0, reserved = 0;
      for (const auto& [v, count] : continuations) sum += count, reserved += d1[std::min(count, 3)];
      const int own1 = continuations.contains(w) ? continuations[w] : 0;
      const double p1 =
          (own1 ? own1 - d1[std::min(own1, 3)] : 0) / sum + reserved / sum / double(vocab);
      const int own2 = bigrams.contains({c, w}) ? bigrams[{c, w}] : 0;
      const double p2 = (own2 ? own2 - d2[std::min(own2, 3)] : 0) / total + gamma / total * p1;
      EXPECT_NEAR(model.probability(std::array<int32_t, 1>{c}, w), p2, 1e-12);
    }
  }
}

TEST(KneserNey, HigherOrdersDoBetterOnText) {
  const auto codec = byte_codec();
  const auto train = Corpus::load({kBooks}, codec, {.separator = "<|endofbook|>"});
  const auto held = Corpus::load({kHeldOut}, codec);
  double before = std::log(257.0);
  for (const int order : {1, 2, 3, 4}) {
    const double now = KneserNey(train, order, 257, 256).cross_entropy(held);
    EXPECT_LT(now, before);
    before = now;
  }
  EXPECT_LT(before, 2.0);  // under 2.9 bits a byte
}

}  // namespace corpus_test
}  // namespace heed::data
