// The inner loops of the spectral family, compiled once for each instruction set. Unlike those of the
// energy family they use fused multiply-add where it exists, so results of different levels differ in the
// last bits.
#pragma once

#include "spectral/spectral.h"

namespace modfast {

// The address to prefetch for an index that has not been checked yet. Prefetching an invalid address is
// harmless, but pointer arithmetic that leads to it is undefined, so the address is computed as an integer.
template <class C>
inline const void* address_of(const C* first, int64_t index, int64_t width) {
  return reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(first) + static_cast<uint64_t>(index) *
                                                                                static_cast<uint64_t>(width) *
                                                                                sizeof(C));
}

// kRowsAtOnce rows of a dense matrix are computed on in panels of kPanelCols columns, whose rows are
// kPanelStride apart. This stride is a constant, which takes one register where a variable one would take one
// for each row. It is not a power of two, since such rows would share few sets of the cache. The sum over a
// panel's columns is completed before it is added to the total: sums of sums round less.
constexpr int64_t kRowsAtOnce = 8;
constexpr int64_t kPanelCols = 512;
constexpr int64_t kPanelStride = kPanelCols + 16;

// C is the type of the computation, float or double; every width is a multiple of kLanes.
template <class C>
struct SpectralLinesOf {
  // out = the similarities of n contiguous weights
  void (*similarities)(const void* weights, DType dtype, int64_t n, Similarity similarity, C* out);
  // z (rows, width) += a x, with a a panel of `rows` rows and n columns, and x (n, width)
  void (*forward)(const C* a, int64_t rows, int64_t n, const C* x, int64_t width, C* z);
  // y (n, width) += a^T z
  void (*backward)(const C* a, int64_t rows, int64_t n, const C* z, int64_t width, C* y);
  // z (end - begin, width) = a x, and y += a^T z, for rows begin to end of a sparse matrix a; they stop and
  // return false if an index is out of range
  bool (*sparse_forward)(const SparseMatrix& a, Similarity similarity, int64_t begin, int64_t end, const C* x,
                         int64_t width, C* z);
  bool (*sparse_backward)(const SparseMatrix& a, Similarity similarity, int64_t begin, int64_t end,
                          const C* z, int64_t width, C* y);
  // products (v_width, width) += v^T (weights * w) over n rows; weights null means ones
  void (*inner)(const C* v, int64_t v_width, const C* w, const C* weights, int64_t width, int64_t n,
                double* products);
  // out (n, width) += v factors, with factors (v_width, width)
  void (*add)(const C* v, int64_t v_width, const C* factors, int64_t width, int64_t n, C* out);
};

struct SpectralLines {
  SpectralLinesOf<float> of_float;
  SpectralLinesOf<double> of_double;
  // cols[j] += left * a[j]; returns the sum of a[j] * right[j]; right null means ones
  double (*sums)(const double* a, int64_t n, double left, const double* right, double* cols);
  // For each of n points, if a centre c (dims numbers), first <= c < last, has a smaller squared distance
  // than squares, sets squares to that and nearest to c. Coordinate d of point i is points[d * stride + i].
  void (*nearest)(const float* points, int64_t stride, int64_t n, const float* centres, int64_t dims,
                  int32_t first, int32_t last, float* squares, int32_t* nearest);
  // out = sign(w) (row_term + col_terms - 2 row_vector^T col_vectors), col_vectors (width, n); see spectral.h
  void (*edge_gradient)(const double* weights, double row_term, const double* col_terms,
                        const double* row_vector, const double* col_vectors, int64_t stride, int64_t width,
                        int64_t n, double* out);

  template <class C>
  const SpectralLinesOf<C>& of() const {
    if constexpr (std::is_same_v<C, float>) return of_float;
    if constexpr (std::is_same_v<C, double>) return of_double;
  }
};

extern const SpectralLines spectral_lines_baseline;
#if defined(__x86_64__)
extern const SpectralLines spectral_lines_avx2;
extern const SpectralLines spectral_lines_avx512;
#endif

// The loops for the instruction set in use.
const SpectralLines& spectral_lines_in_use();

}  // namespace modfast
