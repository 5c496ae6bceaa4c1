// The inner loops: operations on lines of contiguous numbers, compiled once for each instruction set.
//
// Every level computes the same bits: sums run over rows, never across a vector's lanes, and products
// are rounded before they are added (no contraction to fused multiply-add).
#pragma once

#include <cstdint>

namespace modfast {

struct Lines {
  const char* name;
  void (*half_to_float)(const uint16_t* in, float* out, int64_t n);
  void (*bfloat_to_float)(const uint16_t* in, float* out, int64_t n);
  void (*float_to_half)(const float* in, uint16_t* out, int64_t n);
  void (*float_to_bfloat)(const float* in, uint16_t* out, int64_t n);
  // sum[j] += rows[0][j]^2, then rows[1][j]^2, and so on, in float64; later rows are fetched ahead.
  void (*add_squares_float)(const float* const* rows, int64_t count, double* sum, int64_t n);
  void (*add_squares_double)(const double* const* rows, int64_t count, double* sum, int64_t n);
  // sum[j] += w[j] * v[j] in float64
  void (*add_product_float)(const float* w, const float* v, double* sum, int64_t n);
  void (*add_product_double)(const double* w, const double* v, double* sum, int64_t n);
  // out[j] = w[j] * factor[j]; next_w is where the next line will be read.
  void (*scale_float)(const float* w, const float* factor, float* out, int64_t n, const float* next_w);
  void (*scale_double)(const double* w, const double* factor, double* out, int64_t n, const double* next_w);
  // out[j] += w[j] * factor[j]; next_w and next_out are where the next line will be read and written.
  void (*add_scaled_float)(const float* w, const float* factor, float* out, int64_t n, const float* next_w,
                           const float* next_out);
  void (*add_scaled_double)(const double* w, const double* factor, double* out, int64_t n,
                            const double* next_w, const double* next_out);
};

extern const Lines lines_baseline;
#if defined(__x86_64__)
extern const Lines lines_avx2;
extern const Lines lines_avx512;
#endif

}  // namespace modfast
