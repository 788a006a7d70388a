// What the cores on pooled reads share: one description of a read (kernel/pool/pool.h) for all
// patterns. Not causal it runs on the engine `pool`; causal on `scan`, whose values get a column of
// ones for the row's sum, with running means beside it.
#pragma once

#include "mixer/common/recurrent_layer.h"
#include "mixer/registry.h"
#include "op/pool.h"

namespace heed::mixer {

struct PoolRead {
  op::PoolTensors x;  // q, k (features), v, and if wanted key_weight, row_scale
  op::PoolOptions options;
};

// Every query reads all keys; forms naive (a weight for every query and key) and parallel.
at::Tensor pool_read(const CoreCall& call, const PoolRead& read);

// Token t reads the tokens up to t, in the forms naive, chunked, recurrent. The call's states:
// initial_state [Ns,H,M,V] = sum w k^T v; with a divisor or a row's sum initial_z [Ns,H,M] = sum
// w k; with a mean initial_u [Ns,H,V] = sum v; with a mean or by_count initial_n [Ns,H], the number
// of tokens. Returns out and the final ones. Packs by cu_seqlens.
NamedTensors pool_scan(const CoreCall& call, const PoolRead& read);

// The states that pool_scan reads and writes, as the card's inputs and outputs ("causal=true"),
// with M features of k.
void add_pool_states(Card& card, const std::string& features, const op::PoolOptions& options);

// The rest of such a card: q, k and v with D features, patterns, forms and test sizes. To be called
// before add_pool_states.
void set_pool_row(Card& card, const std::string& patterns, Sizes sizes, Sizes large);

// Where a layer keeps what pool_scan carries; z, u and n only for a read that needs them.
struct PoolParts {
  size_t state = 0, z = 0, u = 0, n = 0;
};
// A layer's read: pool_scan from state to state in a causal pass (steps of single tokens by the
// step kernel), else all keys of a sequence. Tap "o".
at::Tensor pool_pass(RecurrentPass& pass, const PoolParts& parts, const PoolRead& read);

// The depthwise convolution of the values on their grid of rows x columns, behind `outside` tokens
// that do not lie on it: kernel [B,C,k,k] or [C,k,k], C = H V, no flip, zero padding. Returns what
// is added to out, v's shape. UsageError where the tokens are not as many.
at::Tensor grid_convolution(const at::Tensor& v, const at::Tensor& kernel, int64_t rows,
                            int64_t columns, int64_t outside);

}  // namespace heed::mixer
