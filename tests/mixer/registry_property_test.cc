// What must hold for every mixer, run over the registry: forms agree, prefill and steps equal one
// pass, causality, independence of batches and heads, packs, gradients, extreme gates, odd sizes.
#include <gtest/gtest.h>

#include "io/error.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace {

using namespace testing;

constexpr double kForward = 2e-6, kBackward = 1e-5;
constexpr double kForwardBf16 = 6e-3, kBackwardBf16 = 1.5e-2, kGateBf16 = 3e-2;
constexpr double kForwardHalf = 1e-3;

template <typename F>
void for_all(F&& f) {
  ASSERT_GE(registry().all().size(), 10u);
  for (const Mechanism& m : registry().all()) {
    for (const SettingList& settings : variants(m)) {
      SCOPED_TRACE(m.card.id + " " + describe(settings));
      f(m, settings);
    }
  }
}

// `gates`: a looser bound for the gradients of inputs that --dtype does not convert.
void expect_close(const NamedTensors& y, const NamedTensors& reference, double bound,
                  const std::string& what, const Mechanism* m = nullptr, double gates = 0) {
  EXPECT_EQ(y.size(), reference.size()) << what;
  for (const auto& [name, tensor] : reference) {
    const auto it = y.find(name);
    ASSERT_TRUE(it != y.end()) << what << ": " << name << " is missing";
    const bool gate =
        m != nullptr && name.starts_with("grad_") && !m->card.apply.input(name.substr(5))->token;
    EXPECT_LE(relative_error(it->second, tensor), gate ? gates : bound) << what << ": " << name;
  }
}

// The outputs before `grad_`, or those after.
NamedTensors select(const NamedTensors& all, bool grads) {
  NamedTensors some;
  for (const auto& [name, t] : all) {
    if (name.starts_with("grad_") == grads) some[name] = t;
  }
  return some;
}

// Adds grad_out (and the gradients of final states) of the row's outputs.
NamedTensors with_grads(const Mechanism& m, NamedTensors inputs, const SettingList& settings) {
  const NamedTensors out = run(m, inputs, "naive", settings);
  at::manual_seed(5);
  for (const TensorSpec& spec : m.card.apply.outputs) {
    const auto it = out.find(spec.name);
    if (spec.grad && it != out.end()) inputs["grad_" + spec.name] = at::randn(it->second.sizes());
  }
  return inputs;
}

TEST(MixerProperties, FormsAgree) {
  for_all([](const Mechanism& m, const SettingList& settings) {
    for (const int64_t tokens : {0, 1, 2, 37, 131}) {
      for (const bool optional : {false, true}) {
        SampleOptions options;
        options.optional = optional;
        const NamedTensors in = make_inputs(m, small_sizes(tokens), settings, 7 + tokens, options);
        const NamedTensors reference = run(m, in, "naive", settings, at::kDouble);
        for (const std::string& form : forms_of(m, settings)) {
          expect_close(run(m, in, form, settings), reference, kForward,
                       form + " T=" + std::to_string(tokens));
        }
      }
    }
  });
}

TEST(MixerProperties, FormsAgreeAtOrdinarySizes) {
  for_all([](const Mechanism& m, const SettingList& settings) {
    Sizes sizes = small_sizes(200);
    sizes["B"] = sizes["S"] = 1;
    sizes["K"] = sizes["V"] = sizes["D"] = sizes["Dv"] = 64;
    const NamedTensors in = make_inputs(m, sizes, settings, 3);
    const NamedTensors reference = run(m, in, "naive", settings, at::kDouble);
    for (const std::string& form : forms_of(m, settings)) {
      expect_close(run(m, in, form, settings), reference, kForward, form);
    }
  });
}

TEST(MixerProperties, CrossLengths) {
  for_all([](const Mechanism& m, const SettingList& settings) {
    if (m.card.apply.input("q") == nullptr || dim_of(m.card.apply.input("q")->shape, "Tq") < 0)
      return;
    for (const auto& [tq, tk] :
         {std::pair<int64_t, int64_t>{5, 23}, {23, 5}, {1, 40}, {4, 0}, {0, 4}}) {
      Sizes sizes = small_sizes(tq);
      sizes["Tk"] = tk;
      const NamedTensors in = make_inputs(m, sizes, settings, 11);
      const NamedTensors reference = run(m, in, "naive", settings, at::kDouble);
      for (const std::string& form : forms_of(m, settings)) {
        expect_close(run(m, in, form, settings), reference, kForward,
                     form + " Tq=" + std::to_string(tq) + " Tk=" + std::to_string(tk));
      }
    }
  });
}

