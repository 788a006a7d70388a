// What the cores on the engine `scan` share: their forms, the rows of their tables.
#pragma once

#include "mixer/registry.h"
#include "op/scan.h"

namespace heed::mixer {

// out and final_state of a recurrence in the form that was asked for: naive (token loop in tensor
// operations), chunked (the operator), recurrent (one decode step after another).
std::tuple<at::Tensor, at::Tensor> run_scan(const std::string& form, const at::Tensor& q,
                                            const at::Tensor& k, const at::Tensor& v,
                                            const op::ScanInputs& inputs,
                                            const op::ScanOptions& options);

// scale (default 1/sqrt(K), or `fallback`) and chunk from the settings.
op::ScanOptions scan_options(const CoreCall& call, const at::Tensor& q,
                             std::optional<double> fallback = std::nullopt);

// Tensors that many rows have.
TensorSpec token(const std::string& name, const std::string& shape,
                 Sample sample = Sample::kNormal);
TensorSpec gate(const std::string& name, const std::string& shape, Sample sample,
                bool optional = false);
TensorSpec initial_state();
TensorSpec offsets();
TensorSpec output(const std::string& name, const std::string& shape);
SettingSpec scale_setting(const std::string& default_value = "1/sqrt(K)");
SettingSpec chunk_setting();

// Traits of every recurrence.
Traits recurrent_traits(bool resets);

}  // namespace heed::mixer
