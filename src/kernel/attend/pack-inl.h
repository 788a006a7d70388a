// Packing of a tile's keys and values for the micro-kernels.
#if defined(HEED_KERNEL_ATTEND_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_KERNEL_ATTEND_PACK_INL_H_
#undef HEED_KERNEL_ATTEND_PACK_INL_H_
#else
#define HEED_KERNEL_ATTEND_PACK_INL_H_
#endif

#include "kernel/attend/tile-inl.h"
#include "kernel/attend/tile.h"
#include "kernel/quant/quant-inl.h"

#if HEED_VECTOR_TARGET
HWY_BEFORE_NAMESPACE();
namespace heed::kernel::attend {
namespace HWY_NAMESPACE {

template <class T>
const T* key_row(const TileRun& run, int j) {
  return static_cast<const T*>(run.segment->k) + (run.key + j) * run.segment->k_stride;
}

template <class T>
const T* value_row(const TileRun& run, int j) {
  return static_cast<const T*>(run.segment->v) + (run.key + j) * run.segment->v_stride;
}

// Rows as panels of columns: element (key j, d) at out[(j / kPanel * dim + d) * kPanel + j %
// kPanel]. Columns behind the last key are zero up to a whole vector.
template <class T, class Row>
HWY_NOINLINE void pack_columns(const Tile& tile, Row row, int dim, float* out) {
  const T* rows[kTile];
  for (int i = 0; i < tile.runs; ++i) {
    const TileRun& run = tile.run[i];
    for (int j = 0; j < run.count; ++j) rows[run.first + j] = row(run, j);
  }
  const auto at = [&](int j) {
    return out + static_cast<ptrdiff_t>(j / kPanel) * kPanel * dim + j % kPanel;
  };
  const int last = tile.n - 1;
  // Blocks of 16 keys by kLanes elements, so that the lines written to stay in the cache.
  for (int block = 0; block < tile.n; block += 16) {
    for (int i = 0; i < dim; i += kLanes) {
      for (int j = block; j < std::min(block + 16, tile.n); j += 4) {
        transpose_four(rows[j], rows[std::min(j + 1, last)], rows[std::min(j + 2, last)],
                       rows[std::min(j + 3, last)], i, std::min(i + kLanes, dim), at(j));
      }
    }
  }
  for (int j = (tile.n + 3) / 4 * 4; j % kLanes != 0; ++j) {
    for (int i = 0; i < dim; ++i) at(j)[i * kPanel] = 0;
  }
}

template <class T>
void pack_values(const Tile& tile, int dim, float* out) {
  pack_columns<T>(tile, value_row<T>, dim, out);
}

// Keys or values of a segment.
struct Side {
  const void* Segment::*rows;
  int64_t Segment::*stride;
  uint8_t Segment::*bits;
  const uint16_t* Segment::*scale;
  const float* Segment::*centre;
};
inline constexpr Side kKeys = {&Segment::k, &Segment::k_stride, &Segment::k_bits, &Segment::k_scale,
                               &Segment::k_centre};
inline constexpr Side kValues = {&Segment::v, &Segment::v_stride, &Segment::v_bits,
                                 &Segment::v_scale, &Segment::v_centre};

// A run of rows in few bits, as copy_rows.
inline HWY_NOINLINE bool unpack_run(const TileRun& run, const Side& side, int dim, float* out) {
  const Segment& s = *run.segment;
  const ptrdiff_t pad = pad16(dim);
  const uint16_t* scales = s.*side.scale + run.key;
  quant::HWY_NAMESPACE::unpack_rows(
      s.*side.bits, static_cast<const uint8_t*>(s.*side.rows) + run.key * s.*side.stride,
      s.*side.stride, scales, run.count, dim, s.*side.centre, out, pad);
  bool finite = true;
  for (int j = 0; j < run.count; ++j) {
    std::fill(out + j * pad + dim, out + (j + 1) * pad, 0.0f);
    finite = finite && (scales[j] & 0x7F80u) != 0x7F80u;
  }
  return finite;
}

// Rows as float32, zero up to a multiple of 16. False if an element is not finite.
template <class T>
HWY_NOINLINE bool copy_rows(const Tile& tile, const Side& side, int dim, float* out) {
  const ptrdiff_t pad = pad16(dim);
  Vec finite = hn::Zero(Tag());
  bool packed_finite = true;
  for (int i = 0; i < tile.runs; ++i) {
    const TileRun& run = tile.run[i];
    const Segment& s = *run.segment;
    float* at = out + run.first * pad;
    if (s.*side.bits != 0) {
      packed_finite = unpack_run(run, side, dim, at) && packed_finite;
      continue;
    }
    const T* row = static_cast<const T*>(s.*side.rows) + run.key * s.*side.stride;
    for (int j = 0; j < run.count; ++j) {
      finite = copy_row(row + j * s.*side.stride, dim, at + j * pad, finite);
    }
  }
  return packed_finite && all_finite(finite);
}

// The same as panels of columns; `rows` [kTile][pad] is for tiles with keys in few bits.
template <class T>
void pack_keys(const Tile& tile, int dim, float* rows, float* out) {
  if (!tile.packed_keys) return pack_columns<T>(tile, key_row<T>, dim, out);
  copy_rows<T>(tile, kKeys, dim, rows);
  const ptrdiff_t pad = pad16(dim);
  pack_columns<float>(
      tile, [&](const TileRun& run, int j) { return rows + (run.first + j) * pad; }, dim, out);
}

// One row of queries or gradients, times a factor: interleaved with the rows of its group (stride
// kGroup) or in place (stride 1).
HWY_INLINE void load_row(const void* data, int32_t dtype, int64_t offset, int dim, float factor,
                         float* out, int stride) {
  if (dtype == HEED_BFLOAT16) {
    const auto* x = static_cast<const uint16_t*>(data) + offset;
    for (int i = 0; i < dim; ++i) out[i * stride] = factor * bfloat16_to_float(x[i]);
  } else if (dtype == HEED_FLOAT16) {
    const auto* x = static_cast<const hwy::float16_t*>(data) + offset;
    for (int i = 0; i < dim; ++i) out[i * stride] = factor * to_float(x[i]);
  } else {
    const auto* x = static_cast<const float*>(data) + offset;
    for (int i = 0; i < dim; ++i) out[i * stride] = factor * x[i];
  }
}

// Where row r of interleaved groups starts.
HWY_INLINE float* interleaved_row(float* data, int r, ptrdiff_t pad) {
  return data + (r / kGroup) * kGroup * pad + r % kGroup;
}

}  // namespace HWY_NAMESPACE
}  // namespace heed::kernel::attend
HWY_AFTER_NAMESPACE();
#endif  // HEED_VECTOR_TARGET

#endif  // HEED_KERNEL_ATTEND_PACK_INL_H_
