// Every command line of README.md, CONTRIBUTING.md, docs/, `--help` and the cards is run, on a
// model and sizes that take seconds, and what it leaves is looked at. A line that is not in the
// table below fails, and so does an entry that no document shows any more.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <sstream>

#include "documented_helper.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "run_heed.h"
#include "small_builtin.h"

namespace heed::test {
namespace documented_cli_test {

namespace fs = std::filesystem;

const fs::path kSource = HEED_SOURCE_DIR;

// What a run left behind.
struct Ran {
  fs::path folder;
  std::string out, err;

  Json json(const std::string& name) const { return read_json((folder / name).string()); }
  std::string file(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(folder / name, std::ios::binary).rdbuf();
    return text.str();
  }
};
using Check = std::function<void(const Ran&)>;

struct Entry {
  std::string line;  // as the documents have it (documented_helper.h says how it is tidied)
  // What a reader would put in place of a placeholder, and smaller sizes; each must occur.
  std::vector<std::pair<std::string, std::string>> with;
  std::string append;  // further options, for smaller sizes
  std::string before;  // shell line that makes what the command reads
  Check check;
  std::string reason;  // why it is run in another form than the one shown
};

Check says(const std::string& text) {
  return [text](const Ran& r) {
    EXPECT_NE(r.out.find(text), std::string::npos) << "looked for " << text << " in\n" << r.out;
  };
}

Check writes(const std::string& name, const std::vector<std::string>& keys) {
  return [name, keys](const Ran& r) {
    const Json json = r.json(name);
    for (const std::string& key : keys) EXPECT_TRUE(json.contains(key)) << name << ": " << key;
  };
}

Check both(const Check& a, const Check& b) {
  return [a, b](const Ran& r) {
    a(r);
    b(r);
  };
}

Check output_tensor(const std::string& name) {
  return [name](const Ran& r) {
    const TensorFile file = open_safetensors((r.folder / name).string());
    EXPECT_TRUE(file.find("out") != nullptr || file.find("logits") != nullptr) << name;
  };
}

Check gguf_written(const std::string& name) {
  return [name](const Ran& r) {
    EXPECT_EQ(r.file(name).substr(0, 4), "GGUF");
    EXPECT_NE(r.out.find(name + ": "), std::string::npos) << r.out;
  };
}

// A text that goes on, and the line of figures on the other stream.
void generated(const Ran& r) {
  EXPECT_GT(r.out.size(), 2u);
  EXPECT_NE(r.err.find("tokens generated"), std::string::npos) << r.err;
}

void plan_written(const Ran& r) {
  const Json plan = r.json("plan.json");
  EXPECT_EQ(plan.at("model").get<std::string>().size(), 64u);
  EXPECT_EQ(plan.at("heads").size(), 2u);
  EXPECT_NE(r.out.find("plan.json: "), std::string::npos) << r.out;
  EXPECT_NE(r.out.find("% of the dense cache at "), std::string::npos) << r.out;
}

void figures_shown(const Ran& r) {
  EXPECT_NE(r.out.find("importance"), std::string::npos);
  EXPECT_EQ(std::count(r.out.begin(), r.out.end(), '\n'), 3 + 2 * 6) << r.out;
}

void demo_written(const Ran& r) {
  const Json report = r.json("report/report.json");
  EXPECT_TRUE(report.contains("dense")) << report.dump().substr(0, 400);
  EXPECT_NE(r.file("report/report.html").find("</html>"), std::string::npos);
  EXPECT_NE(r.out.find("report/report.html"), std::string::npos) << r.out;
}

void trained(const Ran& r) {
  EXPECT_NE(r.out.find("model: "), std::string::npos) << r.out;
  const size_t begin = r.out.find("model: ") + 7;
  const std::string model = r.out.substr(begin, r.out.find('\n', begin) - begin);
  EXPECT_TRUE(fs::exists(r.folder / model / "model.safetensors")) << model;
}

void document_unchanged(const Ran& r) {
  std::ostringstream text;
  text << std::ifstream(kSource / "README.md").rdbuf();
  EXPECT_EQ(r.file("README.md"), text.str());
}

const std::string kPlan =
    "heed plan model --budget 0.5 --method uniform --out plan.json > /dev/null; ";
const std::string kText = "cp $SOURCE/tests/data/books.txt book.txt; ";
const std::string kTensors = "cp $TENSORS/in.safetensors .; ";
const std::string kRecords = "cp $SOURCE/bench/results/AMD-EPYC/2026-11-22-kernels.json k.json; ";
const std::string kConfig =
    "printf 'out = \"run\"\\n[model]\\nhidden = 32\\nintermediate = 64\\nlayers = 1\\nheads = 2\\n"
    "kv_heads = 1\\nhead_dim = 16\\n[tokenizer]\\nvocab_size = 300\\n[data]\\ntrain = "
    "[\"book.txt\"]\\nlength = 64\\n[train]\\nsteps = 2\\nrows = 2\\nwarmup = 1\\n[validation]\\n"
    "rows = 1\\n' > config.toml; ";
const std::string kTinyShape =
    " --set model.hidden=32 --set model.intermediate=64 --set model.layers=1 --set model.heads=2 "
    "--set model.kv_heads=1 --set model.head_dim=16 --set tokenizer.vocab_size=300 --set "
    "data.length=256 --set train.rows=2 --set train.rows_per_pass=2 --set train.warmup=1 --set "
    "validation.rows=1 --set validation.recall_samples=0 --set train.steps=2";
const std::string kSmallPlan = " --texts 1 --candidates 2 --repairs 0 --lengths 256";
const std::string kSmallEval = " --texts 1 --documents 1 --questions 1";
const std::string kTasks =
    "echo '{\"kind\": \"names\", \"prompt\": \"Ann and\", \"answer\": \" Bob\"}' > tasks.jsonl; ";
const std::string kSmallDemo =
    " --model model --context 256 --budgets 0.5 --controls 1 --documents 1 --needles 2 --repairs 0";
const std::string kSmallBench = " --quick --peers none";

const char* kSeconds = "smaller sizes, so that it takes seconds";
const char* kNetwork = "the model is on a network";
const char* kGpu = "there need not be a GPU";

std::vector<Entry> demos() {
  return {
      {"heed demo", {}, " --quick" + kSmallDemo, "", demo_written, kNetwork},
      {"heed demo --quick", {}, kSmallDemo, "", demo_written, kNetwork},
      {"git clone <this repository> heed && cd heed",
       {{"git clone <this repository>",
         "git -c safe.directory='*' clone -q --no-checkout file://$SOURCE"}},
       " && git rev-parse --verify HEAD",
       "",
       [](const Ran& r) { EXPECT_GE(r.out.size(), 40u); },
       "the repository is the one that is tested"},
  };
}

std::vector<Entry> measuring() {
  const std::pair<std::string, std::string> model{"MODEL", "model"}, smollm2{"smollm2", "model"};
  return {
      {"heed inspect MODEL --data TEXT",
       {model, {"TEXT", "book.txt"}},
       " --context 256",
       kText,
       figures_shown,
       kSeconds},
      {"heed inspect smollm2 --context 2048",
       {smollm2, {"2048", "256"}},
       "",
       "",
       figures_shown,
       kNetwork},
      // The line itself, at the length that the model has: what is left out must have a value.
      {"heed plan MODEL --budget 0.3",
       {model},
       " --texts 1 --candidates 2 --repairs 0",
       "",
       plan_written,
       kSeconds},
      {"heed plan smollm2 --budget 0.3 --lengths 4096 --out plan.json",
       {smollm2, {" --lengths 4096", kSmallPlan}},
       "",
       "",
       plan_written,
       kNetwork},
      {"heed eval MODEL [--plan P]",
       {model, {"P", "plan.json"}},
       kSmallEval + " --lengths 256 --out eval.json",
       kPlan,
       both(writes("eval.json", {"lengths", "model"}), says("perplexity")),
       kSeconds},
      {"heed eval smollm2 --plan plan.json --lengths 4096",
       {smollm2, {"4096", "256"}},
       kSmallEval,
       kPlan,
       says("perplexity"),
       kNetwork},
      {"heed eval smollm2 --plan plan.json --data book.txt articles.txt --texts 8",
       {smollm2, {"--texts 8", "--texts 1 --documents 0 --lengths 256"}},
       "",
       kPlan + kText + "cp $SOURCE/tests/data/heldout.txt articles.txt; ",
       both(says("articles"), says("worst text")),
       kNetwork},
      {"heed eval smollm2 --tasks tasks.jsonl",
       {smollm2},
       " --texts 1 --lengths 256",
       kTasks,
       says("names"),
       kNetwork},
      {"heed eval smollm2 --plan bench/plans/smollm2-0.25.json",
       {smollm2, {"bench/plans/smollm2-0.25.json", "plan.json"}},
       kSmallEval + " --lengths 256",
       "test -f $SOURCE/bench/plans/smollm2-0.25.json && " + kPlan,
       says("perplexity"),
       kNetwork},
  };
}

std::vector<Entry> generating() {
  const std::pair<std::string, std::string> model{"MODEL", "model"}, smollm2{"smollm2", "model"};
  return {
      {"heed generate MODEL -p TEXT [--plan P]",
       {model, {"TEXT", "'One day'"}, {"P", "plan.json"}},
       " -n 8",
       kPlan,
       generated,
       kSeconds},
      {"heed generate smollm2 --plan plan.json -p \"Once upon a time\"",
       {smollm2},
       " -n 8",
       kPlan,
       generated,
       kNetwork},
      {"heed generate smollm2 --chat -p \"What is the capital of France?\"",
       {smollm2},
       " -n 8",
       "",
       generated,
       kNetwork},
      {"heed generate runs/builtin/model -p \"It was a dark and stormy night\"",
       {{"runs/builtin/model", "model"}},
       " -n 8",
       "",
       generated,
       "training takes a GPU"},
      {"heed generate smollm2 --file - < story.txt",
       {smollm2},
       " -n 8",
       "head -c 300 $SOURCE/tests/data/books.txt > story.txt; ",
       generated,
       kNetwork},
      {"heed generate smollm2 --prompts questions.txt --json",
       {smollm2},
       " -n 4",
       "printf 'Who?\\n\\nThe sea\\n' > questions.txt; ",
       [](const Ran& r) {
         const Json all = parse_json(r.out, "texts");
         ASSERT_EQ(all.size(), 2u);
         EXPECT_EQ(all[1].at("prompt"), "The sea");
         EXPECT_EQ(all[1].at("tokens").size(), 4u);
       },
       kNetwork},
      {"heed quantize MODEL --type q4_0 --out FILE.gguf",
       {model, {"FILE.gguf", "m.gguf"}},
       "",
       "",
       gguf_written("m.gguf"),
       ""},
      {"heed quantize smollm2 --type q4_0 --out smollm2-q4_0.gguf",
       {smollm2},
       "",
       "",
       gguf_written("smollm2-q4_0.gguf"),
       kNetwork},
      {"heed models", {}, "", "", says("builtin"), ""},
      {"heed info MODEL", {model}, "", "", says("plan hash"), ""},
      {"heed info smollm2 --json",
       {smollm2},
       "",
       "",
       [](const Ran& r) {
         EXPECT_EQ(parse_json(r.out, "info").at("plan_hash").get<std::string>().size(), 64u);
       },
       kNetwork},
  };
}

std::vector<Entry> mechanisms() {
  const std::string in = "in.safetensors", out = "out.safetensors";
  return {
      {"heed list", {}, "", "", says("systems, "), ""},
      {"heed list --family linear", {}, "", "", says("linear-attention"), ""},
      {"heed show ID", {{"ID", "gla"}}, "", "", says("heed apply gla"), ""},
      {"heed show NAME", {{"NAME", "gla"}}, "", "", says("heed apply gla"), ""},
      {"heed show X", {{"X", "gla"}}, "", "", says("heed apply gla"), ""},
      {"heed show gla", {}, "", "", says("heed apply gla"), ""},
      {"heed backends ENGINE", {{"ENGINE", "ewscan"}}, "", "", says("ewscan: "), ""},
      {"heed backends ewscan --shape T=4096,C=1024", {}, "", "", says("  backend "), ""},
      {"heed show linear-attention", {}, "", "", says("heed apply linear-attention"), ""},
      {"heed apply ID",
       {{"ID", "gla"}},
       " --in in.safetensors --out out.safetensors",
       kTensors,
       output_tensor(out),
       ""},
      {"heed apply ID --in IN.safetensors --out OUT.safetensors [--form "
       "naive|parallel|chunked|recurrent] [--device cpu|cuda] [--dtype "
       "float32|bfloat16|float16|float64] [--set key=value]... [--grad]",
       {{"ID", "gla"}, {"IN", "in"}, {"OUT", "out"}, {"key=value", "scale=0.5"}},
       "",
       "cp $TENSORS/grad.safetensors in.safetensors; ",
       output_tensor(out),
       ""},
      {"heed apply model --model MODEL --in IN.safetensors --out OUT.safetensors [--plan "
       "PLAN.json] "
       "[--set cache=true] [--set prefill=N] [--set greedy=N]",
       {{"MODEL", "model"},
        {"IN", "in"},
        {"OUT", "out"},
        {"PLAN", "plan"},
        {"=N", "=3"},
        {"=N", "=3"}},
       "",
       "cp $TENSORS/ids.safetensors in.safetensors; " + kPlan,
       output_tensor(out),
       ""},
      {"heed apply gla --in in.safetensors --out out.safetensors",
       {},
       "",
       kTensors,
       output_tensor(out),
       ""},
      {"heed apply gla --in in.safetensors --out reference.safetensors --form naive --dtype "
       "float64",
       {},
       "",
       kTensors,
       output_tensor("reference.safetensors"),
       ""},
      {"echo '[\"Hello\"]' | heed tokenize smollm2 --in - --out -",
       {{"smollm2", "model"}},
       "",
       "",
       [](const Ran& r) { EXPECT_FALSE(parse_json(r.out, "ids").at(0).empty()); },
       kNetwork},
  };
}

std::vector<Entry> timing() {
  const std::string few = " --quick --filter 'gla/decode'";
  return {
      {"heed bench kernels", {}, few + " --peers none", "", says("scan/gla/decode"), kSeconds},
      {"heed bench kernels --quick",
       {},
       " --filter 'gla/decode' --peers none",
       "",
       says("scan/gla/decode"),
       kSeconds},
      {"heed bench kernels --filter 'attend/forward.*D64'",
       {},
       kSmallBench,
       "",
       says("attend/forward/"),
       kSeconds},
      {"heed bench kernels --threads 1 --json k.json",
       {},
       few + " --peers none",
       "",
       writes("k.json", {"machine", "records"}),
       kSeconds},
      {"heed bench kernels --device cuda",
       {{"cuda", "cpu"}},
       few + " --peers none",
       "",
       says("scan/gla/decode"),
       kGpu},
      {"heed bench mixers",
       {},
       " gla urpe --quick --tokens 64",
       "",
       says("mixer/urpe/parallel/T64"),
       kSeconds},
      {"heed bench mixers gla mamba --tokens 4096",
       {{"4096", "64"}},
       " --quick",
       "",
       says("mixer/mamba/chunked/T64"),
       kSeconds},
      {"heed bench model MODEL",
       {{"MODEL", "model"}},
       kSmallBench + " --context 32 --steps 2",
       "",
       says("model/model/generate"),
       kSeconds},
      {"heed bench model smollm2 --context 4096 --plan plan.json --json m.json",
       {{"smollm2", "model"}, {"4096", "64"}},
       kSmallBench + " --steps 2",
       kPlan,
       writes("m.json", {"machine", "records"}),
       kNetwork},
      {"heed bench model bench/models/gla-100m.json --random --context 256 --batch 8 --peers none",
       {{"bench/models", "$SOURCE/bench/models"}, {"256", "16"}},
       " --quick --steps 1",
       "",
       says("N16-B8"),
       kSeconds},
      {"heed bench model smollm2 --plan bench/plans/smollm2-0.25.json",
       {{"smollm2", "model"}, {"bench/plans/smollm2-0.25.json", "plan.json"}},
       kSmallBench + " --context 64 --steps 2",
       kPlan,
       says("/plan"),
       kNetwork},
      {"heed bench model smollm2 --device cuda",
       {{"smollm2", "model"}, {"cuda", "cpu"}},
       kSmallBench + " --context 32 --steps 2",
       "",
       says("model/model/generate"),
       kGpu},
      {"heed bench table k.json --filter 'scan/.*forward'", {}, "", kRecords, says("| `scan/"), ""},
      {"heed bench table --into README.md",
       {},
       "",
       "cp $SOURCE/README.md .; ln -s $SOURCE/bench bench; ",
       document_unchanged,
       ""},
  };
}

std::vector<Entry> training() {
  const std::string books =
      "mkdir -p examples; cp $SOURCE/examples/builtin.toml examples; " + kText +
      "mkdir books; xz -c book.txt > books/train-00.txt.xz; for f in train-01 train-02 train-03 "
      "valid test; do cp books/train-00.txt.xz books/$f.txt.xz; done; ";
  return {
      {"heed train CONFIG.toml", {{"CONFIG", "config"}}, "", kText + kConfig, trained, ""},
      {"heed train CONFIG.toml [--resume] [--device cpu|cuda] [--out FOLDER] [--set KEY=VALUE]... "
       "[--threads N] [--json]",
       {{"CONFIG", "config"}, {"FOLDER", "run"}, {"KEY=VALUE", "train.steps=3"}, {"N", "1"}},
       "",
       kText + kConfig + "heed train config.toml --out run > /dev/null && ",
       [](const Ran& r) { EXPECT_TRUE(parse_json(r.out, "report").is_object()) << r.out; },
       ""},
      {"heed train --keys", {}, "", "", says("| `train.steps` |"), ""},
      {"heed tokenizer train --data FILES... [--separator LINE] [--vocab-size 8192] --out FOLDER",
       {{"FILES", "book.txt"}, {"LINE", "'<|endofbook|>'"}, {"8192", "300"}, {"FOLDER", "made"}},
       "",
       kText,
       writes("made/tokenizer.json", {"model"}),
       kSeconds},
      {"heed tokenizer train --data book.txt --vocab-size 4096 --out my-tokenizer",
       {{"4096", "300"}},
       "",
       kText,
       writes("my-tokenizer/tokenizer.json", {"model"}),
       kSeconds},
      {"export HEED_BOOKS=/path/to/books",
       {{"/path/to/books", "books"}},
       " && heed train examples/builtin.toml --device cpu" + kTinyShape,
       books,
       trained,
       "the line below it uses what it sets"},
      {"heed train examples/builtin.toml --device cuda",
       {{"cuda", "cpu"}},
       kTinyShape,
       books + "export HEED_BOOKS=books; ",
       trained,
       kGpu},
      {"heed train examples/builtin.toml --out runs/tiny --set 'data.train=[\"my-novel.txt\"]' "
       "--set "
       "'data.valid=[]' --set 'data.test=[]' --set data.separator= --set data.length=256 --set "
       "tokenizer.vocab_size=1024 --set validation.recall_samples=0 --set model.hidden=128 --set "
       "model.intermediate=256 --set model.layers=2 --set model.heads=4 --set model.kv_heads=2 "
       "--set "
       "model.head_dim=32 --set train.steps=200 --set train.rows=4 --set train.warmup=20",
       {{"train.steps=200", "train.steps=2"}},
       " --set train.warmup=1",
       books + "cp book.txt my-novel.txt; ",
       trained,
       kSeconds},
  };
}

std::vector<Entry> building() {
  const std::string script = "grep -qF -- ";
  return {
      {".ci/run",
       {{".ci/run", "test -x $SOURCE/.ci/run && bash -n $SOURCE/.ci/run && echo fine"}},
       "",
       "",
       says("fine"),
       "it runs this test itself"},
      {"cmake --preset debug && ninja -C build/debug test_io && build/debug/bin/test_io",
       {{"cmake --preset debug && ninja -C build/debug test_io && build/debug/bin/test_io",
         "cd $SOURCE && cmake --list-presets"}},
       "",
       "",
       says("\"debug\""),
       "a build takes minutes; this one is made by the same presets"},
      {"cmake -S . -B build/kernels -G Ninja -DHEED_TORCH=OFF -DHEED_TESTS=OFF",
       {{"cmake -S . -B build/kernels -G Ninja -DHEED_TORCH=OFF -DHEED_TESTS=OFF",
         script + "'-DHEED_TORCH=OFF -DHEED_TESTS=OFF' $SOURCE/tests/setup/embed_test.sh && echo "
                  "there"}},
       "",
       "",
       says("there"),
       "tests/setup/embed_test.sh runs it"},
      {"ninja -C build/kernels heed_kernel",
       {{"ninja -C build/kernels heed_kernel",
         script + "heed_kernel $SOURCE/tests/setup/embed_test.sh && echo there"}},
       "",
       "",
       says("there"),
       "tests/setup/embed_test.sh runs it"},
      {"cmake --install build/kernels --component kernels --prefix PREFIX",
       {{"cmake --install build/kernels --component kernels --prefix PREFIX",
         script +
             "'--component kernels --prefix' $SOURCE/tests/setup/embed_test.sh && echo there"}},
       "",
       "",
       says("there"),
       "tests/setup/embed_test.sh runs it"},
      {"heed VERB --help",
       {{"heed VERB --help",
         "for v in $(heed --help | sed -n '/^Subcommands/,$s/^  \\([a-z]\\+\\).*/\\1/p'); do heed "
         "$v --help > /dev/null && echo \"$v helps\"; done"}},
       "",
       "",
       both(says("plan helps"), says("tokenizer helps")),
       "for every verb"},
  };
}

// The launcher's own verbs work on a machine, not on a model: tests/setup/launcher_test.sh runs
// them on a copy of the launcher. The second is what that script must hold.
const std::vector<std::pair<std::string, std::string>>& launcher_lines() {
  static const std::vector<std::pair<std::string, std::string>> lines = {
      {"heed test", "./heed test"},
      {"heed test -R attend", "./heed test -R attend"},
      {"heed test -L unit", "./heed test -R attend"},
      {"heed test --all", "./heed test --all"},
      {"heed test [--all] [ctest arguments]", "./heed test --all"},
      {"heed doctor", "./heed doctor"},
      {"heed clean", "./heed clean"},
      {"heed clean [--all]", "./heed clean --all"},
      {"heed setup", "./heed setup"},
      {"heed build", "./heed build"},
      {"heed VERB ...", "./heed show"},
  };
  return lines;
}

const std::vector<Entry>& table() {
  static const std::vector<Entry> all = [] {
    std::vector<Entry> out;
    for (auto part : {demos, measuring, generating, mechanisms, timing, training, building}) {
      for (Entry& entry : part()) out.push_back(std::move(entry));
    }
    return out;
  }();
  return all;
}

const Entry* find(const std::string& line) {
  for (const Entry& entry : table()) {
    if (entry.line == line) return &entry;
  }
  return nullptr;
}

void write_tensors(const std::string& path,
                   const std::vector<std::pair<std::string, std::vector<int64_t>>>& shapes) {
  std::vector<std::vector<float>> values;
  std::vector<TensorInfo> tensors;
  values.reserve(shapes.size());
  for (const auto& [name, shape] : shapes) {
    TensorInfo info;
    info.name = name;
    info.shape = shape;
    values.emplace_back(static_cast<size_t>(info.elements()));
    for (size_t i = 0; i < values.back().size(); ++i) {
      const float x = static_cast<float>((i * 7919 + shapes.size()) % 1000) / 1000.0f;
      values.back()[i] = name == "log_decay" ? -0.1f * x : x - 0.5f;
    }
    info.data = reinterpret_cast<const std::byte*>(values.back().data());
    info.bytes = values.back().size() * sizeof(float);
    tensors.push_back(info);
  }
  write_safetensors(path, tensors);
}

class DocumentedLines : public CliTest, public testing::WithParamInterface<size_t> {
 protected:
  // The small built-in model with a chat template, as `model`; the tensors of `heed apply gla`
  // beside it.
  void SetUp() override {
    const fs::path model = folder_ / "model";
    make_small_builtin(model);
    Json tokenizer = read_json((model / "tokenizer_config.json").string());
    fs::remove(model / "tokenizer_config.json");  // a link
    tokenizer["chat_template"] = "{% for m in messages %}{{ m.content }}\n{% endfor %}";
    std::ofstream(model / "tokenizer_config.json") << tokenizer.dump();
    fs::create_directories(folder_ / "tensors");
    std::vector<std::pair<std::string, std::vector<int64_t>>> shapes = {
        {"q", {1, 20, 2, 16}},
        {"k", {1, 20, 2, 16}},
        {"v", {1, 20, 2, 16}},
        {"log_decay", {1, 20, 2, 16}}};
    write_tensors(path("tensors/in.safetensors"), shapes);
    shapes.emplace_back("grad_out", std::vector<int64_t>{1, 20, 2, 16});
    write_tensors(path("tensors/grad.safetensors"), shapes);
    const std::vector<int64_t> ids = {5, 60, 700, 8000, 9, 10, 11, 12};
    TensorInfo info;
    info.name = "input_ids";
    info.dtype = DType::I64;
    info.shape = {1, static_cast<int64_t>(ids.size())};
    info.data = reinterpret_cast<const std::byte*>(ids.data());
    info.bytes = ids.size() * sizeof(int64_t);
    write_safetensors(path("tensors/ids.safetensors"), {info});
  }

