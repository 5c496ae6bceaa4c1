#include "energy/binding.h"

namespace modfast {

void check_labels(const Tensor& labels, int64_t expected, const char* name) {
  check_dense(labels, name);
  REQUIRE(labels.scalar_type() == ScalarType::Long && labels.dim() == 1, name, " must be a 1-D int64 tensor");
  REQUIRE(labels.size(0) == expected, name, " has ", labels.size(0), " labels, the weight needs ", expected);
}

void check_lists(const std::vector<Tensor>& weights, const std::vector<Tensor>& others,
                 const std::vector<Tensor>& row_labels, const std::vector<Tensor>& col_labels,
                 const std::vector<int64_t>& num_clusters) {
  const size_t count = weights.size();
  REQUIRE(count > 0, "weights must hold at least one tensor");
  REQUIRE(others.size() == count && row_labels.size() == count && col_labels.size() == count &&
              num_clusters.size() == count,
          "weights, grads, row_labels, col_labels and num_clusters must have one length");
}

void check_numbers(const Tensor& tensor, int64_t rows, int64_t cols, const char* name) {
  check_dense(tensor, name);
  const bool fits =
      tensor.dim() == (cols > 0 ? 2 : 1) && tensor.size(0) == rows && (cols == 0 || tensor.size(1) == cols);
  REQUIRE(tensor.scalar_type() == ScalarType::Double && fits && tensor.is_contiguous(), name,
          " must be contiguous float64 with a row for each of ", rows, " weights, got shape ",
          shape_of(tensor));
}

void check_factors(const Tensor& factors) {
  check_dense(factors, "factors");
  REQUIRE(factors.scalar_type() == ScalarType::Double && factors.dim() == 2 &&
              factors.size(0) == factors.size(1) && factors.size(0) >= 2,
          "factors must be a square float64 matrix with a row for each cluster and one more, got shape ",
          shape_of(factors));
}

}  // namespace modfast
