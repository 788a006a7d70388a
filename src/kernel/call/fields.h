// The one list of fields that describes an engine's call: its tensors with roles and shapes, and
// its options with defaults. Everything that has to know them reads the list: the checks of kernels
// (check.h), PyTorch's schemas, autograd and Meta forms (op/dispatch.h), `heed backends`, the C
// structs (compared by tests). See docs/decisions/0017-engine-calls.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

#include "heed/backend.h"
#include "heed/view.h"

namespace heed::kernel {

// kToken: float32, bfloat16 or float16, all tokens of a call the same; rows contiguous.
// kKey: as tokens, but with a dtype that need not be theirs: rows of a cache.
// kGate: float32, rows contiguous: gates, decays, parameters. kBias: float32, any strides. kParam:
// float32, contiguous.
// kState: float32, contiguous; the i-th state of the list starts what the i-th kFinal ends.
// kIndex, kIndex32: int64 and int32, contiguous, in the memory of the CPU on every device: lengths,
// windows, lists. They take no gradient.
// kOut: as the tokens. kStat: float32, beside the outputs. kFinal: as the states. Strides of 0 are
// fine for all but states and indices.
enum class Role : uint8_t {
  kToken,
  kKey,
  kGate,
  kBias,
  kParam,
  kState,
  kIndex,
  kIndex32,
  kOut,
  kStat,
  kFinal
};
inline constexpr const char* kRoleNames[] = {"token", "key",   "gate", "bias", "param", "state",
                                             "index", "index", "out",  "stat", "final"};

constexpr bool is_token(Role role) {
  return role == Role::kToken || role == Role::kKey || role == Role::kOut;
}
constexpr bool is_contiguous(Role role) {
  return (role >= Role::kParam && role <= Role::kIndex32) || role == Role::kFinal;
}
constexpr bool is_input(Role role) { return role < Role::kOut; }
constexpr bool is_index(Role role) { return role == Role::kIndex || role == Role::kIndex32; }
// Of the inputs: those that a backward pass gives a gradient.
constexpr bool takes_gradient(Role role) { return role < Role::kIndex; }

// `shape` lists sizes by name, "B,T,H,K", each name (of at most 8 letters) one size for the whole
// call, as a number, or as one more or less than a named size ("L-1", "N+1"); alternatives are
// divided by '|' and told apart by rank. "N" is the number of sequences: B, or that of the pack. An
// output is part of a call if all its names are known from the inputs.
struct TensorField {
  const char* name;
  Role role;
  const char* shape;
  bool required;
  const char* note;
};

// Options take 8 bytes each: double for kNumber and kMaybe, int64_t for all others. kMaybe is a
// number that need not be given (NaN then); kWord is an entry of `words`.
enum class OptionKind : uint8_t { kNumber, kInteger, kFlag, kMaybe, kWord };
struct OptionField {
  const char* name;
  OptionKind kind;
  double value;  // the default
  const char* note;
  std::span<const char* const> words = {};
};

class CallSizes;  // check.h

// How an engine differs from the rest.
struct CallTraits {
  // What roles and shapes cannot say, the last of the checks. It may read tensors of kIndex.
  heed_status (*rules)(const void* call, int32_t pass, const CallSizes& sizes,
                       heed_message* message) = nullptr;
  // The name of heed_call's offsets, and of the size that they cut.
  const char* pack = "cu_seqlens";
  const char* time = "T";
  bool steps = true;           // a step is a pass of its own
  bool keeps_outputs = false;  // the backward pass reads the outputs of the forward pass
};

struct CallFields {
  const char* engine;
  const char* equation;
  std::span<const TensorField> tensors;
  std::span<const OptionField> options;
  size_t options_at, in_at, grad_at, size;  // bytes
  CallTraits traits;

  int find(std::string_view name) const {
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (name == tensors[i].name) return static_cast<int>(i);
    }
    return -1;
  }
};

// An engine's call. Tensors<X> is a struct of X members, Options one of double and int64_t members,
// both in the order of the list. In a backward pass `in` holds the outputs of the forward pass only
// where the engine keeps them. `grad` holds what belongs to the tensor of the same name in `in`:
// for outputs the incoming gradient (absent: zero), for inputs where the result goes, float32 and
// contiguous (absent: not wanted).
template <template <class> class TensorsOf, class OptionsOf>
struct Call {
  template <class X>
  using Tensors = TensorsOf<X>;
  using Options = OptionsOf;

  heed_call head = {sizeof(Call), 0, nullptr, 0, nullptr};
  Options options = {};
  Tensors<heed_view> in = {}, grad = {};
};

// The list of a Call type, from its two tables; NoOptions goes with an empty one.
struct NoOptions {};
template <class C, size_t kTensors>
constexpr CallFields call_fields(const char* engine, const char* equation,
                                 const TensorField (&tensors)[kTensors],
                                 std::span<const OptionField> options = {},
                                 const CallTraits& traits = {}) {
  static_assert(sizeof(typename C::template Tensors<heed_view>) == kTensors * sizeof(heed_view));
  static_assert(sizeof(typename C::Options) % 8 == 0 || std::is_empty_v<typename C::Options>);
  return {engine,          equation,          tensors,   options, offsetof(C, options),
          offsetof(C, in), offsetof(C, grad), sizeof(C), traits};
}

// The parts of a call of any engine.
inline heed_view* call_views(const CallFields& fields, void* call) {
  return reinterpret_cast<heed_view*>(static_cast<char*>(call) + fields.in_at);
}
inline const heed_view* call_views(const CallFields& fields, const void* call) {
  return reinterpret_cast<const heed_view*>(static_cast<const char*>(call) + fields.in_at);
}
inline heed_view* call_grads(const CallFields& fields, void* call) {
  return reinterpret_cast<heed_view*>(static_cast<char*>(call) + fields.grad_at);
}
inline const heed_view* call_grads(const CallFields& fields, const void* call) {
  return reinterpret_cast<const heed_view*>(static_cast<const char*>(call) + fields.grad_at);
}

// A shape of the list, taken apart. visit(name, literal) for each dimension of one alternative:
// literal is -1 for a name.
struct ShapeText {
  std::string_view text;

  int rank() const {
    int n = text.empty() ? 0 : 1;
    for (char c : text) n += c == ',';
    return n;
  }
  template <class Visit>
  void for_each(Visit&& visit) const {
    std::string_view rest = text;
    while (!rest.empty()) {
      const size_t comma = rest.find(',');
      const std::string_view name = rest.substr(0, comma);
      int64_t literal = -1;
      if (name[0] >= '0' && name[0] <= '9') {
        literal = 0;
        for (char c : name) literal = 10 * literal + (c - '0');
      }
      visit(name, literal);
      rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    }
  }
};

// The alternative of a field's shape that has this rank; empty text with rank() 0 where none has.
inline ShapeText shape_of_rank(const char* shape, int rank) {
  std::string_view rest = shape;
  while (!rest.empty()) {
    const size_t bar = rest.find('|');
    const ShapeText one{rest.substr(0, bar)};
    if (one.rank() == rank) return one;
    rest = bar == std::string_view::npos ? std::string_view() : rest.substr(bar + 1);
  }
  return {};
}
inline ShapeText first_shape(const char* shape) {
  const std::string_view text = shape;
  return {text.substr(0, text.find('|'))};
}

}  // namespace heed::kernel
