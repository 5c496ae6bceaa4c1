// Arguments of the energy operators, on every device: checks, and tensors as labelled matrices.
#pragma once

#include "common/binding.h"
#include "energy/energy.h"

#include <utility>
#include <vector>

namespace modfast {

// One-dimensional int64, with a label for each of so many rows or columns.
void check_labels(const Tensor& labels, int64_t expected, const char* name);

// The lists of an operator over a model, whose first two may be one and the same.
void check_lists(const std::vector<Tensor>& weights, const std::vector<Tensor>& others,
                 const std::vector<Tensor>& row_labels, const std::vector<Tensor>& col_labels,
                 const std::vector<int64_t>& num_clusters);
// A float64 tensor of exactly this shape, contiguous.
void check_numbers(const Tensor& tensor, int64_t rows, int64_t cols, const char* name);
// A float64 square with a row for each cluster and one more.
void check_factors(const Tensor& factors);
// Each gradient is written by several threads, so none may share memory with itself, another or a weight.
void check_writable(const std::vector<Tensor>& weights, const std::vector<Tensor>& grads);

// Where the numbers of a matrix lie: strides in elements, and the sizes and strides of what remains of a
// convolution's kernel, last dimension first.
struct Strides {
  int64_t row = 0, col = 0;
  std::vector<std::pair<int64_t, int64_t>> kernel;
};

// Tensors of one shape (out, in, *kernel) as labelled matrices. Kernel positions are merged with the columns
// where the memory of every tensor allows it, in either order; what cannot be stays a kernel. The matrix is
// turned so that its lines run along the first tensor's memory.
struct Layout {
  int64_t rows = 0, cols = 0;
  LabelIndex row_index, col_index;
  std::vector<Strides> tensors;
  bool transposed = false;  // then the rows carry the labels of columns, and the other way round
};

Layout layout_of(const Tensor* const* tensors, size_t count);

}  // namespace modfast
