#include "plan/score.h"

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>

#include "cache/plan/kinds.h"
#include "cache/quantised.h"
#include "io/error.h"
#include "op/attend.h"

namespace heed::plan {

Grid default_grid(int64_t context, int64_t sinks) {
  Grid grid;
  grid.sinks = sinks;
  for (int64_t window = 32; window + sinks < context; window *= 2) {
    grid.windows.push_back(window);
    if (const int64_t middle = window + window / 2; 4 * middle <= context) {
      grid.windows.push_back(middle);
    }
  }
  return grid;
}

Sample text_sample(const eval::Tokens& text, int64_t from) {
  Sample sample{text, {}};
  for (int64_t t = from - 1; t + 1 < static_cast<int64_t>(text.size()); ++t) {
    sample.rows.push_back(t);
  }
  return sample;
}

Sample needle_sample(const data::NeedleDocument& document, int64_t limit) {
  Sample sample;
  sample.tokens.assign(document.tokens.begin(), document.tokens.end());
  for (const auto& needle : document.needles) {
    if (static_cast<int64_t>(sample.tokens.size() + needle.question.size() + needle.answer.size()) >
        limit) {
      break;
    }
    sample.tokens.insert(sample.tokens.end(), needle.question.begin(), needle.question.end());
    sample.answers.push_back(static_cast<int64_t>(sample.rows.size()));
    for (int32_t token : needle.answer) {
      sample.rows.push_back(static_cast<int64_t>(sample.tokens.size()) - 1);
      sample.tokens.push_back(token);
    }
  }
  if (sample.rows.empty()) {
    throw UsageError("a needle document of {} tokens leaves no room for a question below {}",
                     document.tokens.size(), limit);
  }
  sample.answers.push_back(static_cast<int64_t>(sample.rows.size()));
  return sample;
}

Sample copy_sample(const eval::Tokens& text, data::Random& random) {
  constexpr int64_t kLead = 8;  // tokens after which it is clear what is copied
  const auto size = static_cast<int64_t>(text.size());
  std::vector<std::pair<int64_t, int64_t>> passages;  // first token, length
  int64_t copied = 0;
  for (int n = 0; n < 3; ++n) {
    const int64_t length =
        std::min<int64_t>(60 + static_cast<int64_t>(random.below(181)), size / 8);
    if (copied + length > size / 3 || length <= kLead) break;
    passages.emplace_back(0, length);
    copied += length;
  }
  if (passages.empty()) throw UsageError("{} tokens are too few to copy a passage of them", size);
  Sample sample;
  sample.tokens.assign(text.begin(), text.end() - copied);
  const auto end = static_cast<int64_t>(sample.tokens.size());
  for (auto& [first, length] : passages) {
    first = static_cast<int64_t>(random.below(static_cast<uint64_t>(end - length)));
    for (int64_t t = 0; t < length; ++t) {
      if (t >= kLead) sample.rows.push_back(static_cast<int64_t>(sample.tokens.size()) - 1);
      sample.tokens.push_back(text[static_cast<size_t>(first + t)]);
    }
  }
  return sample;
}

double Scores::change(int64_t layer, int64_t head, int64_t option, bool with_linear) const {
  const size_t i = index(layer, head, option);
  const double sum = 0.5 * quadratic[i] + (with_linear ? linear[i] : 0.0);
  return rows ? sum / static_cast<double>(rows) : 0;
}

namespace {

struct Kept {
  at::Tensor q, k, v, out;
  op::AttendOptions options;
};

constexpr int64_t kRows = 512;  // whose scores over the vocabulary lie in memory at once

// Loss of rows [begin, end) of `hidden` [n, C], unreduced.
at::Tensor losses_of(const Decoder& model, const at::Tensor& hidden, const at::Tensor& targets,
                     int64_t begin, int64_t end) {
  const auto logits = model.logits(hidden.slice(0, begin, end)).to(at::kFloat);
  return at::cross_entropy_loss(logits, targets.slice(0, begin, end), {}, at::Reduction::None);
}

// What each row's loss weighs (Sample::answers), [n] float32; undefined: 1.
at::Tensor weights_of(const Decoder& model, const Sample& sample, const at::Tensor& hidden,
                      const at::Tensor& targets) {
  if (sample.answers.empty()) return {};
  constexpr double kLeast = 0.1;
  at::NoGradGuard no_gradients;
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < hidden.size(0); begin += kRows) {
    parts.push_back(
        losses_of(model, hidden, targets, begin, std::min(begin + kRows, hidden.size(0))));
  }
  const auto losses = at::cat(parts);
  auto weights = at::empty_like(losses);
  for (size_t n = 0; n + 1 < sample.answers.size(); ++n) {
    const int64_t begin = sample.answers[n], end = sample.answers[n + 1];
    weights.slice(0, begin, end)
        .copy_(losses.slice(0, begin, end).sum().neg().exp().clamp_min(kLeast));
  }
  return weights;
}

// Attention with one window for all heads.
at::Tensor windowed(const Kept& kept, const HeadProgram& program) {
  op::AttendOptions options = kept.options;
  options.head_window = options.head_sinks = at::Tensor();
  const KeyLimit limit = kind_of(program).limit(program);
  options.window = limit.window;
  options.sinks = limit.sinks;
  return std::get<0>(op::attend(kept.q, kept.k, kept.v, options));
}

// x [B, T, Hk, D] as heads keep it in few bits, centre [Hk, D] or undefined.
at::Tensor kept_in(const at::Tensor& x, int bits, int64_t exact, const at::Tensor& centre) {
  at::Tensor turned = rotated(x);
  if (centre.defined()) turned = turned.sub(centre);
  at::Tensor again = decode(encode(turned, bits), bits, x.size(3));
  if (centre.defined()) again = again.add(centre);
  again = rotated(again).to(x.scalar_type());
  const int64_t first = std::min(exact, x.size(1));
  return at::cat({x.narrow(1, 0, first), again.slice(1, first)}, 1);
}

// [Hk, D] of a layer, turned; undefined: none.
at::Tensor centre_of(const Centres& centres, int64_t layer, std::vector<float> Centre::*side,
                     const at::Device& device) {
  if (centres.empty()) return {};
  std::vector<at::Tensor> rows;
  for (const auto& centre : centres[static_cast<size_t>(layer)]) {
    if (!centre) return {};
    rows.push_back(at::tensor((*centre).*side));
  }
  return rows.empty() ? at::Tensor() : rotated(at::stack(rows)).to(device);
}

// Outputs of attention by layer, and what the sample's loss changes by when they change.
struct Effects {
  std::vector<Kept> layers;
  std::vector<at::Tensor> gradients;  // by layer; undefined where there is no attention
};

// One pass with gradients over a sample: adds its loss and rows to `scores`.
Effects effects_of(const Decoder& model, const Sample& sample, const Programs* programs,
                   Scores& scores) {
  Effects effects;
  effects.layers.resize(static_cast<size_t>(scores.layers));
  effects.gradients.resize(static_cast<size_t>(scores.layers));
  Pass pass;
  pass.programs = programs;
  pass.attention = [&](int64_t l, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const op::AttendOptions& options) {
    check_interrupted();
    auto out = std::get<0>(op::attend(q, k, v, options));
    if (!out.requires_grad()) out = out.detach().requires_grad_();
    effects.layers[l] = {q.detach(), k.detach(), v.detach(), out, options};
    return out;
  };
  at::AutoGradMode with_gradients(true);
  const auto device = model.options().device;
  const auto ids = at::tensor(sample.tokens, at::kLong).to(device).unsqueeze(0);
  const auto hidden = model.hidden(ids, pass)[0];
  const auto rows = at::tensor(sample.rows, at::kLong).to(device);
  const auto picked = hidden.index_select(0, rows);
  const auto targets = ids[0].index_select(0, rows + 1);
  // The output layer in pieces: its scores would not fit beside everything else.
  auto leaf = picked.detach().requires_grad_();
  const auto weights = weights_of(model, sample, leaf.detach(), targets);
  for (int64_t begin = 0; begin < leaf.size(0); begin += kRows) {
    const int64_t end = std::min(begin + kRows, leaf.size(0));
    auto loss = losses_of(model, leaf, targets, begin, end);
    if (weights.defined()) loss = loss * weights.slice(0, begin, end);
    loss = loss.sum();
    scores.loss += loss.item<double>();
    loss.backward();
  }
  scores.rows += static_cast<int64_t>(sample.rows.size());
  std::vector<at::Tensor> outputs;
  for (const auto& layer : effects.layers) {
    if (layer.out.defined()) outputs.push_back(layer.out);
  }
  if (outputs.empty()) {
    throw UsageError("no layer of this model keeps keys and values by heads: nothing to plan");
  }
  auto gradients = torch::autograd::grad({picked}, outputs, {leaf.grad()});
  size_t next = 0;
  for (size_t l = 0; l < effects.layers.size(); ++l) {
    if (effects.layers[l].out.defined()) effects.gradients[l] = std::move(gradients[next++]);
  }
  return effects;
}

// What each token's loss changes by, to first order, where a head's output changes, [T, Hk].
at::Tensor effect_of(const at::Tensor& change, const at::Tensor& gradient, int64_t heads) {
  return change.mul(gradient).sum(-1).unflatten(2, {heads, -1}).sum(-1)[0].to(at::kDouble);
}

// The same for keys alone, and values alone, in few bits.
void score_bits(const Kept& layer, const at::Tensor& gradient, const Grid& grid,
                const Centres& centres, int64_t l, Scores& scores) {
  const auto out = layer.out.detach();
  const at::Tensor k_centre = centre_of(centres, l, &Centre::k, out.device());
  const at::Tensor v_centre = centre_of(centres, l, &Centre::v, out.device());
  const auto add = [&](const at::Tensor& k, const at::Tensor& v, int64_t b,
                       std::vector<double>& sums) {
    const auto changed = std::get<0>(op::attend(layer.q, k, v, layer.options));
    const auto squares = effect_of(changed.sub_(out), gradient, scores.heads).square().sum(0).cpu();
    for (int64_t h = 0; h < scores.heads; ++h) {
      sums[scores.bits_index(l, h, b)] += squares[h].item<double>();
    }
  };
  for (int64_t b = 0; b < scores.bits; ++b) {
    check_interrupted();
    const int bits = grid.bits[static_cast<size_t>(b)];
    add(kept_in(layer.k, bits, grid.sinks, k_centre), layer.v, b, scores.keys);
    add(layer.k, kept_in(layer.v, bits, grid.sinks, v_centre), b, scores.values);
  }
}

// Adds what layer `l` says: importance of its heads (of `samples` samples), and the first-order
// change by every option of the grid.
void score_layer(const Kept& layer, const at::Tensor& gradient, const Grid& grid, bool full_changes,
                 int64_t l, size_t samples, Scores& scores) {
  const auto out = layer.out.detach();
  const auto importance = (gradient * out).sum(-1).abs().mean(1)[0].to(at::kDouble).cpu();
  const int64_t heads = importance.size(0);
  for (int64_t h = 0; h < heads; ++h) {
    scores.importance[static_cast<size_t>(l * heads + h)] +=
        importance[h].item<double>() / static_cast<double>(samples);
  }
  for (int64_t p = 0; p < scores.options; ++p) {
    const HeadProgram program = grid.program(p);
    if (program.full() && !full_changes) continue;
    const auto effect = effect_of(windowed(layer, program).sub_(out), gradient, scores.heads);
    const auto linear = effect.sum(0).cpu(), quadratic = effect.square().sum(0).cpu();
    for (int64_t h = 0; h < scores.heads; ++h) {
      scores.linear[scores.index(l, h, p)] += linear[h].item<double>();
      scores.quadratic[scores.index(l, h, p)] += quadratic[h].item<double>();
    }
  }
}

}  // namespace

