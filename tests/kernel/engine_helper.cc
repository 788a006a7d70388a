#include "kernel/engine_helper.h"

#include <gtest/gtest.h>

#include <hwy/targets.h>
#include <cmath>
#include <cstring>
#include <random>

#include "kernel/call/check.h"

namespace heed::kernel::test {

std::string EngineCase::name() const {
  std::string s = "dtype" + std::to_string(dtype) + " pack" + std::to_string(cu_seqlens.size());
  for (const auto& [key, size] : sizes) s += " " + key + std::to_string(size);
  for (const auto& key : absent) s += " no " + key;
  for (const auto& [key, rank] : ranks) s += " " + key + " of rank " + std::to_string(rank);
  for (const auto& [key, value] : options) s += " " + key + "=" + std::to_string(value);
  return s;
}

EngineRun::EngineRun(const TestedEngine& engine, const EngineCase& c) : engine_(engine), case_(c) {
  std::mt19937_64 random(c.seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform(0, 1);
  std::map<std::string, int64_t> sizes = c.sizes;
  sizes["N"] = c.cu_seqlens.empty() ? sizes.at("B") : static_cast<int64_t>(c.cu_seqlens.size()) - 1;
  const size_t n = engine.fields.tensors.size();
  for (auto* list : {&in_, &out_, &out64_, &incoming_, &grad_, &grad64_}) list->resize(n);
  for (size_t i = 0; i < n; ++i) {
    const TensorField& field = engine.fields.tensors[i];
    const auto rank = c.ranks.find(field.name);
    const ShapeText text =
        rank == c.ranks.end() ? first_shape(field.shape) : shape_of_rank(field.shape, rank->second);
    std::vector<int64_t> shape;
    text.for_each([&](std::string_view name, int64_t literal) {
      shape.push_back(literal >= 0 ? literal : sizes.at(std::string(name)));
    });
    const bool token = field.role == Role::kToken || field.role == Role::kOut;
    const int32_t dtype = token ? c.dtype : HEED_FLOAT32;
    const auto fill = [&](Stored& x, const std::string& name) {
      for (int64_t j = 0; j < x.count(); ++j) {
        x.set(j, engine.sample(name, normal(random), uniform(random)));
      }
    };
    if (is_input(field.role)) {
      if (c.absent.count(field.name) > 0) continue;
      const bool rows = field.role != Role::kState && shape.size() > 1;
      // Pairs lie side by side: NaN between them would be no row.
      const bool pairs = text.text.ends_with(",2");
      in_[i] = Stored(dtype, shape, rows && !pairs ? c.padding : 0);
      fill(in_[i], field.name);
      grad_[i] = Stored(HEED_FLOAT32, shape);
      grad64_[i] = Stored(HEED_FLOAT64, shape);
    } else {
      out_[i] = Stored(dtype, shape);
      out64_[i] = Stored(HEED_FLOAT64, shape);
      incoming_[i] = Stored(dtype, shape);
      fill(incoming_[i], std::string("grad_") + field.name);
    }
  }
}

void* EngineRun::call(bool reference) {
  const CallFields& f = engine_.fields;
  bytes_.assign((f.size + 7) / 8, 0);
  auto* head = reinterpret_cast<heed_call*>(bytes_.data());
  head->struct_size = static_cast<uint32_t>(f.size);
  if (!case_.cu_seqlens.empty()) {
    head->cu_seqlens = case_.cu_seqlens.data();
    head->sequences = static_cast<int64_t>(case_.cu_seqlens.size()) - 1;
  }
  char* options = reinterpret_cast<char*>(bytes_.data()) + f.options_at;
  for (size_t i = 0; i < f.options.size(); ++i) {
    const auto it = case_.options.find(f.options[i].name);
    const double value = it == case_.options.end() ? f.options[i].value : it->second;
    const auto integer = static_cast<int64_t>(value);
    if (f.options[i].kind == OptionKind::kNumber) {
      std::memcpy(options + 8 * i, &value, 8);
    } else {
      std::memcpy(options + 8 * i, &integer, 8);
    }
  }
  heed_view *in = call_views(f, bytes_.data()), *grad = call_grads(f, bytes_.data());
  for (size_t i = 0; i < f.tensors.size(); ++i) {
    if (is_input(f.tensors[i].role)) {
      in[i] = in_[i].view();
      grad[i] = (reference ? grad64_ : grad_)[i].view();
    } else {
      in[i] = (reference ? out64_ : out_)[i].view();
      grad[i] = incoming_[i].view();
    }
  }
  return bytes_.data();
}

bool EngineRun::has(const std::string& name) const {
  const int i = engine_.fields.find(name);
  return !in_[i].sizes.empty() || !out_[i].sizes.empty();
}
Stored& EngineRun::tensor(const std::string& name) { return in_[engine_.fields.find(name)]; }
Stored& EngineRun::result(const std::string& name, bool reference) {
  return (reference ? out64_ : out_)[engine_.fields.find(name)];
}
Stored& EngineRun::gradient(const std::string& name, bool reference) {
  return (reference ? grad64_ : grad_)[engine_.fields.find(name)];
}

void EngineRun::run(const heed_backend& backend, int32_t pass, const heed_parallel* parallel,
                    bool keep) {
  void* c = call(false);
  auto* head = static_cast<heed_call*>(c);
  if (pass == HEED_FORWARD && keep && backend.saved != nullptr) {
    saved_.assign(static_cast<size_t>(backend.saved(c)), 0);
    head->saved = saved_.data();
  }
  if (pass == HEED_BACKWARD && keep && !saved_.empty()) head->saved = saved_.data();
  const int64_t size = backend.workspace(c, pass, parallel ? parallel->threads : 1);
  std::vector<char> workspace(static_cast<size_t>(size) + 1, 0x7f);
  heed_message message = {};
  ASSERT_EQ(backend.run(c, pass, workspace.data(), nullptr, parallel, &message), HEED_OK)
      << message.text;
  EXPECT_EQ(workspace.back(), 0x7f) << "the workspace is too small";
}

void EngineRun::run_reference(int32_t pass) {
  heed_message message = {};
  ASSERT_EQ(engine_.reference(call(true), pass, &message), HEED_OK) << message.text;
}

namespace {

// relative_error, where infinities that are equal are no error.
double error_of(std::vector<double> x, std::vector<double> y) {
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isinf(x[i]) && x[i] == y[i]) x[i] = y[i] = 0;
  }
  return relative_error(x, y);
}

void expect_outputs(const TestedEngine& engine, EngineRun& run, const std::string& name,
                    double bound) {
  for (const TensorField& field : engine.fields.tensors) {
    if (is_input(field.role) || !run.has(field.name)) continue;
    const double limit = field.role == Role::kOut ? bound : 2e-6;
    EXPECT_LE(
        error_of(run.result(field.name, false).values(), run.result(field.name, true).values()),
        limit)
        << field.name << " of " << name;
  }
}

}  // namespace

