// The cells of an evaluation: each text by its name, each kind of task, the dense model and the
// plan side by side, and the headline over them.
#pragma once

#include <string>
#include <vector>

#include "data/needles.h"
#include "eval/measure.h"
#include "io/json.h"

namespace heed::report {

// Below this exact share, or below twice what a guess among the candidates of the text would score,
// the dense model does not do a kind of task, and what a plan does there tells nothing.
inline constexpr double kDiscriminative = 0.25;

// [{name, dense, plan, ratio}] in the order of `names`; perplexities, and their ratio with its
// interval. `names[n]` is that of text n; `plan` null: dense alone, and no key for the plan.
Json text_cells(const std::vector<std::string>& names,
                const std::vector<eval::TextResult::Text>& dense,
                const std::vector<eval::TextResult::Text>* plan);

// {kind: {n, chance, discriminative, dense: {exact, tokens}, plan: {exact, tokens}, ratio: {exact:
// {value, low, high}, tokens: {...}}}} over the needles of `documents`, whose results stand in the
// same order.
Json task_cells(const std::vector<data::NeedleDocument>& documents,
                const std::vector<eval::NeedleResult>& dense,
                const std::vector<eval::NeedleResult>* plan);

// {kind: {name, value, low, high}, text: {name, value, low, high}, mean: {exact, perplexity}} of
// cells with a plan: the worst discriminative kind and the worst text before the means over all of
// them. What there is none of is null.
Json headline(const Json& texts, const Json& tasks);

// As lines for people.
std::string cells_table(const Json& texts, const Json& tasks);
std::string headline_text(const Json& headline);

}  // namespace heed::report