Centres measure_centres(const Decoder& model, const std::vector<Sample>& samples, int64_t exact,
                        Progress& progress) {
  const auto& config = model.config();
  std::vector<at::Tensor> k(static_cast<size_t>(config.layers)), v = k;
  int64_t rows = 0, done = 0;
  at::NoGradGuard no_gradients;
  progress.begin("centres", static_cast<int64_t>(samples.size()));
  for (const Sample& sample : samples) {
    Pass pass;
    pass.attention = [&](int64_t l, const at::Tensor& q, const at::Tensor& k_in,
                         const at::Tensor& v_in, const op::AttendOptions& options) {
      check_interrupted();
      const auto add = [&](at::Tensor& sum, const at::Tensor& x) {
        const at::Tensor more = x.slice(1, exact).to(at::kDouble).sum(1)[0];
        sum = sum.defined() ? sum.add(more) : more;
      };
      add(k[l], k_in);
      add(v[l], v_in);
      return std::get<0>(op::attend(q, k_in, v_in, options));
    };
    const auto ids = at::tensor(sample.tokens, at::kLong).to(model.options().device).unsqueeze(0);
    model.hidden(ids, pass);
    rows += std::max<int64_t>(0, ids.size(1) - exact);
    progress.step(++done);
  }
  progress.end();
  Centres centres;
  for (size_t l = 0; l < k.size(); ++l) {
    auto& heads = centres.emplace_back();
    if (!k[l].defined() || rows == 0) continue;
    const auto mean = [&](const at::Tensor& sum, int64_t h) {
      const at::Tensor x =
          sum[h].div(static_cast<double>(rows)).to(at::kHalf).to(at::kFloat).cpu().contiguous();
      return std::vector<float>(x.const_data_ptr<float>(), x.const_data_ptr<float>() + x.numel());
    };
    for (int64_t h = 0; h < k[l].size(0); ++h) {
      heads.push_back(std::make_shared<const Centre>(Centre{mean(k[l], h), mean(v[l], h)}));
    }
  }
  return centres;
}

