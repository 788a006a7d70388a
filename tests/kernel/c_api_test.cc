// The C entry points in include/heed/ of every engine that is described by a list of fields: their
// structs follow the lists, their results are the reference's, and every mistake is a status with a
// sentence. One row an engine.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "heed/ewscan.h"
#include "heed/learn.h"
#include "heed/mix.h"
#include "heed/pool.h"
#include "kernel/engine_helper.h"
#include "kernel/ewscan/ewscan.h"
#include "kernel/learn/learn.h"
#include "kernel/mix/mix.h"
#include "kernel/parallel.h"
#include "kernel/pool/pool.h"

namespace heed::kernel::test {
namespace {

struct CEngine {
  std::string header, name;  // include/heed/HEADER.h, heed_NAME
  TestedEngine engine;
  EngineCase c;
  heed_status (*run)(const void* tensors, const void* grads, const void* options, const heed_run*);
  int64_t (*workspace)(const void* tensors, const void* grads, const void* options,
                       const heed_run*);
  void (*defaults)(void* options);  // NULL: it has none
  bool backward_reference;
};
void PrintTo(const CEngine& row, std::ostream* out) { *out << row.name; }

// ---- the engines

template <auto kReference, class C>
heed_status reference_of(const void* call, int32_t pass, heed_message* message) {
  return kReference(*static_cast<const C*>(call), pass, message);
}
template <auto kReference, class C>
heed_status forward_reference_of(const void* call, int32_t /*pass*/, heed_message* message) {
  return kReference(*static_cast<const C*>(call), message);
}
template <class T, class O, auto kRun>
heed_status run_of(const void* tensors, const void* grads, const void* options,
                   const heed_run* run) {
  return kRun(static_cast<const T*>(tensors), static_cast<const T*>(grads),
              static_cast<const O*>(options), run);
}
template <class T, auto kRun>
heed_status plain_run_of(const void* tensors, const void* grads, const void*, const heed_run* run) {
  return kRun(static_cast<const T*>(tensors), static_cast<const T*>(grads), run);
}
template <class T, class O, auto kWorkspace>
int64_t workspace_of(const void* tensors, const void* grads, const void* options,
                     const heed_run* run) {
  return kWorkspace(static_cast<const T*>(tensors), static_cast<const T*>(grads),
                    static_cast<const O*>(options), run);
}
template <class T, auto kWorkspace>
int64_t plain_workspace_of(const void* tensors, const void* grads, const void*,
                           const heed_run* run) {
  return kWorkspace(static_cast<const T*>(tensors), static_cast<const T*>(grads), run);
}
template <class O, auto kInit>
void defaults_of(void* options) {
  kInit(static_cast<O*>(options));
}

EngineCase case_of(std::map<std::string, int64_t> sizes, std::set<std::string> absent = {},
                   std::map<std::string, double> options = {}) {
  EngineCase c;
  c.sizes = std::move(sizes);
  c.absent = std::move(absent);
  c.options = std::move(options);
  return c;
}

CEngine ewscan_row() {
  const auto sample = [](const std::string& name, double normal, double uniform) {
    return name == "log_decay" ? -uniform : normal;
  };
  return {"ewscan",
          "ewscan",
          {kEwscan, ewscan_backends, reference_of<ewscan_reference, EwscanCall>, sample},
          case_of({{"B", 2}, {"T", 45}, {"C", 11}}, {"turn"}),
          plain_run_of<heed_ewscan_tensors, heed_ewscan>,
          plain_workspace_of<heed_ewscan_tensors, heed_ewscan_workspace>,
          nullptr,
          true};
}

CEngine selective_row() {
  const auto sample = [](const std::string& name, double normal, double uniform) {
    return name == "A" ? -uniform : name == "dt" ? 0.1 * uniform : normal;
  };
  using Tensors = heed_selective_scan_tensors;
  using Options = heed_selective_scan_options;
  return {"ewscan",
          "selective_scan",
          {kSelectiveScan, selective_scan_backends,
           reference_of<selective_scan_reference, SelectiveCall>, sample},
          case_of({{"B", 2}, {"T", 45}, {"C", 6}, {"G", 2}, {"K", 4}}, {}, {{"dt_softplus", 1}}),
          run_of<Tensors, Options, heed_selective_scan>,
          workspace_of<Tensors, Options, heed_selective_scan_workspace>,
          defaults_of<Options, heed_selective_scan_options_init>,
          true};
}

CEngine lse_row() {
  const auto sample = [](const std::string& name, double normal, double uniform) {
    if (name == "log_decay") return -uniform;
    return name == "initial_w" ? 1 + uniform : normal;
  };
  return {"ewscan",
          "lse_scan",
          {kLseScan, lse_scan_backends, reference_of<lse_scan_reference, LseCall>, sample},
          case_of({{"B", 2}, {"T", 45}, {"H", 3}, {"V", 5}}),
          plain_run_of<heed_lse_scan_tensors, heed_lse_scan>,
          plain_workspace_of<heed_lse_scan_tensors, heed_lse_scan_workspace>,
          nullptr,
          true};
}

CEngine pool_row() {
  const auto sample = [](const std::string& name, double normal, double uniform) {
    return name == "v" || name.starts_with("grad_") ? normal : 0.1 + uniform;
  };
  return {"pool",
          "pool",
          {kPool, [] { return std::span<const heed_backend>(&kPoolBackend, 1); },
           forward_reference_of<pool_reference, PoolCall>, sample},
          case_of({{"B", 2}, {"T", 45}, {"S", 70}, {"H", 4}, {"J", 2}, {"M", 5}, {"V", 7}}, {},
                  {{"scale", 0.4}, {"a0", 0.5}, {"a1", 1}, {"eps", 0.1}}),
          run_of<heed_pool_tensors, heed_pool_options, heed_pool>,
          workspace_of<heed_pool_tensors, heed_pool_options, heed_pool_workspace>,
          defaults_of<heed_pool_options, heed_pool_options_init>,
          false};
}

CEngine learn_row() {
  const auto sample = [](const std::string& name, double normal, double uniform) {
    if (name == "alpha") return 0.3 * uniform;
    if (name == "eta") return 0.1 + 0.8 * uniform;
    if (name == "theta") return 0.02 + 0.1 * uniform;
    return name == "k" ? 0.4 * normal : normal;
  };
  return {"learn",
          "learn",
          {kLearn, [] { return std::span<const heed_backend>(&kLearnBackend, 1); },
           forward_reference_of<learn_reference, LearnCall>, sample},
          case_of({{"B", 2}, {"T", 45}, {"H", 3}, {"K", 6}, {"V", 5}},
                  {"gain", "norm_weight", "norm_bias", "initial_bias", "initial_running",
                   "initial_running_bias", "initial_position"},
                  {{"scale", 0.7}, {"chunk", 8}}),
          run_of<heed_learn_tensors, heed_learn_options, heed_learn>,
          workspace_of<heed_learn_tensors, heed_learn_options, heed_learn_workspace>,
          defaults_of<heed_learn_options, heed_learn_options_init>,
          false};
}

CEngine short_conv_row() {
  return {
      "mix",
      "short_conv",
      {kShortConv, short_conv_backends, reference_of<short_conv_reference, ShortConvCall>,
       [](const std::string&, double normal, double) { return normal; }},
      case_of({{"B", 2}, {"T", 45}, {"C", 21}, {"L", 4}, {"L-1", 3}, {"H", 3}}, {}, {{"silu", 1}}),
      run_of<heed_short_conv_tensors, heed_short_conv_options, heed_short_conv>,
      workspace_of<heed_short_conv_tensors, heed_short_conv_options, heed_short_conv_workspace>,
      defaults_of<heed_short_conv_options, heed_short_conv_options_init>,
      true};
}

// ---- the header

// The members of a struct of the header, "TYPE NAME" in order.
std::vector<std::string> members(const std::string& header, const std::string& name) {
  std::ifstream file(std::string(HEED_SOURCE_DIR) + "/include/heed/" + header + ".h");
  std::vector<std::string> list;
  std::string line;
  bool inside = false;
  while (std::getline(file, line)) {
    if (line == "typedef struct " + name + " {") {
      inside = true;
    } else if (inside && line.starts_with("}")) {
      break;
    } else if (inside && line.find(';') != std::string::npos) {
      line = line.substr(2, line.find(';') - 2);
      const size_t space = line.find(' ');
      std::string names = line.substr(space + 1);
      for (size_t comma; (comma = names.find(", ")) != std::string::npos;) {
        list.push_back(line.substr(0, space) + " " + names.substr(0, comma));
        names = names.substr(comma + 2);
      }
      list.push_back(line.substr(0, space) + " " + names);
    }
  }
  return list;
}

class CApi : public testing::TestWithParam<CEngine> {
 protected:
  CApi() : fields_(GetParam().engine.fields), made_(GetParam().engine, GetParam().c) {
    run_.struct_size = sizeof(run_);
    run_.message = message_;
    run_.message_size = sizeof(message_);
    call_ = static_cast<char*>(made_.call(false));
    // learn takes the gradients of the states that it has at the end of a sequence.
    for (const char* name : {"final_running", "final_running_bias", "final_position"}) {
      const int i = fields_.find(name);
      if (i >= 0) tensors()[i] = grads()[i] = heed_view{};
    }
  }

