// The interface of the spectral family's CUDA kernels; see energy/cuda.h.
#pragma once

#include "spectral/plan.h"

namespace modfast {

// As on the CPU; see spectral.h. Rows are taken in stripes that fit into the cache, so every weight is read
// once from the device's memory, for the forward product, and once from the cache, for the backward product.
template <class C>
const char* cuda_product(const ProductPlan<C>& plan, C* forward_pieces, C* backward_pieces, void* stream);
const char* cuda_sums(const DenseMatrix& matrix, Similarity similarity, double* row_pieces,
                      double* col_pieces, double* row_sums, double* col_sums, void* stream);

// out (rows, width) = row_weights * (A (scales * vectors)), with one scale for each row of the vectors, and
// one weight for each row of A; either may be null.
template <class C>
const char* cuda_product(const Rows& rows, Similarity similarity, const C* vectors, const C* scales,
                         const C* row_weights, int64_t width, C* out, void* stream);
// row_sums = A probes; probes null means ones.
const char* cuda_sums(const Rows& rows, Similarity similarity, const double* probes, double* row_sums,
                      void* stream);

// The transpose of rows. order: the entries of rows, sorted by column; columns: the columns of these, in that
// order. The results, in the types of rows, are starts, with one number more than there are columns, and
// indices and values, with one for each entry.
const char* cuda_turn(const Rows& rows, const void* columns, const int64_t* order, void* starts,
                      void* indices, void* values, void* stream);

const char* cuda_edge_gradient(const EdgeGradient& gradient, void* stream);

}  // namespace modfast
