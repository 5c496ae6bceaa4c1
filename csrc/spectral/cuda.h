// What the spectral family's CUDA kernels offer their binding; see energy/cuda.h.
#pragma once

#include "spectral/plan.h"

namespace modfast {

// As on the CPU; see spectral.h. Every weight is read once from the device's memory, and on the way back from
// its cache: the rows are taken in stripes that fit there.
template <class C>
const char* cuda_product(const ProductPlan<C>& plan, C* forward_pieces, C* backward_pieces, void* stream);
const char* cuda_sums(const DenseMatrix& matrix, Similarity similarity, double* row_pieces,
                      double* col_pieces, double* row_sums, double* col_sums, void* stream);

// out (rows, width) = A (scales * vectors), scales being one for each row of the vectors, or null.
template <class C>
const char* cuda_product(const Rows& rows, Similarity similarity, const C* vectors, const C* scales,
                         int64_t width, C* out, void* stream);
// row_sums = A probes; ones stand for no probes.
const char* cuda_sums(const Rows& rows, Similarity similarity, const double* probes, double* row_sums,
                      void* stream);

// The transpose of rows, whose entries are as those of `order`, which sorts them by column; columns: their
// columns. starts: one more than columns; indices and values: as many as entries.
const char* cuda_turn(const Rows& rows, const void* columns, const int64_t* order, int64_t* starts,
                      int64_t* indices, void* values, void* stream);

const char* cuda_edge_gradient(const EdgeGradient& gradient, void* stream);

}  // namespace modfast