Scores score_heads(const Decoder& model, const std::vector<Sample>& samples, const Grid& grid,
                   const Programs* at, const Centres& centres, Progress& progress) {
  const auto& config = model.config();
  Scores scores;
  scores.layers = config.layers;
  scores.heads = config.kv_heads;
  scores.options = grid.options();
  const size_t size = static_cast<size_t>(scores.layers * scores.heads * scores.options);
  scores.linear.assign(size, 0);
  scores.quadratic.assign(size, 0);
  scores.bits = at == nullptr ? static_cast<int64_t>(grid.bits.size()) : 0;
  scores.keys.assign(static_cast<size_t>(scores.layers * scores.heads * scores.bits), 0);
  scores.values = scores.keys;
  scores.importance.assign(static_cast<size_t>(config.layers * config.heads), 0);
  progress.begin("scores", static_cast<int64_t>(samples.size()) * config.layers);
  int64_t done = 0;
  for (const auto& sample : samples) {
    Effects effects = effects_of(model, sample, at, scores);
    at::NoGradGuard no_gradients;
    for (int64_t l = 0; l < config.layers; ++l) {
      check_interrupted();
      Kept& layer = effects.layers[l];
      if (!layer.out.defined()) continue;
      score_layer(layer, effects.gradients[l], grid, at != nullptr, l, samples.size(), scores);
      score_bits(layer, effects.gradients[l], grid, centres, l, scores);
      layer = {};
      progress.step(++done);
    }
  }
  progress.end();
  for (const auto* values : {&scores.quadratic, &scores.keys, &scores.values}) {
    for (double value : *values) {
      if (!std::isfinite(value)) {
        throw Error("a head's score is not finite; the model or its dtype cannot run this text");
      }
    }
  }
  return scores;
}

