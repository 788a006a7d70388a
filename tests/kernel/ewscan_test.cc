// The three scans of the engine `ewscan` against their references, and the references against
// finite differences.
#include "kernel/ewscan/ewscan.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernel/engine_helper.h"
#include "kernel/parallel.h"

namespace heed::kernel::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

template <class C, heed_status (*kReference)(const C&, int32_t, heed_message*)>
heed_status reference(const void* call, int32_t pass, heed_message* message) {
  return kReference(*static_cast<const C*>(call), pass, message);
}

double decays(double uniform) {  // some 0, some -inf, runs near 0, some strong
  if (uniform < 0.05) return 0;
  if (uniform > 0.97) return -kInf;
  return uniform > 0.9 ? -8 : -0.3 * uniform;
}

const TestedEngine kPlain = {kEwscan, ewscan_backends, reference<EwscanCall, ewscan_reference>,
                             [](const std::string& name, double normal, double uniform) {
                               if (name == "log_decay") return decays(uniform);
                               if (name == "turn") return std::cos(2 * normal) / std::sqrt(2.0);
                               return normal;
                             }};
const TestedEngine kSelective = {kSelectiveScan, selective_scan_backends,
                                 reference<SelectiveCall, selective_scan_reference>,
                                 [](const std::string& name, double normal, double uniform) {
                                   if (name == "A") return -std::exp(normal);
                                   if (name == "dt") return uniform < 0.05 ? 0 : 0.2 * uniform;
                                   if (name == "dt_bias") return 0.1 * uniform;
                                   return normal;
                                 }};
const TestedEngine kLse = {kLseScan, lse_scan_backends, reference<LseCall, lse_scan_reference>,
                           [](const std::string& name, double normal, double uniform) {
                             if (name == "log_decay") return decays(uniform);
                             if (name == "score") return uniform > 0.95 ? -kInf : 3 * normal;
                             if (name == "initial_w") return 1 + uniform;
                             return normal;
                           }};

std::vector<EngineCase> plain_cases() {
  EngineCase c;
  c.sizes = {{"B", 2}, {"T", 83}, {"C", 21}};
  c.absent = {"turn"};
  std::vector<EngineCase> cases = {c};
  c.absent.insert("initial_state");
  c.ranks = {{"log_decay", 1}};
  cases.push_back(c);
  EngineCase pair;
  pair.sizes = {{"B", 2}, {"T", 70}, {"C", 67}};
  for (const char* name : {"x", "out"}) pair.ranks[name] = 4;
  for (const char* name : {"initial_state", "final_state"}) pair.ranks[name] = 3;
  cases.push_back(pair);
  pair.ranks["turn"] = 2;
  pair.ranks["log_decay"] = 1;
  cases.push_back(pair);
  pair.absent = {"turn"};
  cases.push_back(pair);
  return cases;
}

std::vector<EngineCase> selective_cases() {
  EngineCase c;
  c.sizes = {{"B", 2}, {"T", 75}, {"C", 42}, {"K", 16}, {"G", 2}};
  c.options["dt_softplus"] = 1;
  std::vector<EngineCase> cases = {c};
  c.options["dt_softplus"] = 0;
  c.absent = {"D", "z", "dt_bias", "initial_state"};
  c.sizes = {{"B", 1}, {"T", 40}, {"C", 101}, {"K", 5}, {"G", 1}};
  cases.push_back(c);
  c.sizes["K"] = 19;
  c.absent = {"z"};
  cases.push_back(c);
  return cases;
}

std::vector<EngineCase> lse_cases() {
  EngineCase c;
  c.sizes = {{"B", 2}, {"T", 75}, {"H", 3}, {"V", 21}};
  std::vector<EngineCase> cases = {c};
  c.ranks = {{"log_decay", 1}};
  cases.push_back(c);
  c.ranks.clear();
  c.absent = {"log_decay", "initial_m", "initial_u", "initial_w"};
  cases.push_back(c);
  return cases;
}

