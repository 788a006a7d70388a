#include "probe/figures.h"

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "io/error.h"
#include "op/attend.h"

namespace heed::probe {
namespace {

using eval::Tokens;

at::Tensor as_ids(const Tokens& tokens, const at::Device& device) {
  return at::tensor(tokens, at::kLong).to(device).unsqueeze(0);
}

double scale_of(const op::AttendOptions& options, int64_t width) {
  return options.scale.value_or(1.0 / std::sqrt(static_cast<double>(width)));
}

// Mean over the last queries of exp(part - whole), per head: [Hq].
at::Tensor mean_share(const at::Tensor& part, const at::Tensor& whole) {
  return at::exp(part - whole).mean(1)[0].to(at::kDouble).cpu();
}

void put(std::vector<HeadFigures>& heads, double HeadFigures::*field, const at::Tensor& values,
         double weight) {
  for (size_t h = 0; h < heads.size(); ++h) {
    heads[h].*field += weight * values[static_cast<int64_t>(h)].item<double>();
  }
}

// sum_i a_ij of one head over queries i = from, from + 1, ...: [T] float64, from the logsumexp that
// the first pass left, in blocks of queries whose weights fit the cache. q [n, D], k [T, D], lse
// [n].
at::Tensor column_sums(const at::Tensor& q, const at::Tensor& k, const at::Tensor& lse,
                       int64_t from, double scale, int64_t window) {
  constexpr int64_t kBlock = 128;
  const auto keys = k.to(at::kFloat).contiguous();
  const auto queries = q.to(at::kFloat).mul(scale);
  auto sums = at::zeros({k.size(0)}, keys.options().dtype(at::kDouble));
  for (int64_t begin = 0; begin < q.size(0); begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, q.size(0));
    const int64_t last = from + end;  // keys that the block's last query sees
    const int64_t first = window > 0 ? std::max<int64_t>(0, from + begin + 1 - window) : 0;
    auto weights = at::addmm(lse.slice(0, begin, end).unsqueeze(1), queries.slice(0, begin, end),
                             keys.slice(0, first, last).t(), /*beta=*/-1);
    // q k - lse; what a query does not see goes to -inf: keys behind its own, or beyond the window.
    const auto hide = [](const at::Tensor& part, const at::Tensor& hidden) {
      part.masked_fill_(hidden, -INFINITY);
    };
    const auto square = at::ones({end - begin, end - begin}, keys.options().dtype(at::kBool));
    hide(weights.slice(1, from + begin - first), square.triu(1));
    if (window > 0) {
      const auto p = at::arange(from + begin, last, lse.options().dtype(at::kLong)).unsqueeze(1);
      const auto j = at::arange(first, last, p.options()).unsqueeze(0);
      hide(weights, j <= p - window);
    }
    sums.slice(0, first, last).add_(weights.exp_().sum(0));
  }
  return sums;
}

// Sink, local, entropy and peak of one layer on one text.
void text_figures(const at::Tensor& q_all, const at::Tensor& k, const op::AttendOptions& options,
                  int64_t from, double weight, std::vector<HeadFigures>& heads) {
  const int64_t total = q_all.size(1), group = q_all.size(2) / k.size(2);
  const auto q = q_all.slice(1, from);
  // Where only logsumexp is wanted. PyTorch's CUDA kernels take widths of a multiple of 8.
  const auto no_value = at::zeros({1, total, k.size(2), k.is_cpu() ? 1 : 8}, k.options());
  // The whole row; values = keys give sum_j a_ij k_j.
  const auto [mean_key, lse] = op::attend(q, k, k, options);
  const double scale = scale_of(options, q.size(3));
  const auto expected = (q.to(at::kFloat) * mean_key.to(at::kFloat)).sum(-1) * scale;
  put(heads, &HeadFigures::entropy, (lse - expected).mean(1)[0].to(at::kDouble).cpu(), weight);

  // Keys 0..3: every query from `from` on sees all of them.
  const int64_t sinks = std::min(kSinkKeys, total);
  op::AttendOptions first = options;
  first.causal = false;
  first.window = first.sinks = 0;
  first.head_window = first.head_sinks = at::Tensor();
  const auto [sink_out, sink_lse] =
      op::attend(q, k.slice(1, 0, sinks), no_value.slice(1, 0, sinks), first);
  put(heads, &HeadFigures::sink, mean_share(sink_lse, lse), weight);

  int64_t index = 0;
  for (int64_t window : kLocalWindows) {
    if (window >= total) break;
    op::AttendOptions near = options;
    near.window = options.window ? std::min(options.window, window) : window;
    near.sinks = 0;
    near.head_window = near.head_sinks = at::Tensor();
    const auto [out, near_lse] = op::attend(q, k, no_value, near);
    const auto share = mean_share(near_lse, lse);
    for (size_t h = 0; h < heads.size(); ++h) {
      if (static_cast<int64_t>(heads[h].local.size()) <= index) heads[h].local.push_back(0);
      heads[h].local[index] += weight * share[static_cast<int64_t>(h)].item<double>();
    }
    ++index;
  }

  for (int64_t h = 0; h < q.size(2); ++h) {
    const auto columns = column_sums(q.select(2, h)[0], k.select(2, h / group)[0],
                                     lse.select(2, h)[0], from, scale, options.window)
                             .slice(0, sinks)
                             .div(static_cast<double>(q.size(1)));
    if (columns.size(0) == 0) continue;
    const auto [most, where] = columns.cpu().max(0);
    heads[h].peak = std::max(heads[h].peak, most.item<double>());
    if (heads[h].peak == most.item<double>()) {
      heads[h].peak_position = where.item<int64_t>() + sinks;
    }
  }
}

// Mean over the second copy of the weight on the first copy's token (shift 0) or the one after it.
at::Tensor copy_score(const at::Tensor& q, const at::Tensor& k, const at::Tensor& lse, double scale,
                      int64_t passage, int64_t shift) {
  const int64_t group = q.size(2) / k.size(2), total = q.size(1);
  const int64_t count = total - passage - shift;
  const auto queries = q.slice(1, passage, passage + count).to(at::kFloat);
  const auto keys = k.slice(1, shift, shift + count).repeat_interleave(group, 2).to(at::kFloat);
  const auto logits = (queries * keys).sum(-1) * scale;
  return at::exp(logits - lse.slice(1, passage, passage + count)).mean(1)[0].to(at::kDouble).cpu();
}

}  // namespace

