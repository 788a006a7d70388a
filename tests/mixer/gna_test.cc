// Generalized neighborhood attention's must-hold list.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/common/neighborhood.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace gna_test {

using testing::relative_error;

at::Tensor out(const char* id, const NamedTensors& in, const char* form,
               const SettingList& settings) {
  return testing::run(find_mechanism(id), in, form, settings).at("out");
}

// Which keys each query sees, [T,T].
at::Tensor seen(const char* form, int64_t tokens, const SettingList& settings) {
  const NamedTensors in = {{"q", at::zeros({1, tokens, 1, 4})},
                           {"k", at::zeros({1, tokens, 1, 4})},
                           {"v", at::eye(tokens).view({1, tokens, 1, tokens})}};
  return out("gna", in, form, settings).view({tokens, tokens}).gt(0);
}

TEST(Gna, StrideOneIsNeighborhoodAttention) {
  at::manual_seed(1);
  const NamedTensors in = {{"q", at::randn({1, 60, 4, 8})},
                           {"k", at::randn({1, 60, 2, 8})},
                           {"v", at::randn({1, 60, 2, 8})}};
  for (const char* causal : {"0x0", "1x0", "1x1"}) {
    const SettingList settings = {{"grid", "6x10"}, {"window", "3x4"}, {"causal", causal}};
    for (const char* form : {"naive", "parallel"}) {
      EXPECT_TRUE(out("gna", in, form, settings).equal(out("fna", in, form, settings)));
    }
  }
}

TEST(Gna, StrideOfTheWindowIsBlockedAttention) {
  const at::Tensor block = at::floor_divide(at::arange(24), 6);
  const at::Tensor want = block.unsqueeze(1).eq(block.unsqueeze(0));
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_TRUE(seen(form, 24, {{"window", "6"}, {"stride", "6"}}).equal(want)) << form;
  }
}

TEST(Gna, MembersOfAStrideShareTheWindowAndWindowsOnlyMoveOn) {
  for (const char* form : {"naive", "parallel"}) {
    const at::Tensor s = seen(form, 29, {{"window", "7"}, {"stride", "4"}});
    const at::Tensor first = s.to(at::kLong).argmax(1);
    EXPECT_TRUE(s.sum(1).eq(7).all().item<bool>()) << form;
    for (int64_t i = 0; i + 1 < 29; ++i) {
      EXPECT_LE(first[i].item<int64_t>(), first[i + 1].item<int64_t>()) << form << i;
      if (i % 4 == 3) continue;
      EXPECT_TRUE(s[i].equal(s[i + 1])) << form << i;
    }
  }
}

// The paper's tile counts (arXiv 2504.16922, tables of section 4): speed-up of the operation, and
// of the model with attention's share f of its time.
TEST(Gna, TheSimulatorGivesThePapersNumbers) {
  struct Row {
    std::vector<int64_t> stride;
    double operation, model;
  };
  struct Model {
    std::vector<int64_t> grid, window, q_tile, k_tile;
    double share;
    std::vector<Row> rows;
  };
  const Model models[] = {{{30, 48, 80},
                           {18, 24, 24},
                           {4, 8, 8},
                           {2, 8, 8},
                           0.607,
                           {{{1, 1, 1}, 3.27, 1.73},
                            {{1, 1, 8}, 5.45, 1.98},
                            {{1, 8, 8}, 9.09, 2.17},
                            {{16, 8, 8}, 11.11, 2.23}}},
                          {{256, 256},
                           {80, 80},
                           {16, 16},
                           {16, 8},
                           0.518,
                           {{{1, 1}, 6.10, 1.76}, {{16, 1}, 8.53, 1.84}, {{16, 16}, 10.24, 1.88}}},
                          {{16, 44, 80},
                           {16, 24, 16},
                           {8, 4, 8},
                           {4, 4, 8},
                           0.587,
                           {{{1, 1, 1}, 5.24, 1.90},
                            {{1, 8, 1}, 6.11, 1.96},
                            {{1, 1, 16}, 7.86, 2.05},
                            {{1, 8, 16}, 9.17, 2.10}}}};
  for (const Model& m : models) {
    for (const Row& row : m.rows) {
      std::vector<kernel::Axis> axes;
      for (size_t a = 0; a < m.grid.size(); ++a) {
        axes.push_back({m.grid[a], m.window[a], row.stride[a], false});
      }
      const double speedup = tile_speedup(axes, m.q_tile, m.k_tile).worst;
      EXPECT_NEAR(speedup, row.operation, 0.0051);
      EXPECT_NEAR(1 / (1 - m.share + m.share / speedup), row.model, 0.0051);
      EXPECT_GE(tile_speedup(axes, m.q_tile, m.k_tile).mean, speedup);
    }
  }
}

}  // namespace gna_test
}  // namespace heed::mixer