void for_all(const std::function<void(const TestedEngine&, EngineCase)>& f) {
  for (const EngineCase& c : plain_cases()) f(kPlain, c);
  for (const EngineCase& c : selective_cases()) f(kSelective, c);
  for (const EngineCase& c : lse_cases()) f(kLse, c);
}

TEST(EwscanKernel, EveryTargetAndDtypeEqualsTheReference) {
  for_all([](const TestedEngine& engine, EngineCase c) { expect_every_target(engine, c); });
}

TEST(EwscanKernel, PacksPaddingShortAndEmptySequences) {
  ThreadPool pool(3);
  for_all([&](const TestedEngine& engine, EngineCase c) {
    c.padding = 3;
    for (const int64_t time : {0, 1, 32, 33}) {
      c.sizes["T"] = time;
      expect_engine_equals_reference(engine, c, pool.parallel());
    }
    c.sizes["B"] = 1;
    c.sizes["T"] = 101;
    c.cu_seqlens = {0, 1, 1, 65, 101, 101};
    expect_engine_equals_reference(engine, c, pool.parallel());
  });
}

// A constant decay near 1 must not drift over thousands of tokens.
TEST(EwscanKernel, LongMemoryDoesNotDrift) {
  TestedEngine slow = {kSelectiveScan, selective_scan_backends,
                       reference<SelectiveCall, selective_scan_reference>,
                       [](const std::string& name, double normal, double) {
                         if (name == "A") return -1.0;
                         if (name == "dt") return 1.0 / 3000;
                         return 1 + 0.1 * normal;
                       }};
  EngineCase c;
  c.sizes = {{"B", 1}, {"T", 6000}, {"C", 8}, {"K", 4}, {"G", 1}};
  c.absent = {"D", "z", "dt_bias"};
  expect_engine_equals_reference(slow, c);
  EngineCase plain;
  plain.sizes = {{"B", 1}, {"T", 6000}, {"C", 9}};
  plain.absent = {"turn"};
  TestedEngine constant = {kEwscan, ewscan_backends, reference<EwscanCall, ewscan_reference>,
                           [](const std::string& name, double normal, double) {
                             return name == "log_decay" ? -1.0 / 3000 : 1 + 0.1 * normal;
                           }};
  expect_engine_equals_reference(constant, plain);
}

// Scores of any size: exact where exp of them would overflow.
// Outputs of megabytes whose rows begin on a line go past the caches.
TEST(EwscanKernel, LargeSelectiveOutputs) {
  EngineCase c;
  c.sizes = {{"B", 1}, {"T", 530}, {"C", 1024}, {"G", 1}, {"K", 2}};
  c.absent = {"z", "D", "dt_bias", "initial_state"};
  EngineRun run(kSelective, c);
  run.run_reference(HEED_FORWARD);
  const std::vector<double> expected = run.result("out", true).values();
  std::vector<float> memory(expected.size() + 32, 7.0f);
  auto* aligned =
      reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  ThreadPool pool(3);
  for (const int64_t shift : {0, 1}) {  // 1: not past them
    auto* call = static_cast<SelectiveCall*>(run.call(false));
    call->in.out.data = aligned + shift;
    const heed_backend& cpu = selective_scan_backends()[0];
    std::vector<char> workspace(static_cast<size_t>(cpu.workspace(call, HEED_FORWARD, 3)));
    heed_message message = {};
    ASSERT_EQ(cpu.run(call, HEED_FORWARD, workspace.data(), nullptr, pool.parallel(), &message),
              HEED_OK)
        << message.text;
    const std::vector<double> got(aligned + shift, aligned + shift + expected.size());
    EXPECT_LE(relative_error(got, expected), 2e-6);
    EXPECT_EQ(aligned[shift + static_cast<int64_t>(expected.size())], 7.0f);
  }
}

TEST(EwscanKernel, LargeScores) {
  for (const double size : {1e4, -1e4}) {
    TestedEngine large = kLse;
    large.sample = [size](const std::string& name, double normal, double uniform) {
      if (name == "score" || name == "initial_m") return size * (1 + 1e-3 * normal);
      return name == "initial_w" ? 1 + uniform : normal;
    };
    EngineCase c = lse_cases()[0];
    c.absent = {"log_decay"};
    expect_engine_equals_reference(large, c);
  }
}

