// The operators that each do a whole step of co-clustering a dense matrix on the CPU: schemas, argument
// checks, registration.
#include "spectral/binding_cpu.h"
#include "spectral/cocluster.h"

namespace modfast {
namespace {

// A matrix with at least one row and column.
DenseMatrix matrix_of(const Tensor& weight) {
  const DenseMatrix matrix = dense_on_cpu(weight);
  REQUIRE(matrix.rows > 0 && matrix.cols > 0, "weight must not be empty, got shape ", shape_of(weight));
  return matrix;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> singular_vectors_cpu(Tensor weight, int64_t affinity, double scale,
                                                                Tensor row_degrees, Tensor col_degrees,
                                                                Tensor random, int64_t count, double tol,
                                                                int64_t max_passes, int64_t capacity,
                                                                int64_t seed) {
  SingularProblem problem;
  problem.matrix = matrix_of(weight);
  problem.similarity = similarity_of(affinity, scale);
  const int64_t rows = problem.matrix.rows, cols = problem.matrix.cols;
  problem.row_degrees =
      const_data_of<double>(checked(row_degrees, ScalarType::Double, {rows}, "row_degrees"));
  problem.col_degrees =
      const_data_of<double>(checked(col_degrees, ScalarType::Double, {cols}, "col_degrees"));
  problem.width = width_of(random, "random");
  problem.random = const_data_of<float>(checked(random, ScalarType::Float, {cols, problem.width}, "random"));
  REQUIRE(1 <= count && count <= problem.width, "count must be from 1 to the width of random, ",
          problem.width, ", got ", count);
  REQUIRE(std::isfinite(tol) && tol > 0, "tol must be a finite number above 0, got ", std::to_string(tol));
  REQUIRE(max_passes >= 1, "max_passes must be positive, got ", max_passes);
  REQUIRE(capacity % problem.width == 0 && 3 * problem.width <= capacity && capacity <= cols - problem.width,
          "capacity must be a multiple of ", problem.width, ", from three times that to ",
          cols - problem.width, ", got ", capacity);
  problem.count = count;
  problem.tol = tol;
  problem.max_passes = max_passes;
  problem.capacity = capacity;
  problem.seed = static_cast<uint64_t>(seed);
  Tensor vectors = torch::stable::new_empty(row_degrees, {rows + cols, count});
  Tensor values = torch::stable::new_empty(row_degrees, {count});
  Tensor residuals = torch::stable::new_empty(row_degrees, {count});
  Tensor outcome = torch::stable::new_empty(row_degrees, {3}, ScalarType::Long);
  const SingularOutcome found =
      singular_vectors(problem, mutable_data_of<double>(vectors), mutable_data_of<double>(values),
                       mutable_data_of<double>(residuals), parallel_for);
  int64_t* numbers = mutable_data_of<int64_t>(outcome);
  numbers[0] = found.passes;
  numbers[1] = found.converged;
  numbers[2] = found.in_double;
  return {vectors, values, residuals, outcome};
}

Tensor move_sides_cpu(Tensor weight, int64_t affinity, double scale, Tensor row_degrees, Tensor col_degrees,
                      Tensor labels, int64_t num_clusters, bool in_double, double least, int64_t max_sweeps) {
  const DenseMatrix matrix = matrix_of(weight);
  const Similarity similarity = similarity_of(affinity, scale);
  checked(row_degrees, ScalarType::Double, {matrix.rows}, "row_degrees");
  checked(col_degrees, ScalarType::Double, {matrix.cols}, "col_degrees");
  check_node_labels(labels, matrix.rows + matrix.cols, num_clusters);
  // The kernel keeps a number for each node and cluster.
  REQUIRE(num_clusters <= matrix.rows + matrix.cols, "num_clusters must be at most the number of nodes, ",
          matrix.rows + matrix.cols, ", got ", num_clusters);
  // Moves that raise the cut, or gain nothing, would go on for ever.
  REQUIRE(std::isfinite(least) && least > 0, "least must be a finite number above 0, got ",
          std::to_string(least));
  REQUIRE(0 <= max_sweeps && max_sweeps < int64_t(1) << 31,
          "max_sweeps must be a 32-bit number that is not negative, got ", max_sweeps);
  Tensor moved = copy_of<int64_t>(labels);
  const auto move = in_double ? move_sides<double> : move_sides<float>;
  move(matrix, similarity, const_data_of<double>(row_degrees), const_data_of<double>(col_degrees),
       num_clusters, least, max_sweeps, mutable_data_of<int64_t>(moved), parallel_for);
  return moved;
}

Tensor numbered_as_met_cpu(Tensor labels, int64_t num_clusters) {
  REQUIRE(labels.dim() == 1, "labels must have one dimension, got shape ", shape_of(labels));
  check_node_labels(labels, labels.size(0), num_clusters);
  Tensor numbered = copy_of<int64_t>(labels);
  number_as_met(labels.size(0), num_clusters, mutable_data_of<int64_t>(numbered));
  return numbered;
}

}  // namespace
}  // namespace modfast

// clang-format off
STABLE_TORCH_LIBRARY_FRAGMENT(modfast, m) {
  m.def("similarity_singular_vectors(Tensor weight, int affinity, float scale, Tensor row_degrees, "
        "Tensor col_degrees, Tensor random, int count, float tol, int max_passes, int capacity, int seed) "
        "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("move_sides(Tensor weight, int affinity, float scale, Tensor row_degrees, Tensor col_degrees, "
        "Tensor labels, int num_clusters, bool in_double, float least, int max_sweeps) -> Tensor");
  m.def("numbered_as_met(Tensor labels, int num_clusters) -> Tensor");
}
// clang-format on

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) {
  m.impl("similarity_singular_vectors", MODFAST_BOX(&modfast::singular_vectors_cpu));
  m.impl("move_sides", MODFAST_BOX(&modfast::move_sides_cpu));
  m.impl("numbered_as_met", MODFAST_BOX(&modfast::numbered_as_met_cpu));
}
