// What the cores on the engine `attend` share.
#pragma once

#include "mixer/common/rows.h"
#include "mixer/registry.h"
#include "op/attend.h"

namespace heed::mixer {

// Options from the tensors and settings of docs/apply.md.
op::AttendOptions attend_options(const CoreCall& call, kernel::Weight weight);

// out and lse in the form that was asked for. recurrent is decoding: before query i its own key and
// value join the cache, and the query reads what is in it.
std::tuple<at::Tensor, at::Tensor> run_attend(const CoreCall& call,
                                              const op::AttendOptions& options);

// Row, patterns, state and test sizes of softmax attention's kin: everything but outputs besides
// out.
void set_attend_row(Card& card);

}  // namespace heed::mixer