// sum of the incoming gradients times the outputs, from the reference.
double objective(EngineRun& run, const TestedEngine& engine) {
  run.run_reference(HEED_FORWARD);
  double sum = 0;
  const heed_view* grads = call_grads(engine.fields, run.call(true));
  for (size_t i = 0; i < engine.fields.tensors.size(); ++i) {
    const TensorField& field = engine.fields.tensors[i];
    if (is_input(field.role)) continue;
    const Stored& y = run.result(field.name, true);
    for (int64_t j = 0; j < y.count(); ++j) {
      sum += y.at(j) * load_element(grads[i].data, grads[i].dtype, j);
    }
  }
  return sum;
}

TEST(EwscanReference, GradientsEqualFiniteDifferences) {
  for_all([](const TestedEngine& engine, EngineCase c) {
    c.sizes["T"] = 7;
    c.sizes["C"] = c.sizes.count("G") ? 2 * c.sizes["G"] : 3;
    EngineRun run(engine, c);
    run.run_reference(HEED_BACKWARD);
    for (const TensorField& field : engine.fields.tensors) {
      if (!is_input(field.role) || !run.has(field.name)) continue;
      Stored& x = run.tensor(field.name);
      const std::vector<double> gradient = run.gradient(field.name, true).values();
      for (int64_t j = 0; j < x.count(); j += 5) {
        const double value = x.at(j);
        if (std::isinf(value)) {
          EXPECT_EQ(gradient[j], 0) << field.name;
          continue;
        }
        const double h = 1e-3;  // inputs are float32
        x.set(j, value + h);
        const double up_at = x.at(j), up = objective(run, engine);
        x.set(j, value - h);
        const double down_at = x.at(j), down = objective(run, engine);
        x.set(j, value);
        const double difference = (up - down) / (up_at - down_at);
        EXPECT_NEAR(gradient[j], difference, 2e-3 * (1 + std::abs(difference)))
            << field.name << " " << j << " of " << engine.fields.engine << " " << c.name();
      }
    }
  });
}

TEST(EwscanKernel, SaysWhatDoesNotFit) {
  EngineCase c = selective_cases()[0];
  EngineRun run(kSelective, c);
  heed_message message = {};
  auto* call = static_cast<SelectiveCall*>(run.call(false));
  const heed_backend& cpu = selective_scan_backends()[0];
  call->in.B.sizes[3] = 17;
  EXPECT_EQ(cpu.run(call, HEED_FORWARD, nullptr, nullptr, nullptr, &message),
            HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(message.text,
               "selective_scan: B has shape [2,75,2,17], expected [B,T,G,K] = [2,75,2,16]");
  call = static_cast<SelectiveCall*>(run.call(false));
  call->in.dt = {};
  EXPECT_EQ(cpu.run(call, HEED_FORWARD, nullptr, nullptr, nullptr, &message),
            HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(message.text, "selective_scan: dt [B,T,C] is missing");
  call = static_cast<SelectiveCall*>(run.call(false));
  call->in.z.dtype = HEED_BFLOAT16;
  cpu.run(call, HEED_FORWARD, nullptr, nullptr, nullptr, &message);
  EXPECT_STREQ(message.text, "selective_scan: z is bfloat16, but x is float32");
  call = static_cast<SelectiveCall*>(run.call(false));
  cpu.run(call, HEED_STEP, nullptr, nullptr, nullptr, &message);
  EXPECT_STREQ(message.text, "selective_scan: a step takes one token a sequence, not T = 75");
  call = static_cast<SelectiveCall*>(run.call(false));
  call->head.struct_size = 8;
  cpu.run(call, HEED_FORWARD, nullptr, nullptr, nullptr, &message);
  EXPECT_NE(std::string(message.text).find("of another version"), std::string::npos);
}

}  // namespace
}  // namespace heed::kernel::test