TEST(MixerProperties, HalfPrecisionStorage) {
  for_all([](const Mechanism& m, const SettingList& settings) {
    for (const auto& [dtype, bound] :
         {std::pair{at::kBFloat16, kForwardBf16}, {at::kHalf, kForwardHalf}}) {
      SampleOptions options;
      options.dtype = dtype;
      const NamedTensors in = make_inputs(m, small_sizes(70), settings, 13, options);
      const NamedTensors reference = run(m, in, "naive", settings, at::kDouble);
      for (const std::string& form : forms_of(m, settings)) {
        expect_close(run(m, in, form, settings, dtype), reference, bound, form);
      }
    }
  });
}

TEST(MixerProperties, ExtremeGates) {
  for_all([](const Mechanism& m, const SettingList& settings) {
    if (!m.traits.resets) return;
    SampleOptions options;
    options.extreme = true;
    const NamedTensors in = make_inputs(m, small_sizes(90), settings, 17, options);
    const NamedTensors reference = run(m, in, "naive", settings, at::kDouble);
    const NamedTensors with = with_grads(m, in, settings);
    const NamedTensors reference_grads =
        select(run(m, with, "naive", settings, at::kDouble, true), true);
    for (const auto& [name, t] : reference_grads)
      ASSERT_TRUE(t.isfinite().all().item<bool>()) << name;
    for (const std::string& form : forms_of(m, settings)) {
      expect_close(run(m, in, form, settings), reference, kForward, form);
      if (form == "recurrent") continue;
      const NamedTensors grads = select(run(m, with, form, settings, at::kFloat, true), true);
      expect_close(grads, reference_grads, kBackward, form + " gradients");
      const at::Tensor reset = in.at("log_decay").isinf();
      EXPECT_EQ(grads.at("grad_log_decay").masked_select(reset).abs().sum().item<double>(), 0)
          << form;
    }
  });
}

TEST(MixerProperties, PrefillAndStepsEqualOnePass) {
  for_all([](const Mechanism& m, const SettingList& base) {
    if (!m.traits.causal) return;
    const SettingList settings = causal(m, base);
    const int64_t tokens = 41;
    const NamedTensors in = make_inputs(m, small_sizes(tokens), settings, 19);
    const NamedTensors whole = run(m, in, "naive", settings, at::kDouble);
    for (const int64_t cut : {0, 1, 16, 40, 41}) {
      const std::string what = "cut at " + std::to_string(cut);
      if (in.count("k") && dim_of(m.card.apply.input("k")->shape, "Tk") >= 0) {
        // A key/value cache: the last queries against all keys, decoded.
        NamedTensors rest = in;
        rest["q"] = in.at("q").slice(1, cut);
        const NamedTensors y = run(m, rest, "recurrent", settings);
        EXPECT_LE(relative_error(y.at("out"), whole.at("out").slice(1, cut)), kForward) << what;
        continue;
      }
      const auto part = [&](int64_t begin, int64_t end) {
        NamedTensors piece = in;
        for (const TensorSpec& spec : m.card.apply.inputs) {
          const int64_t dim = dim_of(spec.shape, "T");
          if (dim >= 0 && piece.count(spec.name)) {
            piece[spec.name] = piece[spec.name].slice(dim, begin, end);
          }
        }
        return piece;
      };
      const NamedTensors first = run(m, part(0, cut), "", settings);
      NamedTensors rest = part(cut, tokens);
      for (const auto& [name, t] : first) {
        if (name.starts_with("final_")) rest["initial_" + name.substr(6)] = t;
      }
      for (const std::string form : {"recurrent", "chunked"}) {
        const NamedTensors second = run(m, rest, form, settings);
        for (const auto& [name, t] : whole) {
          const at::Tensor y =
              name == "out" ? at::cat({first.at(name), second.at(name)}, 1) : second.at(name);
          EXPECT_LE(relative_error(y, t), kForward) << what << " " << form << " " << name;
        }
      }
    }
  });
}

TEST(MixerProperties, Causality) {
  for_all([](const Mechanism& m, const SettingList& base) {
    if (!m.traits.causal) return;
    const SettingList settings = causal(m, base);
    const int64_t tokens = 50, t = 23;
    const NamedTensors in = make_inputs(m, small_sizes(tokens), settings, 23);
    NamedTensors changed = in;
    const NamedTensors other = make_inputs(m, small_sizes(tokens), settings, 24);
    for (const TensorSpec& spec : m.card.apply.inputs) {
      for (const char* axis : {"T", "Tq", "Tk"}) {
        const int64_t dim = dim_of(spec.shape, axis);
        if (dim < 0 || !in.count(spec.name)) continue;
        changed[spec.name] =
            at::cat({in.at(spec.name).slice(dim, 0, t), other.at(spec.name).slice(dim, t)}, dim);
      }
    }
    for (const std::string& form : forms_of(m, settings)) {
      const at::Tensor a = run(m, in, form, settings).at("out").slice(1, 0, t);
      const at::Tensor b = run(m, changed, form, settings).at("out").slice(1, 0, t);
      EXPECT_LE(relative_error(b, a), 1e-7) << form;
    }
  });
}