std::vector<std::vector<double>> Figures::per_kv_head(const Decoder& model,
                                                      double (*figure)(const HeadFigures&)) const {
  std::vector<std::vector<double>> result;
  for (const auto& layer : heads) {
    std::vector<double> values;
    if (!layer.empty()) {
      const size_t group = static_cast<size_t>(model.config().heads / model.config().kv_heads);
      for (size_t begin = 0; begin < layer.size(); begin += group) {
        double most = figure(layer[begin]);
        for (size_t g = 1; g < group; ++g) most = std::max(most, figure(layer[begin + g]));
        values.push_back(most);
      }
    }
    result.push_back(std::move(values));
  }
  return result;
}

FigureInputs make_inputs(const data::RecallGenerator& generator, const data::Corpus& corpus,
                         int64_t context, int64_t texts, uint64_t seed) {
  FigureInputs inputs;
  inputs.texts = eval::spread_windows(corpus, texts, context);
  data::Random random(seed, 0x9e0b);
  for (int64_t n = 0; n < texts; ++n) {
    const auto passage = generator.text(context / 2, random);
    Tokens twice(passage.begin(), passage.end());
    twice.insert(twice.end(), passage.begin(), passage.end());
    inputs.repeats.push_back(std::move(twice));
    // Room for questions and answers beside the document.
    inputs.needles.push_back(generator.needles(context - context / 16, 8, random, context));
  }
  return inputs;
}