Json to_json(const Scores& scores) {
  return {{"layers", scores.layers},       {"heads", scores.heads},
          {"options", scores.options},     {"rows", scores.rows},
          {"loss", scores.loss},           {"linear", scores.linear},
          {"quadratic", scores.quadratic}, {"importance", scores.importance},
          {"bits", scores.bits},           {"keys", scores.keys},
          {"values", scores.values}};
}

Scores scores_from_json(const Json& json, const std::string& where) {
  Scores scores;
  try {
    json.at("layers").get_to(scores.layers);
    json.at("heads").get_to(scores.heads);
    json.at("options").get_to(scores.options);
    json.at("rows").get_to(scores.rows);
    json.at("loss").get_to(scores.loss);
    json.at("linear").get_to(scores.linear);
    json.at("quadratic").get_to(scores.quadratic);
    json.at("importance").get_to(scores.importance);
    json.at("bits").get_to(scores.bits);
    json.at("keys").get_to(scores.keys);
    json.at("values").get_to(scores.values);
  } catch (const nlohmann::json::exception& e) {
    throw Error("{}: kept scores are broken ({}); delete the file to measure again", where,
                e.what());
  }
  const size_t size = static_cast<size_t>(scores.layers * scores.heads * scores.options);
  const size_t by_bits = static_cast<size_t>(scores.layers * scores.heads * scores.bits);
  if (scores.keys.size() != by_bits || scores.values.size() != by_bits || scores.layers < 1 ||
      scores.linear.size() != size || scores.quadratic.size() != size ||
      scores.importance.empty() ||
      scores.importance.size() % static_cast<size_t>(scores.layers) != 0) {
    throw Error("{}: kept scores have the wrong size; delete the file to measure again", where);
  }
  return scores;
}

}  // namespace heed::plan
