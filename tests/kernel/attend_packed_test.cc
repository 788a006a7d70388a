// attend over keys and values in few bits: the kernels of every instruction set against the
// reference, for decoding and for chunks, beside segments that are exact.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "hwy/targets.h"
#include "kernel/attend/attend.h"
#include "kernel/quant/quant.h"

namespace heed::kernel {
namespace attend_packed_test {

constexpr int kGroup = 3, kExact = 16, kPage = 64;

struct PackedRows {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales;
};

struct Case {
  int k_bits, v_bits, dim, value_dim;
  int64_t keys, queries, window;
};

// One job: kExact exact keys, then pages in few bits (0 bits: exact too).
struct Example {
  std::vector<float> q, k, v, centre, out, lse;
  PackedRows packed_k, packed_v;
  std::vector<Segment> segments;
  AttendJob job;
  AttendTable table;

  explicit Example(const Case& c) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, int64_t n) {
      x.resize(n);
      for (float& e : x) e = normal(random);
    };
    fill(q, c.queries * kGroup * c.dim);
    fill(k, c.keys * c.dim);
    fill(v, c.keys * c.value_dim);
    fill(centre, std::max(c.dim, c.value_dim));
    out.resize(c.queries * kGroup * c.value_dim);
    lse.resize(c.queries * kGroup);
    const auto pack = [&](int bits, const std::vector<float>& x, int64_t dim, PackedRows& p) {
      p.codes.resize(c.keys * row_bytes(bits, dim));
      p.scales.resize(c.keys);
      encode_rows(bits, x.data(), dim, c.keys, dim, centre.data(), p.codes.data(), p.scales.data());
    };
    if (c.k_bits) pack(c.k_bits, k, c.dim, packed_k);
    if (c.v_bits) pack(c.v_bits, v, c.value_dim, packed_v);
    add_segment(c, 0, std::min<int64_t>(kExact, c.keys), true);
    for (int64_t at = kExact; at < c.keys; at += kPage) {
      add_segment(c, at, std::min<int64_t>(kPage, c.keys - at), false);
    }
    job.q = q.data(), job.out = out.data(), job.lse = lse.data();
    job.q_stride = kGroup * c.dim, job.q_head_stride = c.dim;
    job.out_stride = kGroup * c.value_dim, job.out_head_stride = c.value_dim;
    job.lse_stride = kGroup, job.lse_head_stride = 1;
    job.queries = c.queries, job.q_position = c.keys - c.queries;
    job.segments = segments.data();
    job.segment_count = static_cast<int32_t>(segments.size());
    job.window = c.window, job.sinks = 4;
    table.jobs = &job, table.job_count = 1, table.group = kGroup;
    table.head_dim = c.dim, table.value_dim = c.value_dim;
    table.packed = true;
    table.scale = 1 / std::sqrt(static_cast<float>(c.dim));
  }

  void add_segment(const Case& c, int64_t at, int64_t length, bool exact) {
    Segment s;
    s.length = length, s.position = at;
    s.k = k.data() + at * c.dim, s.k_stride = c.dim;
    s.v = v.data() + at * c.value_dim, s.v_stride = c.value_dim;
    if (!exact && c.k_bits) {
      s.k_bits = static_cast<uint8_t>(c.k_bits);
      s.k_stride = row_bytes(c.k_bits, c.dim);
      s.k = packed_k.codes.data() + at * s.k_stride;
      s.k_scale = packed_k.scales.data() + at;
      s.k_centre = centre.data();
    }
    if (!exact && c.v_bits) {
      s.v_bits = static_cast<uint8_t>(c.v_bits);
      s.v_stride = row_bytes(c.v_bits, c.value_dim);
      s.v = packed_v.codes.data() + at * s.v_stride;
      s.v_scale = packed_v.scales.data() + at;
      s.v_centre = at > 200 ? nullptr : centre.data();
    }
    segments.push_back(s);
  }
};

double error(const std::vector<float>& x, const std::vector<float>& y) {
  double above = 0, below = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    above += (x[i] - y[i]) * (x[i] - y[i]);
    below += y[i] * y[i];
  }
  return std::sqrt(above / below);
}

void check(const Case& c) {
  Example s(c);
  ASSERT_EQ(attend_reference(s.table), HEED_OK);
  const auto out = s.out, lse = s.lse;
  std::fill(s.out.begin(), s.out.end(), NAN);
  ASSERT_EQ(attend_forward(s.table, nullptr), HEED_OK);
  EXPECT_LE(error(s.out, out), 2e-6) << c.k_bits << "/" << c.v_bits << " " << c.dim;
  EXPECT_LE(error(s.lse, lse), 2e-6) << c.k_bits << "/" << c.v_bits << " " << c.dim;
}

TEST(AttendPacked, IsTheReferenceForEveryTarget) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    for (const int64_t queries : {1, 40}) {
      for (const int bits : kQuantBits) {
        check({bits, bits, 64, 64, 200, queries, 0});
        check({bits, 0, 80, 48, 150, queries, 0});
        check({0, bits, 40, 96, 150, queries, 60});
      }
      check({4, 3, 128, 128, 260, queries, 100});
      check({5, 2, 256, 256, 100, queries, 0});
      check({8, 6, 7, 9, 100, queries, 0});
    }
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

TEST(AttendPacked, WhatDoesNotFitIsRefused) {
  const Case c{4, 4, 64, 64, 100, 1, 0};
  Example plain(c), seven(c), scale(c);
  plain.table.packed = false;
  EXPECT_EQ(attend_forward(plain.table, nullptr), HEED_INVALID_ARGUMENT);
  seven.segments[1].k_bits = 7;
  EXPECT_EQ(attend_forward(seven.table, nullptr), HEED_INVALID_ARGUMENT);
  scale.segments[1].v_scale = nullptr;
  EXPECT_EQ(attend_forward(scale.table, nullptr), HEED_INVALID_ARGUMENT);
  Example s(c);
  const AttendGradJob grads;
  EXPECT_EQ(attend_backward(s.table, &grads, nullptr), HEED_INVALID_ARGUMENT);
}

}  // namespace attend_packed_test
}  // namespace heed::kernel