TEST(MixerProperties, BatchesAndHeadsAreIndependent) {
  for_all([](const Mechanism& m, const SettingList& settings) {
    const Sizes sizes = small_sizes(33);
    const NamedTensors in = make_inputs(m, sizes, settings, 29);
    for (const std::string& form : forms_of(m, settings)) {
      const NamedTensors whole = run(m, in, form, settings);
      const auto compare = [&](const std::map<std::string, std::pair<int64_t, int64_t>>& ranges,
                               const char* what) {
        const auto cut = [&](const std::vector<TensorSpec>& specs, NamedTensors tensors) {
          for (const TensorSpec& spec : specs) {
            for (const auto& [axis, range] : ranges) {
              const int64_t dim = dim_of(spec.shape, axis);
              if (dim >= 0 && tensors.count(spec.name)) {
                tensors[spec.name] = tensors[spec.name].slice(dim, range.first, range.second);
              }
            }
          }
          return tensors;
        };
        expect_close(run(m, cut(m.card.apply.inputs, in), form, settings),
                     cut(m.card.apply.outputs, whole), kForward, form + " " + what);
      };
      compare({{"B", {1, 2}}, {"S", {1, 2}}}, "second batch alone");
      if (m.traits.heads_independent) {
        compare({{"H", {1, 2}}, {"Hk", {1, 2}}, {"Hq", {2, 4}}}, "second head alone");
      }
    }
  });
}

TEST(MixerProperties, PacksEqualSeparateSequences) {
  for_all([](const Mechanism& m, const SettingList& settings) {
    const TensorSpec* offsets = m.card.apply.input("cu_seqlens");
    if (offsets == nullptr) return;
    if (!offsets->when.empty() && !is_on(m, settings, "causal")) return;
    const bool cross = m.card.apply.input("cu_seqlens_q") != nullptr;
    const std::vector<int64_t> q = {0, 5, 5, 6, 30, 70};
    const std::vector<int64_t> k = cross ? std::vector<int64_t>{0, 8, 9, 9, 33, 60} : q;
    Sizes sizes = small_sizes(70);
    sizes["B"] = 1;
    sizes["S"] = static_cast<int64_t>(q.size()) - 1;
    sizes["Tk"] = k.back();
    NamedTensors in = make_inputs(m, sizes, settings, 31);
    NamedTensors pack = in;
    if (cross) {
      pack["cu_seqlens_q"] = at::tensor(q, at::kLong);
      pack["cu_seqlens_k"] = at::tensor(k, at::kLong);
    } else {
      pack["cu_seqlens"] = at::tensor(q, at::kLong);
    }
    const auto cut = [&](const std::vector<TensorSpec>& specs, NamedTensors tensors, size_t n) {
      for (const TensorSpec& spec : specs) {
        if (!tensors.count(spec.name)) continue;
        at::Tensor& t = tensors[spec.name];
        for (const char* axis : {"T", "Tq", "Tk", "S"}) {
          const int64_t dim = dim_of(spec.shape, axis);
          if (dim < 0) continue;
          const auto& offset = std::string(axis) == "Tk" ? k : q;
          const auto first = static_cast<int64_t>(n);
          t = std::string(axis) == "S" ? t.slice(dim, first, first + 1)
                                       : t.slice(dim, offset[n], offset[n + 1]);
        }
      }
      return tensors;
    };
    for (const std::string& form : forms_of(m, settings)) {
      const NamedTensors packed = run(m, pack, form, settings);
      for (size_t n = 0; n + 1 < q.size(); ++n) {
        expect_close(cut(m.card.apply.outputs, packed, n),
                     run(m, cut(m.card.apply.inputs, in, n), "naive", settings, at::kDouble),
                     kForward, form + " sequence " + std::to_string(n));
      }
    }
    // Gradients of a pack in one fast pass.
    const NamedTensors with = with_grads(m, pack, settings);
    const std::string fast = forms_of(m, settings).front();
    expect_close(select(run(m, with, fast, settings, at::kFloat, true), true),
                 select(run(m, with, "naive", settings, at::kDouble, true), true), kBackward,
                 "gradients of a pack");
  });
}

