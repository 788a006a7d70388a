// Every kind of program: what a plan file says of it, what it holds, and which rows its queries
// read.
#include "cache/plan/kinds.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "cache/plan/plan_file.h"
#include "cache/plan/plan_programs.h"
#include "io/error.h"

namespace heed {
namespace {

const std::vector<HeadProgram>& samples() {
  static const std::vector<HeadProgram> all = {
      {}, {1, 0}, {7, 0}, {7, 3}, {16, 4, Dropped::kMean}, {5, 0, Dropped::kMeanAsOne}, {1, 2000}};
  return all;
}

TEST(Program, EveryKindIsSampled) {
  std::set<const ProgramKind*> sampled;
  for (const HeadProgram& program : samples()) sampled.insert(&kind_of(program));
  EXPECT_EQ(sampled.size(), program_kinds().size());
}

TEST(Program, SurvivesThePlanFile) {
  std::set<std::string> ids;
  for (const HeadProgram& program : samples()) {
    const Json entry = kind_of(program).entry(program);
    const std::string id = kind_of(program).id(program);
    EXPECT_TRUE(ids.insert(id).second) << id;
    const ProgramKind& kind = kind_of(entry, "plan");
    EXPECT_EQ(&kind, &kind_of(program)) << id;
    EXPECT_EQ(kind.read(entry, "plan"), entry) << id;
    EXPECT_EQ(kind.resolve(entry, 4096, id), program) << id;
    for (const int64_t n : {1, 2, 15, 16, 20, 21, 4096}) {
      // A plan counts the place of the mean even where nothing was dropped yet.
      const int64_t stands = program.dropped != Dropped::kGone ? 1 : 0;
      EXPECT_EQ(kind.rows(entry, n), std::min(n, kind_of(program).held(program, n) + stands))
          << id << " at " << n;
    }
  }
}

// The rows that a query reads are those of the positions that the kernel would leave it.
TEST(Program, ReadsTheRowsOfWhatItSees) {
  for (const HeadProgram& program : samples()) {
    for (int64_t tokens = 0; tokens < 60; ++tokens) {
      SCOPED_TRACE(fmt::format("{} after {}", kind_of(program).id(program), tokens));
      std::vector<RowRun> runs;
      kind_of(program).runs(program, tokens, runs);
      std::set<int64_t> rows;
      std::vector<int64_t> positions;
      for (const RowRun& run : runs) {
        EXPECT_GT(run.count, 0);
        for (int64_t i = 0; i < run.count; ++i) {
          EXPECT_TRUE(rows.insert(run.row + i).second);
          positions.push_back(run.position + i);
        }
      }
      const KeyLimit limit = kind_of(program).limit(program);
      std::vector<int64_t> expected;
      for (int64_t j = 0; j < tokens; ++j) {
        if (limit.window == 0 || j < limit.sinks || j > tokens - 1 - limit.window) {
          expected.push_back(j);
        }
      }
      EXPECT_EQ(positions, expected);
      EXPECT_EQ(kind_of(program).held(program, tokens), static_cast<int64_t>(expected.size()));
      EXPECT_EQ(static_cast<int64_t>(rows.size()), kind_of(program).held(program, tokens));
      EXPECT_LT(rows.empty() ? -1 : *rows.rbegin(), kind_of(program).held(program, tokens));
      const bool stands =
          program.dropped != Dropped::kGone && tokens > kind_of(program).held(program, tokens);
      EXPECT_EQ(kind_of(program).kept(program, tokens),
                kind_of(program).held(program, tokens) + (stands ? 1 : 0));
    }
  }
}

// Where a token lies does not depend on when it is read.
TEST(Program, APositionStaysInItsRow) {
  for (const HeadProgram& program : samples()) {
    std::map<int64_t, int64_t> row_of;
    for (int64_t tokens = 1; tokens < 60; ++tokens) {
      std::vector<RowRun> runs;
      kind_of(program).runs(program, tokens, runs);
      for (const RowRun& run : runs) {
        for (int64_t i = 0; i < run.count; ++i) {
          const auto [at, fresh] = row_of.emplace(run.position + i, run.row + i);
          EXPECT_EQ(at->second, run.row + i) << kind_of(program).id(program);
        }
      }
    }
  }
}

TEST(Program, WhatTheCachesDoNotRunIsRefusedWhereAHeadHasIt) {
  Plan plan = full_plan(1, 2, std::string(64, 'a'));
  WindowEntry entry;
  entry.window.alpha = 8;
  entry.comp.count = 2;
  plan.programs.push_back(window_program("two", entry));
  EXPECT_EQ(resolve_programs(plan).heads[0], std::vector<HeadProgram>(2));
  plan.heads[0][1] = 1;
  try {
    resolve_programs(plan);
    ADD_FAILURE();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("\"two\" has 2 compensation tokens"),
              std::string::npos);
  }
}

}  // namespace
}  // namespace heed
