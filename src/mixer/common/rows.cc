#include "mixer/common/rows.h"

namespace heed::mixer {

TensorSpec gate(const std::string& name, const std::string& shape, Sample sample, bool optional) {
  TensorSpec spec;
  spec.name = name;
  spec.shape = shape;
  spec.sample = sample;
  spec.optional = optional;
  return spec;
}

TensorSpec token(const std::string& name, const std::string& shape, Sample sample) {
  return gate(name, shape, sample).with(&TensorSpec::token, true);
}

TensorSpec index(const std::string& name, const std::string& shape, const std::string& below,
                 int64_t least) {
  TensorSpec spec = gate(name, shape, Sample::kIndex).with(&TensorSpec::dtype, Dtype::kInt64);
  spec.below = below;
  spec.least = least;
  return spec;
}

TensorSpec initial_state() { return gate("initial_state", "Ns,H,K,V").maybe(); }

TensorSpec offsets(const std::string& name) {
  return index(name, "Ns+1").maybe().with(&TensorSpec::sample, Sample::kOffsets);
}

TensorSpec output(const std::string& name, const std::string& shape) { return gate(name, shape); }

TensorSpec index_output(const std::string& name, const std::string& shape) {
  return index(name, shape).constant();
}

SettingSpec flag_setting(const std::string& name, bool default_value) {
  return {name, SettingType::kBool, default_value ? "true" : "false"};
}

SettingSpec int_setting(const std::string& name, const std::string& default_value) {
  return {name, SettingType::kInt, default_value};
}

SettingSpec number_setting(const std::string& name, const std::string& default_value) {
  return {name, SettingType::kNumber, default_value};
}

SettingSpec word_setting(const std::string& name, std::vector<std::string> words) {
  const std::string first = words.front();
  return {name, SettingType::kWord, first, std::move(words)};
}

SettingSpec ints_setting(const std::string& name, const std::string& default_value,
                         std::vector<std::string> words) {
  return {name, SettingType::kInts, default_value, std::move(words)};
}

SettingSpec grid_setting() { return ints_setting("grid").needed().at_least(1); }

SettingSpec scale_setting(const std::string& default_value) {
  return number_setting("scale", default_value).trying({"0.3"});
}

SettingSpec chunk_setting(const std::string& default_value) {
  return int_setting("chunk", default_value).at_least(1).trying({"16"});
}

void set_scan_row(Card& card, std::vector<TensorSpec> more, Sample key, const std::string& query) {
  card.state_size = "H K V";
  ApplyRow& row = card.apply;
  row.inputs = {token(query, "B,T,H,K"), token("k", "B,T,H,K", key), token("v", "B,T,H,V")};
  row.inputs.insert(row.inputs.end(), more.begin(), more.end());
  row.inputs.push_back(initial_state());
  row.inputs.push_back(offsets());
  row.settings = {scale_setting(), chunk_setting()};
  row.outputs = {output("out", "B,T,H,V"), output("final_state", "Ns,H,K,V")};
  row.forms = {"chunked", "naive", "recurrent"};
  card.tests.sizes = {{"K", 7}, {"V", 5}, {"G", 1}};
  card.tests.large = {{"K", 64}, {"V", 64}};
}

Traits recurrent_traits(bool resets) {
  Traits traits;
  traits.state = StateGrowth::kFixed;
  traits.linear_time = true;
  traits.resets = resets;
  return traits;
}

}  // namespace heed::mixer
