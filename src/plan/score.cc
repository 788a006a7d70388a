#include "plan/score.h"

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>

#include "cache/plan/kinds.h"
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
    const auto change = windowed(layer, program).sub_(out).mul_(gradient);
    const auto effect = change.sum(-1)
                            .unflatten(2, {scores.heads, -1})
                            .sum(-1)[0]  // [T, Hk]
                            .to(at::kDouble);
    const auto linear = effect.sum(0).cpu(), quadratic = effect.square().sum(0).cpu();
    for (int64_t h = 0; h < scores.heads; ++h) {
      scores.linear[scores.index(l, h, p)] += linear[h].item<double>();
      scores.quadratic[scores.index(l, h, p)] += quadratic[h].item<double>();
    }
  }
}

}  // namespace

Scores score_heads(const Decoder& model, const std::vector<Sample>& samples, const Grid& grid,
                   const Programs* at, Progress& progress) {
  const auto& config = model.config();
  Scores scores;
  scores.layers = config.layers;
  scores.heads = config.kv_heads;
  scores.options = grid.options();
  const size_t size = static_cast<size_t>(scores.layers * scores.heads * scores.options);
  scores.linear.assign(size, 0);
  scores.quadratic.assign(size, 0);
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
      layer = {};
      progress.step(++done);
    }
  }
  progress.end();
  for (double value : scores.quadratic) {
    if (!std::isfinite(value)) {
      throw Error("a head's score is not finite; the model or its dtype cannot run this text");
    }
  }
  return scores;
}

Json to_json(const Scores& scores) {
  return {{"layers", scores.layers},       {"heads", scores.heads},
          {"options", scores.options},     {"rows", scores.rows},
          {"loss", scores.loss},           {"linear", scores.linear},
          {"quadratic", scores.quadratic}, {"importance", scores.importance}};
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
  } catch (const nlohmann::json::exception& e) {
    throw Error("{}: kept scores are broken ({}); delete the file to measure again", where,
                e.what());
  }
  const size_t size = static_cast<size_t>(scores.layers * scores.heads * scores.options);
  if (scores.layers < 1 || scores.linear.size() != size || scores.quadratic.size() != size ||
      scores.importance.empty() ||
      scores.importance.size() % static_cast<size_t>(scores.layers) != 0) {
    throw Error("{}: kept scores have the wrong size; delete the file to measure again", where);
  }
  return scores;
}

}  // namespace heed::plan
