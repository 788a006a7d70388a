// Records, formulas, filters, the check of what was timed, and the tables of the documents. Nothing
// here depends on how fast anything is.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bench/kernels.h"
#include "bench/machine.h"
#include "bench/markdown.h"
#include "bench/model.h"
#include "bench/peer_process.h"
#include "io/error.h"
#include "io/text_file.h"
#include "tiny_model.h"

namespace heed::bench {
namespace bench_test {

Machine some_machine() {
  Machine m;
  m.device = "Some CPU";
  m.cores = m.threads = 2;
  m.copy_gbps = 40;
  m.read_gbps = 20;
  m.matmul_tflops = {{"float32", 0.5}};
  m.pytorch = "2.11.0";
  m.date = "2026-01-02T03:04:05Z";
  return m;
}

Record some_record() {
  Record r;
  r.name = "attend/forward/float32/T512-D64";
  r.op = "attend";
  r.pass = "forward";
  r.dtype = "float32";
  r.shape = {{"B", 1}, {"T", 512}};
  r.ms = 2;
  r.ms_min = 1.5;
  r.ms_max = 3;
  r.runs = 5;
  r.bytes = 20'000'000;
  r.flops = 400'000'000;
  r.error = 1e-7;
  PeerRecord timed;
  timed.name = "other";
  timed.version = "1";
  timed.ms = 5;
  PeerRecord absent;
  absent.name = "third";
  absent.reason = "it is not there";
  r.peers = {timed, absent};
  return r;
}

KernelOptions quick(const std::string& filter) {
  KernelOptions options;
  options.quick = true;
  options.filter = filter;
  return options;
}

TEST(BenchRecord, RatesAndFractionsFollowFromTheFigures) {
  const Json j = to_json(some_record(), some_machine());
  EXPECT_DOUBLE_EQ(j["gbps"].get<double>(), 10);
  EXPECT_DOUBLE_EQ(j["tflops"].get<double>(), 0.2);
  EXPECT_DOUBLE_EQ(j["of_copy"].get<double>(), 0.25);
  EXPECT_DOUBLE_EQ(j["of_read"].get<double>(), 0.5);
  EXPECT_DOUBLE_EQ(j["of_matmul"].get<double>(), 0.4);
  EXPECT_DOUBLE_EQ(j["peers"][0]["ratio"].get<double>(), 2.5);
  EXPECT_EQ(j["peers"][1]["reason"], "it is not there");
  EXPECT_FALSE(j["peers"][1].contains("ms"));
  Record half = some_record();
  half.dtype = "float16";
  EXPECT_TRUE(to_json(half, some_machine())["of_matmul"].is_null());
}

TEST(BenchRecord, HasEveryField) {
  const Json file = to_json(some_machine(), {some_record()});
  for (const char* field : {"device", "cores", "threads", "memory_gb", "copy_gbps", "read_gbps",
                            "matmul_tflops", "heed", "pytorch", "cuda", "compiler", "date"}) {
    EXPECT_TRUE(file["machine"].contains(field)) << field;
  }
  for (const char* field :
       {"op", "pass", "dtype", "shape", "ms", "ms_min", "ms_max", "runs", "bytes", "flops", "gbps",
        "tflops", "of_copy", "of_read", "of_matmul", "error", "peak_bytes", "peers"}) {
    EXPECT_TRUE(file["records"][0].contains(field)) << field;
  }
}

TEST(BenchCases, FormulasCountWhatMustMoveAndBeComputed) {
  std::map<std::string, Case> cases;
  for (const bool few : {false, true}) {
    for (auto& list : {attend_cases(few), scan_cases(few)}) {
      for (const Case& c : list) {
        cases[c.name] = c;
        EXPECT_GT(c.bytes, 0) << c.name;
        EXPECT_GT(c.flops, 0) << c.name;
        for (const char* size : {"B", "T", "H", "Hk", "Dk", "Dv"}) {
          EXPECT_TRUE(c.shape.contains(size)) << c.name << " " << size;
        }
      }
    }
  }
  // 512 * 513 / 2 pairs and 8 heads, 2 (64 + 64) each; q, k, v, out of 512 x 8 x 64 floats.
  const Case& forward = cases.at("attend/forward/float32/T512-D64-H8-Hk8");
  EXPECT_EQ(forward.flops, int64_t{512} * 513 / 2 * 8 * 256);
  EXPECT_EQ(forward.bytes, 4 * 4 * 512 * 8 * 64);
  const Case& both = cases.at("attend/forward_backward/float32/T512-D64-H8-Hk8");
  EXPECT_EQ(both.flops, forward.flops / 2 * 7);
  const Case& decode = cases.at("attend/decode/float16/context4096-D64-H8-Hk2");
  EXPECT_EQ(decode.flops, 4 * 64 * 4096 * 8);
  EXPECT_EQ(decode.bytes, 2 * 2 * 4096 * 2 * 64 + 2 * 4 * 8 * 64);
  const Case& linear = cases.at("scan/linear-attention/forward/float32/T4096-K64-V64-H8");
  EXPECT_EQ(linear.flops, int64_t{4096} * 8 * 4 * 64 * 64);
  EXPECT_EQ(linear.bytes, 4 * (4 * 4096 * 8 * 64 + 8 * 64 * 64));
  // C and B of Mamba-2 are read once for all heads.
  const Case& mamba = cases.at("scan/mamba2/forward/float32/T4096-K128-V64-H8");
  EXPECT_EQ(mamba.bytes, 4 * (4096 * (2 * 128 + 8 * (64 + 1 + 64)) + 8 * 128 * 64));
  const Case& step = cases.at("scan/linear-attention/decode/float32/B32-K64-V64-H8");
  EXPECT_EQ(step.bytes, 4 * (2 * 32 * 8 * 64 * 64 + 32 * 8 * 64 * 4));
}

TEST(BenchCases, InputsPassTheCaches) {
  EXPECT_GE(sets_of(int64_t{4} << 20) * (int64_t{4} << 20), int64_t{96} << 20);
  EXPECT_EQ(sets_of(1), 64);
  EXPECT_EQ(sets_of(int64_t{1} << 33), 2);
}

TEST(BenchKernels, FilterChoosesByName) {
  for (const Case& c : choose_cases(quick("^scan/(gla|mamba2)/decode"))) {
    EXPECT_EQ(c.pass, "decode");
    EXPECT_TRUE(c.op == "gla" || c.op == "mamba2") << c.op;
  }
  EXPECT_EQ(choose_cases(quick("^scan/(gla|mamba2)/decode")).size(), 2u);
  EXPECT_THROW(choose_cases(quick("(")), UsageError);
  EXPECT_THROW(choose_cases(quick("no such thing")), UsageError);
  KernelOptions cuda = quick("decode/float16");
  cuda.device = at::Device(at::kCUDA, 0);
  EXPECT_THROW(choose_cases(cuda), UsageError);
  EXPECT_THROW(check_peers({"pytorch", "unknown"}), UsageError);
}

TEST(BenchKernels, EveryKindRunsAndIsChecked) {
  for (const char* name :
       {"attend/forward/.*D64-H8-Hk2", "attend/forward_backward/.*D64",
        "attend/decode/.*D64-H8-Hk2", "scan/mamba2/forward", "scan/rwkv6/backward",
        "scan/gated-deltanet/decode", "scan/dplr/decode", "scan/rwkv6/decode"}) {
    const auto cases = choose_cases(quick(name));
    ASSERT_FALSE(cases.empty()) << name;
    const Record r = run_case(cases[0], quick(""));
    EXPECT_GT(r.error, 0) << r.name;  // there was something to compare
    EXPECT_GE(r.runs, 3) << r.name;
    EXPECT_LE(r.ms_min, r.ms) << r.name;
    EXPECT_LE(r.ms, r.ms_max) << r.name;
    ASSERT_EQ(r.peers.size(), 1u) << r.name;
    // The peer computes the same thing; half-precision arithmetic is the loosest among them.
    EXPECT_LT(r.peers[0].error, r.dtype == "float16" ? 1e-2 : 2e-5) << r.name;
  }
}

TEST(BenchKernels, PeersCanBeLeftOutOrAreListedWithAReason) {
  KernelOptions options = quick("scan/deltanet/decode");
  options.peers = {"none"};
  const Case c = choose_cases(options)[0];
  EXPECT_TRUE(run_case(c, options).peers.empty());
  options.peers = {"flash-linear-attention"};
  const Record r = run_case(c, options);
  ASSERT_EQ(r.peers.size(), 1u);
  EXPECT_FALSE(r.peers[0].reason.empty());
}

TEST(BenchKernels, AWrongOutputIsAnErrorNotARecord) {
  Case c = choose_cases(quick("attend/forward/.*D64-H8-Hk8"))[0];
  const auto make = c.make;
  for (const double wrong : {1e-4, std::numeric_limits<double>::quiet_NaN()}) {
    c.make = [make, wrong](const at::Device& device) {
      Work work = make(device);
      const auto run = work.ours.run;
      work.ours.run = [run, wrong](int64_t set) {
        auto outputs = run(set);
        outputs[0].select(1, -1).mul_(1 + wrong);
        outputs[0].select(1, 0).mul_(1 + wrong);
        return outputs;
      };
      return work;
    };
    try {
      run_case(c, quick(""));
      ADD_FAILURE() << "accepted a factor of 1 + " << wrong;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(c.name), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find("out is wrong"), std::string::npos) << e.what();
    }
  }
}

TEST(BenchKernels, CtrlCEndsARun) {
  const Case c = choose_cases(quick("scan/gla/decode"))[0];
  g_interrupted = true;
  EXPECT_THROW(run_case(c, quick("")), Interrupted);
  g_interrupted = false;
}

TEST(BenchModel, DenseAndPlanLeaveRecordsWithBytesAndScoresChecked) {
  const Decoder model = test::tiny_model();
  Programs programs;
  programs.heads.assign(3, std::vector<HeadProgram>(2, HeadProgram{16, 4}));
  programs.heads[1][0] = HeadProgram();
  ModelOptions options;
  options.name = "tiny";
  options.context = 96;
  options.programs = &programs;
  options.plan = "some";
  options.steps = 3;
  options.quick = true;
  options.kv_dtype = at::kFloat;
  const Json file = run_model(model, options);
  ASSERT_EQ(file["records"].size(), 6u);
  const Json& dense = file["records"][1];
  const Json& plan = file["records"][4];
  EXPECT_EQ(dense["op"], "generate");
  EXPECT_EQ(dense["pass"], "decode");
  EXPECT_EQ(plan["shape"]["plan"], "some");
  EXPECT_EQ(plan["runs"], 3);
  EXPECT_EQ(plan["peers"][0]["name"], "dense");
  EXPECT_EQ(plan["kv_formula"], 2 * 16 * 4 * (5 * 20 + 96));
  EXPECT_LT(plan["flops"].get<int64_t>(), dense["flops"].get<int64_t>());
  // 97 keys of 12 query heads, 4 D each, and every matrix once.
  const int64_t matrices = 3 * (48 * 64 * 2 + 48 * 32 * 2 + 3 * 48 * 96) + 257 * 48;
  EXPECT_EQ(dense["flops"], 2 * matrices + 4 * 16 * 12 * 97);
  options.context = 4096;
  EXPECT_THROW(run_model(model, options), UsageError);
  options.context = 96;
  options.peers = {"someone"};
  EXPECT_THROW(run_model(model, options), UsageError);
}

TEST(BenchModel, SequencesSideBySideAreTimedBesideOne) {
  const Decoder model = test::tiny_model();
  ModelOptions options;
  options.name = "tiny";
  options.context = 40;
  options.steps = 3;
  options.quick = true;
  options.kv_dtype = at::kFloat;
  options.peers = {"none"};
  options.batch = 4;
  const Json file = run_model(model, options);
  ASSERT_EQ(file["records"].size(), 5u);
  const Json &one = file["records"][3], &many = file["records"][4];
  EXPECT_EQ(one["shape"]["B"], 1);
  EXPECT_EQ(many["shape"]["B"], 4);
  EXPECT_EQ(many["flops"], 4 * one["flops"].get<int64_t>());
  EXPECT_EQ(many["runs"], 3);
  EXPECT_LT(many["error"].get<double>(), 1e-4);
  EXPECT_NEAR(many["times_one"].get<double>(),
              4 * one["ms"].get<double>() / many["ms"].get<double>(), 1e-9);
  EXPECT_GT(many["times_one_cpu"].get<double>(), 0);
}

TEST(BenchPeer, AnswersLineByLineAndItsEndIsAnError) {
  PeerProcess echo({"cat"});
  for (const int n : {1, 2}) {
    echo.send({{"n", n}});
    EXPECT_EQ(echo.receive()["n"], n);
  }
  PeerProcess gone({"true"});
  EXPECT_THROW(gone.receive(), Error);
  PeerProcess missing({"/no/such/program"});
  EXPECT_THROW(missing.receive(), Error);
  PeerProcess broken({"echo", "not JSON"});
  EXPECT_THROW(broken.receive(), Error);
}

TEST(BenchTable, IsMadeFromTheRecordsAlone) {
  const Json file = to_json(some_machine(), {some_record()});
  const std::string table = markdown_table(file, "x.json", "forward");
  EXPECT_EQ(table, markdown_table(file, "x.json", "forward"));
  EXPECT_NE(table.find("| `attend/forward/float32/T512-D64` | 2.00 (1.50 to 3.00) | 50% of read | "
                       "1e-07 | other 5.00 | 2.50 |\n"),
            std::string::npos)
      << table;
  EXPECT_EQ(table.find("third"), std::string::npos);
  EXPECT_THROW(markdown_table(file, "x.json", "backward"), UsageError);
  EXPECT_THROW(markdown_table(file, "x.json", "["), UsageError);
  EXPECT_THROW(markdown_table(Json::object(), "x.json", ""), Error);
}

TEST(BenchTable, ADocumentWithoutAnEndIsRefused) {
  EXPECT_EQ(refresh_tables("no table\n", ".", "x.md"), "no table\n");
  EXPECT_THROW(refresh_tables("<!-- heed bench table x.json -->\n", ".", "x.md"), Error);
}

// The tables of the documents are what the command makes from the records that are kept.
TEST(BenchTable, DocumentsShowWhatIsKept) {
  for (const std::string document : {"/README.md", "/docs/performance.md"}) {
    const std::string path = HEED_SOURCE_DIR + document;
    const std::string text = read_text_file(path);
    EXPECT_NE(text.find("<!-- heed bench table "), std::string::npos) << document;
    const std::string folder = path.substr(0, path.rfind('/'));
    EXPECT_TRUE(refresh_tables(text, folder, document) == text)
        << document << " is not what its records say: run `./heed bench table --into ." << document
        << "`";
  }
}

TEST(BenchMachine, FolderNames) {
  EXPECT_EQ(folder_name("AMD EPYC"), "AMD-EPYC");
  EXPECT_EQ(folder_name("Intel(R) Xeon(R) CPU @ 2.2GHz "), "Intel-R-Xeon-R-CPU-2.2GHz");
}

}  // namespace bench_test
}  // namespace heed::bench
