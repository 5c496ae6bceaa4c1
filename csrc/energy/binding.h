// Checks of the energy operators' arguments on every device, and conversion of tensors to labelled matrices.
#pragma once

#include "common/binding.h"
#include "energy/energy.h"

#include <utility>
#include <vector>

namespace modfast {

// Requires one-dimensional int64 labels, one for each of `expected` rows or columns.
void check_labels(const Tensor& labels, int64_t expected, const char* name);

// Requires lists of one length for an operator over a model; the first two may be the same list.
void check_lists(const std::vector<Tensor>& weights, const std::vector<Tensor>& others,
                 const std::vector<Tensor>& row_labels, const std::vector<Tensor>& col_labels,
                 const std::vector<int64_t>& num_clusters);
// Requires a contiguous float64 tensor of exactly this shape.
void check_numbers(const Tensor& tensor, int64_t rows, int64_t cols, const char* name);
// Requires a square float64 matrix with a row for each cluster and one more.
void check_factors(const Tensor& factors);
// Each gradient is written by several threads, so none may share memory with itself, another or a weight.
void check_writable(const std::vector<Tensor>& weights, const std::vector<Tensor>& grads);

// The layout of a matrix: strides in elements, and the sizes and strides of those kernel dimensions that are
// not merged with the columns, last dimension first.
struct Strides {
  int64_t row = 0, col = 0;
  std::vector<std::pair<int64_t, int64_t>> kernel;
};

// Tensors of one shape (out, in, *kernel) as labelled matrices. Kernel positions are merged with the columns
// where the memory of every tensor allows it, in either order; other kernel dimensions stay separate. The
// matrix is transposed if that makes its rows contiguous in the first tensor's memory.
struct Layout {
  int64_t rows = 0, cols = 0;
  LabelIndex row_index, col_index;
  std::vector<Strides> tensors;
  bool transposed = false;  // if so, the rows have the labels of columns, and vice versa
};

Layout layout_of(const Tensor* const* tensors, size_t count);

}  // namespace modfast