  heed_view* tensors() { return call_views(fields_, static_cast<void*>(call_)); }
  heed_view* grads() { return call_grads(fields_, static_cast<void*>(call_)); }
  const void* options() { return call_ + fields_.options_at; }

  heed_status call(int32_t pass) {
    run_.pass = pass;
    const bool backward = pass == HEED_BACKWARD;
    return GetParam().run(tensors(), backward ? grads() : nullptr, options(), &run_);
  }
  int64_t workspace(int32_t pass) {
    run_.pass = pass;
    return GetParam().workspace(tensors(), pass == HEED_BACKWARD ? grads() : nullptr, options(),
                                &run_);
  }
  // What a pass gave, one tensor after the other: outputs that are part of the call, or gradients.
  std::vector<double> results(EngineRun& from, int32_t pass, bool reference) {
    std::vector<double> all;
    for (size_t i = 0; i < fields_.tensors.size(); ++i) {
      const TensorField& field = fields_.tensors[i];
      if (is_input(field.role) != (pass == HEED_BACKWARD) || !given(tensors()[i])) continue;
      const std::vector<double> values = pass == HEED_BACKWARD
                                             ? from.gradient(field.name, reference).values()
                                             : from.result(field.name, reference).values();
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  }
  // The status of a forward call with one tensor changed, which has to be a refusal; what it said.
  std::string said(size_t i, const heed_view& instead) {
    const heed_view kept = tensors()[i];
    tensors()[i] = instead;
    EXPECT_EQ(call(HEED_FORWARD), HEED_INVALID_ARGUMENT) << fields_.tensors[i].name;
    EXPECT_EQ(workspace(HEED_FORWARD), -1) << fields_.tensors[i].name;
    tensors()[i] = kept;
    return message_;
  }
  std::string at_engine(const std::string& text) {
    return std::string(fields_.engine) + ": " + text;
  }

  const CallFields& fields_;
  EngineRun made_;
  char* call_;
  heed_run run_ = {};
  char message_[256] = "";
};

TEST_P(CApi, StructsFollowTheLists) {
  std::vector<std::string> tensors, options;
  for (const TensorField& field : fields_.tensors) {
    tensors.push_back(std::string("heed_view ") + field.name);
  }
  for (const OptionField& option : fields_.options) {
    options.push_back((option.kind == OptionKind::kNumber ? "double " : "int64_t ") +
                      std::string(option.name));
  }
  const std::string name = "heed_" + GetParam().name;
  EXPECT_EQ(members(GetParam().header, name + "_tensors"), tensors);
  EXPECT_EQ(members(GetParam().header, name + "_options"), options);
}

TEST_P(CApi, DefaultsAreThoseOfTheList) {
  ASSERT_EQ(GetParam().defaults != nullptr, !fields_.options.empty());
  std::vector<char> bytes(8 * fields_.options.size() + 1, 0x7f);
  if (GetParam().defaults != nullptr) GetParam().defaults(bytes.data());
  for (size_t i = 0; i < fields_.options.size(); ++i) {
    double number;
    int64_t integer;
    std::memcpy(&number, &bytes[8 * i], 8);
    std::memcpy(&integer, &bytes[8 * i], 8);
    const bool real = fields_.options[i].kind == OptionKind::kNumber;
    EXPECT_EQ(real ? number : static_cast<double>(integer), fields_.options[i].value);
  }
  EXPECT_EQ(bytes.back(), 0x7f);
}

TEST_P(CApi, PassesInAWorkspaceOfItsSizeEqualTheReference) {
  EngineRun wide(GetParam().engine, GetParam().c);
  wide.run_reference(HEED_FORWARD);
  if (GetParam().backward_reference) wide.run_reference(HEED_BACKWARD);
  ThreadPool pool(3);
  for (const heed_parallel* parallel :
       {static_cast<const heed_parallel*>(nullptr), pool.parallel()}) {
    run_.parallel = parallel;
    for (const int32_t pass : {HEED_FORWARD, HEED_BACKWARD}) {
      SCOPED_TRACE(pass);
      const int64_t bytes = workspace(pass);
      ASSERT_GT(bytes, 0) << message_;
      std::vector<char> memory(static_cast<size_t>(bytes) + 1, 0x7f);  // it may hold anything
      run_.workspace = memory.data();
      run_.workspace_bytes = bytes;
      ASSERT_EQ(call(pass), HEED_OK) << message_;
      EXPECT_STREQ(message_, "");
      EXPECT_EQ(memory.back(), 0x7f);
      const std::vector<double> got = results(made_, pass, false);
      if (pass == HEED_FORWARD || GetParam().backward_reference) {
        EXPECT_LE(relative_error(got, results(wide, pass, true)),
                  pass == HEED_FORWARD ? 2e-6 : 1e-5);
      }
      run_.workspace_bytes = bytes - 1;
      EXPECT_EQ(call(pass), HEED_INVALID_ARGUMENT);
      EXPECT_EQ(message_, at_engine("the workspace has " + std::to_string(bytes - 1) + " bytes, " +
                                    std::to_string(bytes) + " are needed"));
      run_.workspace = nullptr;  // the call's own
      ASSERT_EQ(call(pass), HEED_OK) << message_;
      EXPECT_EQ(results(made_, pass, false), got);
    }
  }
}

// Those of `learn` are in a test of their own.
class CApiSteps : public CApi {};

TEST_P(CApiSteps, EqualTheReference) {
  EngineCase one = GetParam().c;
  one.sizes["T"] = 1;
  EngineRun step(GetParam().engine, one);
  step.run_reference(HEED_FORWARD);
  call_ = static_cast<char*>(step.call(false));
  ASSERT_EQ(call(HEED_STEP), HEED_OK) << message_;
  for (const TensorField& field : fields_.tensors) {
    if (is_input(field.role)) continue;
    EXPECT_LE(relative_error(step.result(field.name, false).values(),
                             step.result(field.name, true).values()),
              2e-6)
        << field.name;
  }
}

TEST_P(CApi, OutputsThatAreNotGivenAreNotWritten) {
  ASSERT_EQ(call(HEED_FORWARD), HEED_OK) << message_;
  for (size_t i = 0; i < fields_.tensors.size(); ++i) {
    if (is_input(fields_.tensors[i].role) || !given(tensors()[i])) continue;
    SCOPED_TRACE(fields_.tensors[i].name);
    std::vector<heed_view> kept(tensors(), tensors() + fields_.tensors.size());
    // The three states of the running softmax come together.
    for (size_t j = 0; j < fields_.tensors.size(); ++j) {
      const bool final = fields_.tensors[j].role == Role::kFinal;
      if (j == i || (final && fields_.tensors[i].role == Role::kFinal)) tensors()[j] = heed_view{};
    }
    EXPECT_EQ(call(HEED_FORWARD), HEED_OK) << message_;
    std::copy(kept.begin(), kept.end(), tensors());
  }
}

TEST_P(CApi, EveryTensorThatIsWrongIsNamed) {
  ASSERT_EQ(call(HEED_FORWARD), HEED_OK) << message_;
  for (size_t i = 0; i < fields_.tensors.size(); ++i) {
    const TensorField& field = fields_.tensors[i];
    const heed_view own = tensors()[i];
    if (!given(own)) continue;
    SCOPED_TRACE(field.name);
    const std::string name = field.name;
    heed_view wrong = own;
    wrong.dtype = HEED_INT64;
    EXPECT_TRUE(said(i, wrong).starts_with(at_engine(name + " is int64, expected float32")))
        << message_;
    wrong = own;
    wrong.rank = 0;
    EXPECT_TRUE(said(i, wrong).starts_with(at_engine(name + " has shape []"))) << message_;
    wrong = own;
    wrong.data = nullptr;
    EXPECT_EQ(said(i, wrong), at_engine(name + " has no memory"));
    wrong = own;
    wrong.device = HEED_CUDA;
    EXPECT_EQ(said(i, wrong), at_engine(name + " is not on the CPU"));
    if (own.sizes[own.rank - 1] > 1) {
      wrong = own;
      wrong.strides[own.rank - 1] = 2;
      EXPECT_TRUE(said(i, wrong).starts_with(at_engine(name + " must be contiguous"))) << message_;
    }
    if (field.required && is_input(field.role)) {
      EXPECT_EQ(said(i, heed_view{}), at_engine(name + " [" + field.shape + "] is missing"));
    }
  }
}

TEST_P(CApi, EverySizeThatDoesNotFitIsNamed) {
  // The first tensor names its sizes; every later one has to agree in all that it shares.
  for (size_t i = 0; i < fields_.tensors.size(); ++i) {
    const heed_view own = tensors()[i];
    if (is_input(fields_.tensors[i].role) || !given(own)) continue;
    for (int d = 0; d < own.rank; ++d) {
      heed_view wrong = own;
      wrong.sizes[d] += 1;
      const std::string text = said(i, wrong);
      EXPECT_TRUE(
          text.starts_with(at_engine(fields_.tensors[i].name + std::string(" has shape ["))))
          << text;
      EXPECT_NE(text.find("expected ["), std::string::npos) << text;
    }
  }
}

TEST_P(CApi, NothingAtAllIsRefused) {
  const auto run = GetParam().run;
  EXPECT_EQ(run(nullptr, nullptr, nullptr, nullptr), HEED_INVALID_ARGUMENT);
  run_.pass = HEED_FORWARD;
  EXPECT_EQ(run(nullptr, nullptr, nullptr, &run_), HEED_INVALID_ARGUMENT);
  const TensorField& first = fields_.tensors[0];
  EXPECT_EQ(message_, at_engine(first.name + std::string(" [") + first.shape + "] is missing"));
  EXPECT_EQ(GetParam().workspace(nullptr, nullptr, nullptr, &run_), -1);
  EXPECT_EQ(GetParam().workspace(nullptr, nullptr, nullptr, nullptr), -1);
  EXPECT_EQ(call(3), HEED_INVALID_ARGUMENT);
  EXPECT_EQ(message_, at_engine("pass 3 is no heed_pass"));
  run_.struct_size = 3;
  EXPECT_EQ(call(HEED_FORWARD), HEED_INVALID_ARGUMENT);
  // A message that is too short for its text ends with a zero.
  run_.struct_size = sizeof(run_);
  message_[10] = 'x';
  run_.message_size = 10;
  EXPECT_EQ(call(3), HEED_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(message_), at_engine("pass 3 is no heed_pass").substr(0, 9));
  EXPECT_EQ(message_[10], 'x');
}

INSTANTIATE_TEST_SUITE_P(Engines, CApi,
                         testing::Values(ewscan_row(), selective_row(), lse_row(), pool_row(),
                                         learn_row(), short_conv_row()),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(Engines, CApiSteps,
                         testing::Values(ewscan_row(), selective_row(), lse_row(),
                                         short_conv_row()),
                         [](const auto& info) { return info.param.name; });

// ---- what the lists do not say

class Refusals : public testing::Test {
 protected:
  Refusals() {
    run_.struct_size = sizeof(run_);
    run_.message = message_;
    run_.message_size = sizeof(message_);
  }
  heed_run run_ = {};
  char message_[256] = "";
};

TEST_F(Refusals, OfASelectiveScan) {
  EngineRun made(selective_row().engine, selective_row().c);
  auto call = *static_cast<SelectiveCall*>(made.call(false));
  call.in.B.sizes[2] = call.in.C.sizes[2] = 4;
  const auto* tensors = reinterpret_cast<const heed_selective_scan_tensors*>(&call.in);
  EXPECT_EQ(heed_selective_scan(tensors, nullptr, nullptr, &run_), HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(message_,
               "selective_scan: B has 4 groups, expected a divisor of the 6 channels of x");
  EXPECT_EQ(heed_selective_scan_workspace(tensors, nullptr, nullptr, &run_), -1);
}

TEST_F(Refusals, OfARunningSoftmax) {
  EngineRun made(lse_row().engine, lse_row().c);
  auto call = *static_cast<LseCall*>(made.call(false));
  call.in.initial_u = {};
  const auto* tensors = reinterpret_cast<const heed_lse_scan_tensors*>(&call.in);
  EXPECT_EQ(heed_lse_scan(tensors, nullptr, &run_), HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(message_, "lse_scan: m, u and w of a state come together");
}

TEST_F(Refusals, OfAPooledRead) {
  EngineRun made(pool_row().engine, pool_row().c);
  auto call = *static_cast<PoolCall*>(made.call(false));
  call.in.q.sizes[2] = call.in.out.sizes[2] = call.in.row_scale.sizes[2] = 3;
  const auto* tensors = reinterpret_cast<const heed_pool_tensors*>(&call.in);
  EXPECT_EQ(heed_pool(tensors, nullptr, nullptr, &run_), HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(message_, "pool: H = 3 query heads are no multiple of J = 2 heads of keys");
  EXPECT_EQ(heed_pool_workspace(tensors, nullptr, nullptr, &run_), -1);
  call.in.q.sizes[2] = call.in.out.sizes[2] = call.in.row_scale.sizes[2] = 4;
  call.in.q.sizes[1] = call.in.out.sizes[1] = call.in.row_scale.sizes[1] = 1;
  run_.pass = HEED_STEP;
  EXPECT_EQ(heed_pool(tensors, nullptr, nullptr, &run_), HEED_UNSUPPORTED);
  EXPECT_STREQ(message_, "pool: cpu: a pooled read has no state; its causal form is scan");
}

TEST_F(Refusals, OfAConvolution) {
  EngineRun made(short_conv_row().engine, short_conv_row().c);
  auto call = *static_cast<ShortConvCall*>(made.call(false));
  const auto* tensors = reinterpret_cast<const heed_short_conv_tensors*>(&call.in);
  const heed_short_conv_options options = {1, 0};
  EXPECT_EQ(heed_short_conv(tensors, nullptr, &options, &run_), HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(message_,
               "short_conv: ahead = 1 reads tokens to come: there is no state and no step");
  EXPECT_EQ(heed_short_conv_workspace(tensors, nullptr, &options, &run_), -1);
}

// A memory that is trained: pieces of a chunk and steps, whose states are updated in place, equal
// one pass.
TEST_F(Refusals, OfAStepThatWouldMoveItsState) {
  const CEngine row = learn_row();
  EngineRun made(row.engine, row.c);
  made.run_reference(HEED_FORWARD);
  auto call = *static_cast<LearnCall*>(made.call(false));
  auto& x = call.in;
  const heed_learn_options options = {0.7, 1e-6, 8, 0, 0};
  const auto* tensors = reinterpret_cast<const heed_learn_tensors*>(&x);
  Stored position(HEED_FLOAT32, {2}), running = made.tensor("initial_state");
  x.initial_position = x.final_position = position.view();
  x.initial_running = x.final_running = running.view();
  x.final_running_bias = x.final_bias = heed_view{};
  x.final_state = x.initial_state;
  x.final_momentum = x.initial_momentum;
  run_.pass = HEED_STEP;
  for (int64_t t = 0; t < 45; ++t) {
    for (heed_view* v : {&x.q, &x.k, &x.v, &x.alpha, &x.eta, &x.theta, &x.out}) {
      v->data = static_cast<char*>(v->data) + (t == 0 ? 0 : 4 * v->strides[1]);
      v->sizes[1] = 1;
    }
    ASSERT_EQ(heed_learn(tensors, nullptr, &options, &run_), HEED_OK) << message_;
  }
  EXPECT_LE(relative_error(made.result("out", false).values(), made.result("out", true).values()),
            2e-6);
  EXPECT_EQ(position.at(1), 45 % 8);
  x.final_state = made.result("final_state", false).view();
  EXPECT_EQ(heed_learn(tensors, nullptr, &options, &run_), HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(message_,
               "learn: a step updates the initial states: the final ones are the same memory, or "
               "absent");
  EXPECT_EQ(heed_learn_workspace(tensors, nullptr, &options, &run_), -1);
}

TEST(EwscanCApi, SavedSparesBackwardAForwardPass) {
  const CEngine row = selective_row();
  EngineRun made(row.engine, row.c);
  auto call = *static_cast<SelectiveCall*>(made.call(false));
  const auto* tensors = reinterpret_cast<const heed_selective_scan_tensors*>(&call.in);
  const auto* grads = reinterpret_cast<const heed_selective_scan_tensors*>(&call.grad);
  heed_run run = {};
  run.struct_size = sizeof(run);
  const int64_t bytes = heed_selective_scan_saved(tensors, nullptr, &run);
  ASSERT_GT(bytes, 0);
  std::vector<char> saved(static_cast<size_t>(bytes) + 1, 0x7f);
  run.saved = saved.data();
  ASSERT_EQ(heed_selective_scan(tensors, nullptr, nullptr, &run), HEED_OK);
  EXPECT_EQ(saved.back(), 0x7f);
  run.pass = HEED_BACKWARD;
  ASSERT_EQ(heed_selective_scan(tensors, grads, nullptr, &run), HEED_OK);
  const std::vector<double> kept = made.gradient("x", false).values();
  run.saved = nullptr;
  ASSERT_EQ(heed_selective_scan(tensors, grads, nullptr, &run), HEED_OK);
  EXPECT_EQ(made.gradient("x", false).values(), kept);
}

}  // namespace
}  // namespace heed::kernel::test