void expect_engine_equals_reference(const TestedEngine& engine, const EngineCase& c,
                                    const heed_parallel* parallel) {
  const double bound = c.dtype == HEED_FLOAT32 ? 2e-6 : c.dtype == HEED_BFLOAT16 ? 3e-3 : 4e-4;
  for (const heed_backend& backend : engine.backends()) {
    const std::string name = std::string(backend.name) + " " + c.name();
    EngineRun run(engine, c);
    run.run_reference(HEED_FORWARD);
    run.run_reference(HEED_BACKWARD);
    for (const bool keep : {true, false}) {
      run.run(backend, HEED_FORWARD, parallel, keep);
      run.run(backend, HEED_BACKWARD, parallel, keep);
      expect_outputs(engine, run, name, bound);
      for (const TensorField& field : engine.fields.tensors) {
        if (!is_input(field.role) || !run.has(field.name)) continue;
        EXPECT_LE(error_of(run.gradient(field.name, false).values(),
                           run.gradient(field.name, true).values()),
                  1e-5)
            << "gradient of " << field.name << " of " << name;
      }
    }
    if (c.cu_seqlens.empty() && c.sizes.at("T") == 1) {
      EngineRun step(engine, c);
      step.run_reference(HEED_FORWARD);
      step.run(backend, HEED_STEP, parallel);
      expect_outputs(engine, step, name + " step", bound);
    }
  }
}

void expect_every_target(const TestedEngine& engine, EngineCase c) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    for (const int32_t dtype : {HEED_FLOAT32, HEED_BFLOAT16, HEED_FLOAT16}) {
      c.dtype = dtype;
      SCOPED_TRACE(hwy::TargetName(target));
      expect_engine_equals_reference(engine, c);
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace heed::kernel::test
