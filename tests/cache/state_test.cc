// States by description: every kind of part forks, is saved, loaded, counted and cut back; several
// sequences lie side by side; a pool has a budget and gives memory out again.
#include "cache/state.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace heed {
namespace state_test {

RowsPart rows(const std::string& name = "", HeadProgram program = {}) {
  RowsPart part;
  part.name = name;
  part.k_dim = part.v_dim = 4;
  part.programs = {program, program};
  return part;
}

StateSpec everything() {
  StateSpec spec;
  spec.parts = {rows(), FixedPart{"state", {1, 2, 3, 4}}, HistoryPart{"conv", 5, 3},
                HistoryPart{"inputs", 5, 0}, rows("blocks")};
  return spec;
}

void feed(State& state, int64_t tokens) {
  for (const size_t part : {0, 4}) {
    const int64_t count = part == 0 ? tokens : tokens / 2;  // fewer blocks than tokens
    state.rows(part).append(at::randn({count, 2, 4}), at::randn({count, 2, 4}));
  }
  state.tensor(1).add_(at::randn({1, 2, 3, 4}));
  state.tensor(2).copy_(at::randn({3, 5}));
  state.extend(3, at::randn({tokens, 5}));
  state.advance(tokens);
}

NamedTensors saved(const State& state) {
  NamedTensors out;
  state.save(out, "a.");
  return out;
}

void expect_equal(const NamedTensors& a, const NamedTensors& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, t] : a) EXPECT_TRUE(at::equal(t, b.at(name))) << name;
}

TEST(State, OfEveryPartForksSavesLoadsAndTellsItsBytes) {
  State state(everything());
  EXPECT_EQ(state.bytes(), everything().bytes(0));
  feed(state, 70);
  const NamedTensors before = saved(state);
  EXPECT_EQ(before.at("a.state").sizes(), (std::vector<int64_t>{1, 2, 3, 4}));
  EXPECT_EQ(before.at("a.inputs").size(0), 70);
  EXPECT_EQ(before.at("a.h1.k").size(0), 70);
  EXPECT_EQ(before.at("a.blocks.h1.k").size(0), 35);
  EXPECT_EQ(before.at("a.length").item<int64_t>(), 70);

  const auto fork = state.fork();
  feed(state, 9);
  expect_equal(saved(*fork), before);
  feed(*fork, 1);
  EXPECT_EQ(state.length(), 79);
  EXPECT_EQ(fork->length(), 71);

  State again(everything());
  again.load(before, "a.");
  expect_equal(saved(again), before);
  for (const auto& [name, t] : before) {
    NamedTensors less = before;
    less.erase(name);
    EXPECT_THROW(again.load(less, "a."), Error) << name;
    less = before;
    less[name] = at::zeros({7, 1, 2});
    EXPECT_THROW(again.load(less, "a."), Error) << name;
  }
  expect_equal(saved(again), before);  // what does not fit changes nothing
}

TEST(State, GoesBackWhereItsPartsCan) {
  StateSpec can;
  can.parts = {rows(), HistoryPart{"inputs", 5, 0}};
  EXPECT_TRUE(can.can_truncate());
  State state(can);
  state.rows(0).append(at::randn({90, 2, 4}), at::randn({90, 2, 4}));
  const at::Tensor inputs = at::randn({90, 5});
  state.extend(1, inputs);
  state.advance(90);
  state.truncate(17);
  EXPECT_EQ(state.length(), 17);
  EXPECT_EQ(state.rows(0).length(), 17);
  EXPECT_TRUE(at::equal(state.extend(1, at::zeros({0, 5})), inputs.narrow(0, 0, 17)));
  EXPECT_THROW(state.truncate(18), UsageError);

  EXPECT_FALSE(everything().can_truncate());
  State cannot(everything());
  feed(cannot, 10);
  const NamedTensors before = saved(cannot);
  EXPECT_THROW(cannot.truncate(5), Error);
  expect_equal(saved(cannot), before);
  cannot.truncate(10);
  cannot.truncate(0);
  EXPECT_EQ(cannot.length(), 0);
  EXPECT_EQ(cannot.tensor(1).abs().sum().item<float>(), 0);
  EXPECT_EQ(cannot.rows(4).length(), 0);
}

TEST(State, SequencesLieSideBySideOnceTheyAreTogether) {
  StateSpec spec;
  spec.parts = {FixedPart{"state", {1, 2, 3}}, HistoryPart{"conv", 2, 3}};
  std::vector<std::unique_ptr<State>> own;
  std::vector<State*> states;
  for (int n = 0; n < 4; ++n) {
    own.push_back(std::make_unique<State>(spec));
    own.back()->tensor(0).fill_(n);
    states.push_back(own.back().get());
  }
  const at::Tensor first = side_by_side(states, 0);
  EXPECT_EQ(first.sizes(), (std::vector<int64_t>{4, 1, 2, 3}));
  for (int n = 0; n < 4; ++n) EXPECT_EQ(first[n].mean().item<float>(), n);
  first.add_(10);  // written to all
  for (int n = 0; n < 4; ++n) EXPECT_EQ(states[n]->tensor(0).mean().item<float>(), n + 10);
  const at::Tensor second = side_by_side(states, 0);
  EXPECT_EQ(second.data_ptr(), first.data_ptr()) << "a view the second time";
  // Any part of them in their order is still a view; another order moves them, and values stay.
  const std::vector<State*> some = {states[1], states[2]};
  EXPECT_EQ(side_by_side(some, 0).data_ptr(), first[1].data_ptr());
  const std::vector<State*> turned = {states[3], states[1]};
  const at::Tensor moved = side_by_side(turned, 0);
  EXPECT_EQ(moved[0].mean().item<float>(), 13);
  EXPECT_EQ(moved[1].mean().item<float>(), 11);
  moved.zero_();
  EXPECT_EQ(states[3]->tensor(0).abs().sum().item<float>(), 0);
  EXPECT_EQ(states[2]->tensor(0).mean().item<float>(), 12);
  // A fork is a sequence of its own.
  const auto fork = states[2]->fork();
  states[2]->tensor(0).zero_();
  EXPECT_EQ(fork->tensor(0).mean().item<float>(), 12);
}

TEST(StatePool, HasABudgetAndGivesMemoryOutAgain) {
  const auto pool =
      std::make_shared<StatePool>(2 * 64 * 4 * 2 * 4 * 3);  // three pages of two heads
  StateSpec spec;
  spec.parts = {rows()};
  State a(spec, pool);
  const auto append = [](State& state, int64_t count) {
    state.rows(0).append(at::randn({count, 2, 4}), at::randn({count, 2, 4}));
    state.advance(count);
  };
  append(a, 128);
  EXPECT_EQ(pool->used(), a.bytes());
  const auto fork = a.fork();
  EXPECT_EQ(pool->used(), a.bytes()) << "shared pages count once";
  append(*fork, 64);
  EXPECT_EQ(pool->used(), pool->budget());
  EXPECT_THROW(append(a, 1), Error);
  EXPECT_EQ(pool->used(), pool->budget());
  fork->truncate(128);
  EXPECT_LT(pool->used(), pool->budget());
  EXPECT_GT(pool->free(), 0);
  append(a, 1);  // in the page that the fork had
  EXPECT_EQ(pool->free(), 0);
  EXPECT_THROW(StatePool(-1), UsageError);
}

}  // namespace state_test
}  // namespace heed
