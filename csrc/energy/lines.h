// The inner loops: operations on lines of contiguous numbers, compiled once for each instruction set.
//
// Every level computes the same bits: sums run over rows, never across a vector's lanes, and products
// are rounded before they are added (no contraction to fused multiply-add).
#pragma once

#include "common/enmeshment.h"

#include <cstdint>

namespace modfast {

template <class T>
struct LinesOf {
  // sum[j] += rows[0][j]^2, then rows[1][j]^2, and so on, in float64
  void (*add_squares)(const T* const* rows, int64_t count, double* sum, int64_t n);
  // sum[j] += w[j] * v[j] in float64
  void (*add_products)(const T* w, const T* v, double* sum, int64_t n);
  // out[j] = w[j] * factor[j]
  void (*scale)(const T* w, const Compute<T>* factor, T* out, int64_t n);
  // out[i][j] = w[i][j] * (cols[j] == rows[i] ? inside : across) for `count` rows i of n columns, whose
  // memory is w_stride and out_stride numbers apart; or out[i][j] += that; or written past the cache. A row
  // of label `none` is like no column.
  using PutSplit = void (*)(const T* w, int64_t w_stride, const int32_t* rows, int64_t count, int32_t none,
                            const int32_t* cols, int64_t n, Compute<T> inside, Compute<T> across, T* out,
                            int64_t out_stride);
  PutSplit scale_split, add_scaled_split, stream_split;
};

struct Lines {
  LinesOf<float> of_float;
  LinesOf<double> of_double;
  LinesOf<Half> of_half;
  LinesOf<BFloat> of_bfloat;
  // inside[j % 8] += sums[j] where labels[j] == label, else across[j % 8] += sums[j]. There are eight of
  // each, at every level, since an addition waits for the one before.
  void (*add_by_kind)(const double* sums, const int32_t* labels, int32_t label, int64_t n, double* inside,
                      double* across);

  template <class T>
  const LinesOf<T>& of() const {
    if constexpr (std::is_same_v<T, float>) return of_float;
    if constexpr (std::is_same_v<T, double>) return of_double;
    if constexpr (std::is_same_v<T, Half>) return of_half;
    if constexpr (std::is_same_v<T, BFloat>) return of_bfloat;
  }
};

extern const Lines lines_baseline;
#if defined(__x86_64__)
extern const Lines lines_avx2;
extern const Lines lines_avx512;
#endif

// The loops for the instruction set in use.
const Lines& lines_in_use();

}  // namespace modfast
