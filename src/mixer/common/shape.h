// Shapes of cards as text: expressions over the names of dimensions and settings (see TensorSpec).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace heed::mixer {

// Values by name. Sizes are whole; settings may be any number.
using Names = std::map<std::string, double>;

// The value of an expression ("4 D+2", "ceil(T/block)"), or none; then `unknown` (if given) gets
// the names that have no value, each once, in order. Throws Error if the text is no expression.
std::optional<double> evaluate(const std::string& expression, const Names& names,
                               std::vector<std::string>* unknown = nullptr);

// The dimensions of each alternative of a shape: "B,T,N|B,T,G,N", "(B|1),T". No dimension: "".
std::vector<std::vector<std::string>> parse_shape(const std::string& shape);

// Fits `sizes` to the dimensions of one alternative. Names without a value get the one that fits:
// an expression must rise with its only unknown. False if it does not fit (then `names` may hold
// some of the new values). `complete` (if given): no dimension had two or more unknowns.
bool unify(const std::vector<std::string>& dimensions, const std::vector<int64_t>& sizes,
           Names& names, bool* complete = nullptr);

// "B=2,T,2P-1=9": the dimensions with the values that are known.
std::string with_values(const std::string& shape, const Names& names);

}  // namespace heed::mixer