TEST(MixerProperties, NaiveGradientsAreThoseOfFiniteDifferences) {
  for_all([](const Mechanism& m, const SettingList& settings) {
    const NamedTensors in = with_grads(m, make_inputs(m, small_sizes(9), settings, 37), settings);
    const NamedTensors all = run(m, in, "naive", settings, at::kDouble, true);
    const auto loss = [&](const NamedTensors& x) {
      NamedTensors plain;
      for (const auto& [name, t] : x) {
        if (!name.starts_with("grad_")) plain[name] = t;
      }
      const NamedTensors out = run(m, plain, "naive", settings, at::kDouble);
      double sum = 0;
      for (const auto& [name, t] : out) {
        const auto it = in.find("grad_" + name);
        if (it != in.end()) sum += t.mul(it->second.to(at::kDouble)).sum().item<double>();
      }
      return sum;
    };
    at::manual_seed(41);
    for (const auto& [name, grad] : select(all, true)) {
      const std::string input = name.substr(5);
      const at::Tensor x = in.at(input).to(at::kDouble);
      const at::Tensor direction = at::randn(x.sizes(), at::kDouble);
      const double h = 1e-6;
      NamedTensors plus = in, minus = in;
      plus[input] = x.add(direction, h);
      minus[input] = x.sub(direction, h);
      const double numeric = (loss(plus) - loss(minus)) / (2 * h);
      const double exact = grad.mul(direction).sum().item<double>();
      EXPECT_NEAR(numeric, exact, 1e-5 * (1 + std::abs(exact))) << input;
    }
  });
}

TEST(MixerProperties, FastGradientsAreThoseOfTheNaiveForm) {
  for_all([](const Mechanism& m, const SettingList& settings) {
    for (const auto& [dtype, bound, gate_bound] : {std::tuple{at::kFloat, kBackward, kBackward},
                                                   {at::kBFloat16, kBackwardBf16, kGateBf16}}) {
      SampleOptions options;
      options.dtype = dtype;
      NamedTensors in =
          with_grads(m, make_inputs(m, small_sizes(75), settings, 43, options), settings);
      if (in.count("grad_out")) in["grad_out"] = in["grad_out"].to(dtype).to(at::kFloat);
      const NamedTensors reference = select(run(m, in, "naive", settings, at::kDouble, true), true);
      for (const std::string& form : forms_of(m, settings)) {
        if (form == "recurrent") continue;
        expect_close(select(run(m, in, form, settings, dtype, true), true), reference, bound,
                     form + (dtype == at::kFloat ? "" : " bfloat16"), &m, gate_bound);
      }
    }
  });
}

TEST(MixerProperties, StridedInputs) {
  for_all([](const Mechanism& m, const SettingList& settings) {
    const NamedTensors in = make_inputs(m, small_sizes(21), settings, 47);
    NamedTensors strided;
    for (const auto& [name, t] : in) {
      // The same values as every second row of a tensor laid out back to front.
      std::vector<int64_t> order(t.dim());
      for (int64_t i = 0; i < t.dim(); ++i) order[i] = t.dim() - 1 - i;
      const at::Tensor wide = at::repeat_interleave(t, 2, -1).permute(order).contiguous();
      strided[name] = wide.permute(order).slice(-1, 0, std::nullopt, 2);
    }
    for (const std::string& form : forms_of(m, settings)) {
      expect_close(run(m, strided, form, settings), run(m, in, form, settings), 1e-7, form);
    }
  });
}

TEST(MixerProperties, WrongInputsAreNamed) {
  for_all([](const Mechanism& m, const SettingList& settings) {
    const NamedTensors in = make_inputs(m, small_sizes(4), settings, 53);
    const auto message = [&](const NamedTensors& inputs, const std::string& form,
                             const SettingList& given, bool grad = false) -> std::string {
      try {
        run(m, inputs, form, given, at::kFloat, grad);
      } catch (const UsageError& e) {
        return e.what();
      }
      return "no error";
    };
    for (const auto& [name, t] : in) {
      NamedTensors wrong = in;
      wrong[name] = t.unsqueeze(0);
      EXPECT_NE(message(wrong, "", settings).find("tensor " + name), std::string::npos) << name;
      if (m.card.apply.input(name)->optional) continue;
      wrong.erase(name);
      EXPECT_NE(message(wrong, "", settings).find("tensor " + name), std::string::npos) << name;
    }
    NamedTensors more = in;
    more["nonsense"] = at::zeros({1});
    EXPECT_NE(message(more, "", settings).find("nonsense"), std::string::npos);
    EXPECT_NE(message(in, "sideways", settings).find("sideways"), std::string::npos);
    SettingList unknown = settings;
    unknown.emplace_back("colour", "1");
    EXPECT_NE(message(in, "", unknown).find("colour"), std::string::npos);
    EXPECT_NE(message(in, "recurrent", settings, true).find("recurrent"), std::string::npos);
  });
}

}  // namespace
}  // namespace heed::mixer