  // A shell line in the test's folder, where `heed` is the program.
  int shell(const std::string& line, Ran& ran) const {
    const std::string script = path("line.sh");
    std::ofstream(script) << "heed() { \"" << HEED_BINARY_DIR << "/bin/heed\" \"$@\"; }\n"
                          << "SOURCE=" << kSource.string() << "; TENSORS=tensors\n"
                          << "export HEED_RECORDS=records.sqlite HEED_HOME=$SOURCE\n"
                          << line << "\n";
    const int status = std::system(("cd " + folder_.string() + " && bash " + script +
                                    " > stdout.txt 2> stderr.txt < /dev/null")
                                       .c_str());
    ran.folder = folder_;
    ran.out = ran.file("stdout.txt");
    ran.err = ran.file("stderr.txt");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
};

TEST_P(DocumentedLines, Runs) {
  const Entry& entry = table()[GetParam()];
  std::string line = first_choice(entry.line);
  for (const auto& [from, to] : entry.with) {
    const size_t at = line.find(from);
    ASSERT_NE(at, std::string::npos) << entry.line << " has no " << from;
    line.replace(at, from.size(), to);
  }
  // Further options come before a redirection.
  const size_t redirected = line.find(" < ");
  line.insert(std::min(redirected, line.size()), entry.append);
  Ran ran;
  const int code = shell(entry.before + line, ran);
  ASSERT_EQ(code, 0) << entry.line << "\nran as " << line << "\n" << ran.out << ran.err;
  entry.check(ran);
}

std::string name_of(const testing::TestParamInfo<size_t>& info) {
  std::string name;
  for (const char c : table()[info.param].line) {
    if (std::isalnum(static_cast<unsigned char>(c))) {
      name += c;
    } else if (!name.empty() && name.back() != '_') {
      name += '_';
    }
  }
  return std::to_string(info.param) + "_" + name.substr(0, 60);
}

INSTANTIATE_TEST_SUITE_P(All, DocumentedLines, testing::Range(size_t{0}, table().size()), name_of);

// Lines that name a command and show no use of it: "heed plan", "heed bench kernels".
bool is_name(const std::string& line) {
  std::istringstream words(line);
  std::string word;
  int count = 0;
  while (words >> word) {
    for (const char c : word) {
      if (!std::islower(static_cast<unsigned char>(c))) return false;
    }
    ++count;
  }
  return count <= 3;
}

class Documents : public CliTest {};

TEST_F(Documents, ShowNoLineThatIsNotRun) {
  std::set<std::string> shown;
  std::vector<Documented> lines = documented_commands();
  ASSERT_GE(lines.size(), 80u);
  std::set<std::string> verbs;
  std::istringstream help(
      run_heed("--help").text.substr(run_heed("--help").text.find("Subcommands")));
  std::string row;
  while (std::getline(help, row)) {
    if (!row.starts_with("  ")) continue;
    const std::string verb = row.substr(2, row.find(' ', 2) - 2);
    verbs.insert(verb);
    const std::string text = run_heed(verb + " --help").text;
    const auto examples = examples_of(text, "heed " + verb + " --help");
    EXPECT_TRUE(!examples.empty() || text.find("Subcommands:") != std::string::npos ||
                verb == "models")
        << verb << " --help shows no example";
    lines.insert(lines.end(), examples.begin(), examples.end());
    for (const char* below : {"kernels", "model", "table", "train"}) {
      if (text.find(std::string("\n  ") + below + " ") == std::string::npos ||
          text.find("Subcommands:") == std::string::npos) {
        continue;
      }
      const auto more = examples_of(run_heed(verb + " " + below + " --help").text,
                                    "heed " + verb + " " + below + " --help");
      EXPECT_FALSE(more.empty()) << verb << " " << below;
      lines.insert(lines.end(), more.begin(), more.end());
    }
  }
  EXPECT_GE(verbs.size(), 15u);
  for (const Documented& line : lines) {
    shown.insert(line.text);
    if (find(line.text) != nullptr) continue;
    const auto& own = launcher_lines();
    if (std::any_of(own.begin(), own.end(), [&](const auto& l) { return l.first == line.text; })) {
      continue;
    }
    std::istringstream words(line.text);
    std::string first, verb;
    words >> first >> verb;
    EXPECT_TRUE(first == "heed" && is_name(line.text) && verbs.count(verb))
        << line.where << ": `" << line.text
        << "` is run by no test; add it to the table of tests/cli/documented_cli_test.cc";
  }
  for (const Entry& entry : table()) {
    EXPECT_TRUE(shown.count(entry.line)) << "no document shows `" << entry.line << "` any more";
  }
}

// Cards' lines are run by tests/mixer/apply_cli_test.cc, on tensors that it makes from the card.
TEST_F(Documents, CardsAreTriedByTheirOwnTest) {
  const Json cards = parse_json(run_heed("list --status ready --json").text, "heed list");
  ASSERT_GE(cards.size(), 10u);
  std::string ids;
  for (const Json& card : cards) ids += " " + card.at("id").get<std::string>();
  const Json all = parse_json(run_heed("show" + ids + " --json").text, "heed show");
  ASSERT_EQ(all.size(), cards.size());
  for (size_t i = 0; i < cards.size(); ++i) {
    const std::string id = cards[i].at("id"), line = all[i].at("try");
    EXPECT_EQ(all[i].at("id"), id);
    EXPECT_TRUE(
        line.starts_with("heed apply " + id + " --in IN.safetensors --out OUT.safetensors") ||
        find(line) != nullptr)
        << id << ": `" << line << "`";
  }
}

TEST_F(Documents, TheLaunchersLinesAreRunByItsOwnTest) {
  std::ostringstream script;
  script << std::ifstream(kSource / "tests/setup/launcher_test.sh").rdbuf();
  for (const auto& [line, run] : launcher_lines()) {
    EXPECT_NE(script.str().find(run), std::string::npos) << line << ": no " << run;
  }
}

}  // namespace documented_cli_test
}  // namespace heed::test
