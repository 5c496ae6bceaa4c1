// Tensors as labelled matrices: their layout in memory, and whether they may be written. For all bindings.
#pragma once

#include "common/binding.h"
#include "common/enmeshment.h"

#include <utility>
#include <vector>

namespace modfast {

// What several threads write may not share memory with itself, with each other or with what is read. The
// names are for messages.
void check_writable(const std::vector<Tensor>& read, const std::vector<Tensor>& written,
                    const char* read_name = "weight", const char* written_name = "gradient");

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

// Requires one shape of at least 2 dimensions, and unless `any_dtypes` is set, one dtype.
Layout layout_of(const Tensor* const* tensors, size_t count, bool any_dtypes = false);

}  // namespace modfast
