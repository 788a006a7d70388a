// Pieces of cards: tensors, settings, the rows of whole engines.
#pragma once

#include "mixer/card.h"

namespace heed::mixer {

// Tensors that --dtype converts, and those that it does not.
TensorSpec token(const std::string& name, const std::string& shape,
                 Sample sample = Sample::kNormal);
TensorSpec gate(const std::string& name, const std::string& shape, Sample sample = Sample::kNormal,
                bool optional = false);
// int64 with entries least .. below-1 (an expression over sizes and settings; empty: any).
TensorSpec index(const std::string& name, const std::string& shape, const std::string& below = "",
                 int64_t least = 0);
TensorSpec initial_state();                                  // [Ns,H,K,V], optional
TensorSpec offsets(const std::string& name = "cu_seqlens");  // int64 [Ns+1], optional
TensorSpec output(const std::string& name, const std::string& shape);
TensorSpec index_output(const std::string& name, const std::string& shape);

SettingSpec flag_setting(const std::string& name, bool default_value);
SettingSpec int_setting(const std::string& name, const std::string& default_value);
SettingSpec number_setting(const std::string& name, const std::string& default_value);
SettingSpec word_setting(const std::string& name,
                         std::vector<std::string> words);  // first: default
SettingSpec ints_setting(const std::string& name, const std::string& default_value = "",
                         std::vector<std::string> words = {});
SettingSpec grid_setting();  // axes of the token order, as 7x13; required
SettingSpec scale_setting(const std::string& default_value = "1/sqrt(K)");
SettingSpec chunk_setting(const std::string& default_value = "64");

// Row, sizes and state of a recurrence on `scan`: q (named `query`), k, v, then `more`, then
// initial_state and cu_seqlens. Keys are sampled as `key`.
void set_scan_row(Card& card, std::vector<TensorSpec> more, Sample key = Sample::kKey,
                  const std::string& query = "q");
// Traits of every recurrence; `resets`: it takes a log decay of -inf.
Traits recurrent_traits(bool resets);

}  // namespace heed::mixer
