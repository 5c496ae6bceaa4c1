// Checks of the energy operators' arguments on every device.
#pragma once

#include "common/binding_layout.h"
#include "energy/energy.h"

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

}  // namespace modfast
