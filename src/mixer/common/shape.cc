#include "mixer/common/shape.h"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "io/error.h"

namespace heed::mixer {
namespace {

// Splits at the separator where no bracket is open; brackets stay.
std::vector<std::string> split_outside(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : text) {
    depth += c == '(' ? 1 : c == ')' ? -1 : 0;
    if (c == separator && depth == 0) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

// Recursive descent over one expression; nothing is kept between calls, for texts are short.
class Evaluator {
 public:
  Evaluator(const std::string& text, const Names& names, std::vector<std::string>* unknown)
      : text_(text), names_(names), unknown_(unknown) {}

  std::optional<double> run() {
    const double value = sum();
    if (peek() != '\0') fail();
    if (!complete_) return std::nullopt;
    return value;
  }

 private:
  char peek() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  [[noreturn]] void fail() const {
    throw Error("card: '{}' is no shape expression (at character {})", text_, at_ + 1);
  }

  double sum() {
    double value = product();
    for (;;) {
      if (take('+')) {
        value += product();
      } else if (take('-')) {
        value -= product();
      } else {
        return value;
      }
    }
  }

  double product() {
    double value = power();
    for (;;) {
      if (take('*')) {
        value *= power();
      } else if (take('/')) {
        value /= power();
      } else if (std::isalnum(static_cast<unsigned char>(peek())) != 0 || peek() == '(') {
        value *= power();
      } else {
        return value;
      }
    }
  }

  double power() {
    const double value = factor();
    return take('^') ? std::pow(value, power()) : value;
  }

  double factor() {
    const char c = peek();
    if (take('(')) {
      const double value = sum();
      if (!take(')')) fail();
      return value;
    }
    if (std::isdigit(static_cast<unsigned char>(c)) != 0) return number();
    if (std::isalpha(static_cast<unsigned char>(c)) == 0) fail();
    return name();
  }

  double number() {
    const size_t begin = at_;
    while (at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_])) != 0) ++at_;
    return std::stod(text_.substr(begin, at_ - begin));
  }

  double name() {
    std::string word;
    while (at_ < text_.size() &&
           (std::isalnum(static_cast<unsigned char>(text_[at_])) != 0 || text_[at_] == '_')) {
      word += text_[at_++];
    }
    if (at_ < text_.size() && text_[at_] == '(') {
      if (word == "ceil" || word == "floor" || word == "min" || word == "max") return call(word);
    }
    if (at_ < text_.size() && text_[at_] == '[') {
      const size_t end = text_.find(']', at_);
      if (end == std::string::npos) fail();
      word += text_.substr(at_, end + 1 - at_);
      at_ = end + 1;
    }
    const auto it = names_.find(word);
    if (it != names_.end()) return it->second;
    complete_ = false;
    if (unknown_ != nullptr &&
        std::find(unknown_->begin(), unknown_->end(), word) == unknown_->end())
      unknown_->push_back(word);
    return 1;
  }

  double call(const std::string& function) {
    if (!take('(')) fail();
    double value = sum();
    while (take(',')) {
      const double next = sum();
      value = function == "min" ? std::min(value, next) : std::max(value, next);
    }
    if (!take(')')) fail();
    // A quotient that is whole but for rounding must not become the next number.
    if (function == "ceil") return std::ceil(value - 1e-9);
    if (function == "floor") return std::floor(value + 1e-9);
    return value;
  }

  const std::string& text_;
  const Names& names_;
  std::vector<std::string>* unknown_;
  size_t at_ = 0;
  bool complete_ = true;
};

// The whole number n for which the expression is `size`, found by halving.
std::optional<double> solve(const std::string& expression, const std::string& name, double size,
                            Names names) {
  const auto at = [&](double n) {
    names[name] = n;
    return *evaluate(expression, names);
  };
  double low = 0, high = 1;
  while (at(high) < size) {
    high *= 2;
    if (high > 1e12) return std::nullopt;
  }
  while (low < high) {
    const double middle = std::floor((low + high) / 2);
    if (at(middle) < size) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (at(low) != size) return std::nullopt;
  return low;
}

}  // namespace

std::optional<double> evaluate(const std::string& expression, const Names& names,
                               std::vector<std::string>* unknown) {
  return Evaluator(expression, names, unknown).run();
}

std::vector<std::vector<std::string>> parse_shape(const std::string& shape) {
  std::vector<std::vector<std::string>> all;
  for (const std::string& whole : split_outside(shape, '|')) {
    std::vector<std::vector<std::string>> made = {{}};
    if (whole.empty()) {
      all.push_back({});
      continue;
    }
    for (const std::string& dimension : split_outside(whole, ',')) {
      std::vector<std::string> choices = {dimension};
      if (dimension.size() > 2 && dimension.front() == '(' && dimension.back() == ')') {
        choices = split_outside(dimension.substr(1, dimension.size() - 2), '|');
      }
      std::vector<std::vector<std::string>> longer;
      for (const auto& begin : made) {
        for (const std::string& choice : choices) {
          longer.push_back(begin);
          longer.back().push_back(choice);
        }
      }
      made = std::move(longer);
    }
    all.insert(all.end(), made.begin(), made.end());
  }
  return all;
}

bool unify(const std::vector<std::string>& dimensions, const std::vector<int64_t>& sizes,
           Names& names, bool* complete) {
  if (complete != nullptr) *complete = true;
  if (dimensions.size() != sizes.size()) return false;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const auto size = static_cast<double>(sizes[i]);
    std::vector<std::string> unknown;
    const std::optional<double> value = evaluate(dimensions[i], names, &unknown);
    if (value.has_value()) {
      if (*value != size) return false;
    } else if (unknown.size() == 1) {
      const std::optional<double> found = solve(dimensions[i], unknown[0], size, names);
      if (!found.has_value()) return false;
      names[unknown[0]] = *found;
    } else if (complete != nullptr) {
      *complete = false;
    }
  }
  return true;
}

std::string with_values(const std::string& shape, const Names& names) {
  std::string text;
  for (const std::vector<std::string>& dimensions : parse_shape(shape)) {
    if (!text.empty()) text += "] or [";
    for (size_t i = 0; i < dimensions.size(); ++i) {
      const std::optional<double> value = evaluate(dimensions[i], names);
      text += (i == 0 ? "" : ",") + dimensions[i];
      const std::string number = value.has_value() ? fmt::format("{}", *value) : "";
      if (!number.empty() && number != dimensions[i]) text += "=" + number;
    }
  }
  return text;
}

}  // namespace heed::mixer
