#include "spectral/cocluster.h"

#include "spectral/krylov.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

namespace modfast {
namespace {

// The error of an eigenvalue in float32; the largest eigenvalue is 1.
constexpr double kFloatError = 1e-7;
// Where the largest degree is this many times the smallest, float32 has too small a range.
constexpr double kFloatRange = 1e12;
// From this tolerance up float32 is accurate enough.
constexpr double kFloatTolerance = 1e-5;
// Singular values below this come from rounding: they are roots of eigenvalues computed in float64.
constexpr double kZero = 1e-7;

// Whether the rounding errors of float32 exceed the tolerance for the last eigenvalue.
bool too_small(double tol, double least_wanted) { return least_wanted * std::min(tol, 1e-3) < kFloatError; }

double inverse(double degree) { return degree > 0 ? 1.0 / degree : 0.0; }

// The ratio of the largest to the smallest positive degree of a side.
void extend_range(const double* degrees, int64_t count, double* least, double* most) {
  for (int64_t i = 0; i < count; ++i) {
    *most = std::max(*most, degrees[i]);
    if (degrees[i] > 0) *least = std::min(*least, degrees[i]);
  }
}

// The first eigenvector, which is known to be constant, and random ones of about its length.
template <class C>
std::vector<C> starting_vectors(const SingularProblem& p) {
  const int64_t cols = p.matrix.cols, width = p.width;
  double sum = 0;
  for (int64_t j = 0; j < cols; ++j) sum += p.col_degrees[j];
  const double constant = 1.0 / std::sqrt(12.0 * sum / static_cast<double>(cols));
  std::vector<C> start((cols + p.matrix.rows) * width);
  for (int64_t j = 0; j < cols; ++j) {
    const double scale = std::sqrt(inverse(p.col_degrees[j]));
    for (int64_t k = 0; k < width; ++k) {
      start[j * width + k] = static_cast<C>(scale * (p.random[j * width + k] - 0.5));
    }
    start[j * width] = static_cast<C>(scale > 0 ? constant : 0.0);
  }
  return start;
}

template <class C>
Eigen solve(const SingularProblem& p, double* vectors, double* values, double* residuals,
            ParallelFor parallel_for) {
  const int64_t rows = p.matrix.rows, cols = p.matrix.cols, width = p.width;
  std::vector<C> of_rows(rows), of_cols(cols), degrees(p.col_degrees, p.col_degrees + cols);
  for (int64_t i = 0; i < rows; ++i) of_rows[i] = static_cast<C>(inverse(p.row_degrees[i]));
  for (int64_t j = 0; j < cols; ++j) of_cols[j] = static_cast<C>(inverse(p.col_degrees[j]));
  Krylov<C> krylov;
  krylov.length = cols;
  // A x, which the product computes on its way, so that the left vectors take no further pass.
  krylov.carried = rows;
  krylov.width = width;
  krylov.count = p.count;
  krylov.capacity = p.capacity;
  krylov.max_products = p.max_passes;
  krylov.seed = p.seed;
  krylov.weights = degrees.data();
  // M = D_col^-1 A^T D_row^-1 A
  krylov.product = [&](C* block, C* product) {
    Blocks<C> blocks;
    blocks.width = width;
    blocks.right = block;
    blocks.row_weights = of_rows.data();
    blocks.forward = block + cols * width;
    blocks.backward = product;
    similarity_product(p.matrix, p.similarity, blocks, parallel_for);
    for (int64_t j = 0; j < cols; ++j) {
      for (int64_t k = 0; k < width; ++k) product[j * width + k] *= of_cols[j];
    }
  };
  krylov.tolerance = [&](double value) { return p.tol * std::max(value, kZero * kZero); };
  if (sizeof(C) == 4) krylov.hopeless = [&](double least_wanted) { return too_small(p.tol, least_wanted); };

  std::vector<C> found = starting_vectors<C>(p);
  const Eigen eigen = largest_eigenvectors(krylov, &found, parallel_for);
  for (int64_t k = 0; k < p.count; ++k) {
    values[k] = std::sqrt(std::max(eigen.values[k], 0.0));
    residuals[k] = eigen.residuals[k] / std::max(values[k], kZero);
  }
  const C* forward = found.data() + cols * width;
  for (int64_t i = 0; i < rows; ++i) {
    const double scale = inverse(p.row_degrees[i]);
    for (int64_t k = 0; k < p.count; ++k) {
      vectors[i * p.count + k] = forward[i * width + k] * scale / std::max(values[k], kZero);
    }
  }
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t k = 0; k < p.count; ++k) vectors[(rows + j) * p.count + k] = found[j * width + k];
  }
  return eigen;
}

// One-hot labels, (count, width).
template <class C>
void mark(const int64_t* labels, int64_t count, int64_t width, std::vector<C>* members) {
  members->assign(count * width, C(0));
  for (int64_t i = 0; i < count; ++i) {
    if (labels[i] >= 0) (*members)[i * width + labels[i]] = C(1);
  }
}

}  // namespace