namespace {

// What one text adds of a head's importance: mean over queries of |<dLoss/dy, y>|, from the outputs
// of attention by layer. The loss is that of rows [from, T - 1) of `hidden` [T, C].
void add_importance(const Decoder& model, const at::Tensor& hidden, const at::Tensor& ids,
                    const std::vector<at::Tensor>& outputs, double weight, Figures& figures) {
  // Loss of the scored tokens, in pieces so that their scores do not lie in memory at once.
  constexpr int64_t kRows = 512;
  const auto rows = hidden.slice(0, figures.from, hidden.size(0) - 1);
  const auto targets = ids[0].slice(0, figures.from + 1);
  auto leaf = rows.detach().requires_grad_();
  for (int64_t begin = 0; begin < rows.size(0); begin += kRows) {
    const int64_t end = std::min(begin + kRows, rows.size(0));
    const auto scores = model.logits(leaf.slice(0, begin, end)).to(at::kFloat);
    at::cross_entropy_loss(scores, targets.slice(0, begin, end), {}, at::Reduction::Sum).backward();
  }
  std::vector<at::Tensor> wanted;
  std::vector<size_t> layers;  // of these; those of other layers have no figures
  for (size_t l = 0; l < outputs.size(); ++l) {
    if (outputs[l].defined()) {
      wanted.push_back(outputs[l]);
      layers.push_back(l);
    }
  }
  if (wanted.empty()) return;
  const auto gradients = torch::autograd::grad({rows}, wanted, {leaf.grad()});
  for (size_t n = 0; n < wanted.size(); ++n) {
    const auto effect = (gradients[n].to(at::kFloat) * wanted[n].detach().to(at::kFloat))
                            .sum(-1)
                            .abs()
                            .mean(1)[0]
                            .to(at::kDouble)
                            .cpu();
    put(figures.heads[layers[n]], &HeadFigures::importance, effect, weight);
  }
}

// Whether a head's weights are a softmax of scale q.k over what it sees, which the figures take for
// granted.
bool is_plain(const op::AttendOptions& o) {
  return o.weight == kernel::Weight::kSoftmax && o.soft_cap == 0 && !o.key_bias.defined() &&
         !o.q_bias.defined() && !o.alibi_slopes.defined() && !o.relative_bias.defined();
}

void measure_text(const Decoder& model, const Tokens& text, bool importance, double weight,
                  Figures& figures) {
  std::vector<at::Tensor> outputs(figures.heads.size());
  Pass pass;
  pass.attention = [&](int64_t l, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const op::AttendOptions& options) {
    check_interrupted();
    if (!is_plain(options) && !figures.heads[l].empty()) {
      figures.heads[l].clear();
      figures.other_weights.push_back(l);
    }
    if (!figures.heads[l].empty()) {
      at::NoGradGuard guard;
      text_figures(q.detach(), k.detach(), options, figures.from, weight, figures.heads[l]);
    }
    auto out = std::get<0>(op::attend(q, k, v, options));
    if (importance && !figures.heads[l].empty()) {
      if (!out.requires_grad()) out = out.detach().requires_grad_();
      outputs[l] = out;
    }
    return out;
  };
  const auto ids = as_ids(text, model.options().device);
  at::AutoGradMode mode(importance);
  const auto hidden = model.hidden(ids, pass)[0];
  if (importance) add_importance(model, hidden, ids, outputs, weight, figures);
}

// A passage that comes twice: how much of the second copy looks at the first.
void measure_repeat(const Decoder& model, const Tokens& text, double weight, Figures& figures) {
  const int64_t passage = static_cast<int64_t>(text.size()) / 2;
  Pass pass;
  pass.attention = [&](int64_t l, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const op::AttendOptions& options) {
    check_interrupted();
    auto [out, lse] = op::attend(q, k, v, options);
    if (figures.heads[l].empty()) return out;
    const double scale = scale_of(options, q.size(3));
    put(figures.heads[l], &HeadFigures::repeat, copy_score(q, k, lse, scale, passage, 1), weight);
    put(figures.heads[l], &HeadFigures::echo, copy_score(q, k, lse, scale, passage, 0), weight);
    return out;
  };
  model.hidden(as_ids(text, model.options().device), pass);
}

// A document and its questions in one sequence: at row rows[a], which produces an answer token, the
// needle's token is at sources[a].
struct Questions {
  Tokens ids, rows, sources;

  Questions(const data::NeedleDocument& document, int64_t context)
      : ids(document.tokens.begin(), document.tokens.end()) {
    for (const auto& needle : document.needles) {
      if (static_cast<int64_t>(ids.size() + needle.question.size() + needle.answer.size()) >
          context) {
        break;
      }
      ids.insert(ids.end(), needle.question.begin(), needle.question.end());
      for (size_t a = 0; a < needle.answer.size(); ++a) {
        rows.push_back(static_cast<int64_t>(ids.size()) - 1);
        sources.push_back(needle.code + static_cast<int64_t>(a));
        ids.push_back(needle.answer[a]);
      }
    }
  }
};

// How often a head's strongest key is the needle's token.
void measure_needles(const Decoder& model, const data::NeedleDocument& document, double weight,
                     Figures& figures) {
  const Questions questions(document, model.context());
  if (questions.rows.empty()) return;
  const auto device = model.options().device;
  const auto rows = at::tensor(questions.rows, at::kLong).to(device);
  const auto source = at::tensor(questions.sources, at::kLong).to(device);
  Pass pass;
  pass.attention = [&](int64_t l, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const op::AttendOptions& options) {
    check_interrupted();
    if (figures.heads[l].empty()) return std::get<0>(op::attend(q, k, v, options));
    const int64_t group = q.size(2) / k.size(2);
    const auto picked = q.index_select(1, rows)[0].permute({1, 0, 2}).to(at::kFloat);
    const auto keys = k[0].repeat_interleave(group, 1).permute({1, 2, 0}).to(at::kFloat);
    auto logits = at::matmul(picked, keys);  // [Hq, rows, T]
    const auto position = at::arange(k.size(1), rows.options());
    logits.masked_fill_((position.unsqueeze(0) > rows.unsqueeze(1)).unsqueeze(0), -INFINITY);
    const auto hit = (logits.argmax(-1) == source.unsqueeze(0)).to(at::kDouble).mean(1).cpu();
    put(figures.heads[l], &HeadFigures::needle, hit, weight);
    return std::get<0>(op::attend(q, k, v, options));
  };
  model.hidden(as_ids(questions.ids, device), pass);
}

}  // namespace