SingularOutcome singular_vectors(const SingularProblem& problem, double* vectors, double* values,
                                 double* residuals, ParallelFor parallel_for) {
  double least = HUGE_VAL, most = 0;
  extend_range(problem.row_degrees, problem.matrix.rows, &least, &most);
  extend_range(problem.col_degrees, problem.matrix.cols, &least, &most);
  SingularOutcome outcome;
  if (problem.tol >= kFloatTolerance && most < kFloatRange * least) {
    const Eigen eigen = solve<float>(problem, vectors, values, residuals, parallel_for);
    outcome.passes = eigen.products;
    outcome.converged = eigen.converged;
    if (!too_small(problem.tol, eigen.values.back())) return outcome;
  }
  const Eigen eigen = solve<double>(problem, vectors, values, residuals, parallel_for);
  outcome.passes += eigen.products;
  outcome.converged = eigen.converged;
  outcome.in_double = true;
  return outcome;
}

template <class C>
void move_sides(const DenseMatrix& matrix, Similarity similarity, const double* row_degrees,
                const double* col_degrees, int64_t clusters, double least, int64_t max_sweeps,
                int64_t* labels, ParallelFor parallel_for) {
  const int64_t width = (clusters + kLanes - 1) / kLanes * kLanes;
  const int64_t sizes[2] = {matrix.rows, matrix.cols};
  const double* degrees[2] = {row_degrees, col_degrees};
  int64_t* of_side[2] = {labels, labels + matrix.rows};
  // No edge joins two rows, so a row's edge weight to each cluster does not depend on the moves of other
  // rows: one product computes it for all rows. The same holds for columns.
  std::vector<C> members[2], ties[2];
  std::vector<double> widened[2];
  const auto tie = [&](bool rows, bool cols) {
    Blocks<C> blocks;
    blocks.width = width;
    for (int side = 0; side < 2; ++side) {
      if (!(side == 0 ? rows : cols)) continue;
      mark(of_side[1 - side], sizes[1 - side], width, &members[1 - side]);
      ties[side].resize(sizes[side] * width);
    }
    if (rows) blocks.right = members[1].data();
    if (rows) blocks.forward = ties[0].data();
    if (cols) blocks.left = members[0].data();
    if (cols) blocks.backward = ties[1].data();
    similarity_product(matrix, similarity, blocks, parallel_for);
    if (rows) widened[0].assign(ties[0].begin(), ties[0].end());
    if (cols) widened[1].assign(ties[1].begin(), ties[1].end());
  };
  tie(true, true);
  Cut cut;
  cut.inside.resize(clusters);
  cut.volume.resize(clusters);
  cut.sizes.resize(clusters);
  for (int side = 0; side < 2; ++side) {
    for (int64_t i = 0; i < sizes[side]; ++i) {
      const int64_t label = of_side[side][i];
      if (label < 0) continue;
      cut.volume[label] += degrees[side][i];
      ++cut.sizes[label];
      if (side == 0) cut.inside[label] += 2.0 * widened[0][i * width + label];
    }
  }
  bool current[2] = {true, true};
  for (int64_t turn = 0; turn < 2 * max_sweeps; ++turn) {
    const int side = turn % 2, other = 1 - side;
    if (!current[side]) {
      tie(side == 0, side == 1);
      current[side] = true;
    } else if (turn > 1) {
      break;
    }
    const int64_t moved = move_side(sizes[side], widened[side].data(), width, degrees[side], nullptr, least,
                                    max_sweeps, of_side[side], &cut);
    current[other] = current[other] && moved == 0;
  }
}

template void move_sides<float>(const DenseMatrix&, Similarity, const double*, const double*, int64_t, double,
                                int64_t, int64_t*, ParallelFor);
template void move_sides<double>(const DenseMatrix&, Similarity, const double*, const double*, int64_t,
                                 double, int64_t, int64_t*, ParallelFor);

void number_as_met(int64_t nodes, int64_t clusters, int64_t* labels) {
  int64_t met = 0;
  const auto number = [&](auto number_of) {
    for (int64_t i = 0; i < nodes; ++i) {
      if (labels[i] < 0) continue;
      int64_t& found = number_of(labels[i]);
      if (found < 0) found = met++;
      labels[i] = found;
    }
  };
  if (clusters <= 2 * nodes) {
    std::vector<int64_t> numbers(clusters, -1);
    number([&](int64_t label) -> int64_t& { return numbers[label]; });
  } else {  // one number for each cluster might not fit into memory
    std::unordered_map<int64_t, int64_t> numbers;
    number([&](int64_t label) -> int64_t& { return numbers.emplace(label, -1).first->second; });
  }
}

}  // namespace modfast