Figures measure_heads(const Decoder& model, const FigureInputs& inputs, Progress& progress) {
  const auto& config = model.config();
  Figures figures;
  if (inputs.texts.empty()) throw UsageError("no text to measure heads on");
  figures.context = static_cast<int64_t>(inputs.texts[0].size());
  figures.from = std::min<int64_t>(eval::kScoredFrom, figures.context / 2);
  figures.heads.resize(config.layers);
  for (int64_t l = 0; l < config.layers; ++l) {
    if (model.blocks()[l].mixer->heads()) figures.heads[l].resize(config.heads);
  }
  const auto any = [&] {
    return std::any_of(figures.heads.begin(), figures.heads.end(),
                       [](const auto& layer) { return !layer.empty(); });
  };
  constexpr const char* kNone =
      "no layer of this model has heads with softmax weights of q.k alone: there is nothing to "
      "measure";
  if (!any()) throw UsageError("{}", kNone);
  int64_t done = 0;
  progress.begin("heads", static_cast<int64_t>(inputs.texts.size() + inputs.repeats.size() +
                                               inputs.needles.size()));
  // Each of a list counts as much as the others.
  const auto each = [&](const auto& list, auto&& measure) {
    for (const auto& one : list) {
      measure(one, 1.0 / static_cast<double>(list.size()));
      progress.step(++done);
    }
  };
  each(inputs.texts, [&](const Tokens& text, double weight) {
    measure_text(model, text, inputs.importance, weight, figures);
  });
  if (!any()) throw UsageError("{}", kNone);
  at::NoGradGuard no_gradients;
  each(inputs.repeats,
       [&](const Tokens& text, double weight) { measure_repeat(model, text, weight, figures); });
  each(inputs.needles, [&](const data::NeedleDocument& document, double weight) {
    measure_needles(model, document, weight, figures);
  });
  progress.end();
  return figures;
}

Json definitions() {
  return {
      {"sink", "mean weight on keys 0 to 3, over queries from `from` on"},
      {"local",
       "mean weight on the w nearest keys, the query's own among them, over queries from `from` "
       "on; w as in `local_windows`"},
      {"entropy", "mean of -sum_j a_ij ln a_ij over queries from `from` on, nats"},
      {"peak",
       "largest mean weight that one key beyond the first four receives from queries from "
       "`from` on; `peak_position` is that key"},
      {"repeat",
       "mean weight on the token after the same token's first occurrence, over the second copy "
       "of a passage of text (induction)"},
      {"echo", "mean weight on the same token's first occurrence, over the second copy"},
      {"needle",
       "share of answer steps at which the most attended key is the needle's token being "
       "produced, under teacher forcing"},
      {"retrieval", "the larger of repeat and needle"},
      {"importance", "mean over tokens of |<dLoss/do, o>|, loss summed over tokens from `from` on"},
      {"unit", "per query head; a KV head's figure is the maximum of its group"},
  };
}

Json to_json(const Figures& figures) {
  Json heads = Json::array();
  for (const auto& layer : figures.heads) {
    Json row = Json::array();
    for (const auto& head : layer) {
      row.push_back({{"sink", head.sink},
                     {"entropy", head.entropy},
                     {"retrieval", head.retrieval()},
                     {"repeat", head.repeat},
                     {"echo", head.echo},
                     {"needle", head.needle},
                     {"importance", head.importance},
                     {"peak", head.peak},
                     {"peak_position", head.peak_position},
                     {"local", head.local}});
    }
    heads.push_back(std::move(row));
  }
  Json windows = Json::array();
  for (int64_t w : kLocalWindows) {
    if (w < figures.context) windows.push_back(w);
  }
  return {{"context", figures.context},
          {"from", figures.from},
          {"local_windows", windows},
          {"heads", heads},
          {"other_weights", figures.other_weights},
          {"definitions", definitions()}};
}

}  // namespace heed::probe
