// Tests of the steps of co-clustering that are each one call: small dense algebra, the solver, singular
// vectors, moves of rows and columns. `make sanitize` builds and runs it; see test_spectral.cpp.
#include "checks.h"
#include "common/instruction_set.h"
#include "spectral/cocluster.h"
#include "spectral/krylov.h"
#include "spectral/small.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

namespace {

using namespace modfast;

double uniform() { return std::uniform_real_distribution<double>()(random_numbers); }

// Memory that ends with its last number, so that an access beyond it is detected.
template <class T, class F>
std::unique_ptr<T[]> numbers(int64_t count, const F& number) {
  std::unique_ptr<T[]> made(new T[count]);
  for (int64_t i = 0; i < count; ++i) made[i] = static_cast<T>(number());
  return made;
}

// --- small algebra

Small random_symmetric(int64_t size, double scale) {
  Small matrix(size, size);
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j <= i; ++j) matrix[i][j] = matrix[j][i] = scale * normal();
  }
  return matrix;
}

// Eigenvectors are orthonormal, A v = value v, and values ascend.
void try_eigen(const Small& matrix) {
  const int64_t n = matrix.rows;
  double size = 0;
  for (double number : matrix.numbers) size = std::max(size, std::abs(number));
  Small vectors = matrix;
  std::vector<double> values;
  symmetric_eigen(&vectors, &values);
  check(values.size() == static_cast<size_t>(n), "number of eigenvalues", values.size(), n);
  const double allowed = 1e-15 * (10 + n);
  for (int64_t i = 0; i < n; ++i) {
    if (i > 0) check(values[i - 1] <= values[i], "an eigenvalue", values[i], values[i - 1]);
    for (int64_t j = 0; j < n; ++j) {
      double product = 0, image = 0;
      for (int64_t k = 0; k < n; ++k) {
        product += vectors[i][k] * vectors[j][k];
        image += matrix[j][k] * vectors[i][k];
      }
      check_near(product, i == j ? 1.0 : 0.0, allowed, "a product of eigenvectors");
      check_near(image, values[i] * vectors[i][j], allowed * size * std::sqrt(double(n)), "an image");
    }
  }
  ++passed;
}

void try_special_matrices() {
  try_eigen(Small::identity(9));
  try_eigen(Small(7, 7));  // zeros
  Small ones(12, 12);
  std::fill(ones.numbers.begin(), ones.numbers.end(), 1.0);
  try_eigen(ones);
  Small blocks(24, 24);  // two that do not touch, with the same eigenvalues
  for (int64_t i = 0; i < 24; ++i) {
    for (int64_t j = 0; j < 24; ++j) blocks[i][j] = i / 12 == j / 12 ? 1.0 / (1.0 + i % 12 + j % 12) : 0.0;
  }
  try_eigen(blocks);
  Small graded(16, 16);  // numbers of very different sizes
  for (int64_t i = 0; i < 16; ++i) {
    for (int64_t j = 0; j < 16; ++j) graded[i][j] = std::pow(10.0, -static_cast<double>(i + j));
  }
  try_eigen(graded);
  for (double bad : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL, -HUGE_VAL}) {
    Small matrix = Small::identity(4);
    matrix[2][1] = bad;
    std::vector<double> values;
    bool raised = false;
    try {
      symmetric_eigen(&matrix, &values);
    } catch (const std::invalid_argument&) {
      raised = true;
    }
    check(raised, "raised for a number that is not finite", raised, 1);
  }
  ++passed;
}

void try_products() {
  Small a(3, 4), b(4, 5), c(3, 5), plain(3, 5), turned(4, 5);
  for (Small* each : {&a, &b, &c}) {
    for (double& number : each->numbers) number = normal();
  }
  add_product(a, b, 2.0, &plain);
  add_turned_product(a, c, -1.0, &turned);
  for (int64_t j = 0; j < 5; ++j) {
    for (int64_t i = 0; i < 3; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < 4; ++k) sum += 2.0 * a[i][k] * b[k][j];
      check_near(plain[i][j], sum, 1e-14, "a product");
    }
    for (int64_t k = 0; k < 4; ++k) {
      double sum = 0;
      for (int64_t i = 0; i < 3; ++i) sum -= a[i][k] * c[i][j];
      check_near(turned[k][j], sum, 1e-14, "a turned product");
    }
  }
  ++passed;
}

// --- the solver

// A diagonal matrix with these eigenvalues, then zeros; what is carried is each vector times 3.
template <class C>
void try_solver(const std::vector<double>& eigenvalues, int64_t length, int64_t width, int64_t count,
                int64_t capacity, double tolerance, bool with_gaps = false) {
  std::vector<C> weights(length, C(1));
  // Where the weight is 0, the vectors stay as they start, and so do the products.
  if (with_gaps) {
    for (int64_t i = length / 2; i < length; i += 3) weights[i] = C(0);
  }
  Krylov<C> problem;
  problem.length = length;
  problem.carried = length;
  problem.width = width;
  problem.count = count;
  problem.capacity = capacity;
  problem.max_products = 400;
  problem.seed = 5;
  problem.weights = weights.data();
  problem.product = [&](C* block, C* product) {
    for (int64_t i = 0; i < length; ++i) {
      const double value =
          i < static_cast<int64_t>(eigenvalues.size()) && weights[i] > 0 ? eigenvalues[i] : 0.0;
      for (int64_t k = 0; k < width; ++k) {
        product[i * width + k] = static_cast<C>(value * block[i * width + k]);
        block[(length + i) * width + k] = C(3) * block[i * width + k];
      }
    }
  };
  problem.tolerance = [&](double) { return tolerance; };
  std::vector<C> vectors(2 * length * width);
  for (int64_t i = 0; i < length * width; ++i) {
    vectors[i] = weights[i / width] > 0 ? static_cast<C>(uniform() - 0.5) : C(0);
  }
  const Eigen found = largest_eigenvectors(problem, &vectors, in_turn);
  check(found.converged, "converged", found.converged, 1);
  std::vector<double> expected(eigenvalues);
  expected.resize(length, 0.0);
  std::sort(expected.begin(), expected.end(), std::greater<double>());
  for (int64_t j = 0; j < count; ++j) {
    check_near(found.values[j], expected[j], 2 * tolerance, "an eigenvalue");
    double square = 0;
    for (int64_t i = 0; i < length; ++i) {
      const double value = i < static_cast<int64_t>(eigenvalues.size()) ? eigenvalues[i] : 0.0;
      const double entry = weights[i] > 0 ? vectors[i * width + j] : 0.0;
      square += std::pow((value - found.values[j]) * entry, 2);
      check_near(vectors[(length + i) * width + j], 3.0 * vectors[i * width + j], 10 * tolerance,
                 "what is carried");
    }
    check(std::sqrt(square) <= 2 * tolerance, "a residual", std::sqrt(square), tolerance);
    for (int64_t k = 0; k <= j; ++k) {
      double product = 0;
      for (int64_t i = 0; i < length; ++i) {
        product += double(weights[i]) * vectors[i * width + j] * vectors[i * width + k];
      }
      check_near(product, j == k ? 1.0 : 0.0, 20 * tolerance, "a product of vectors");
    }
  }
  ++passed;
}

template <class C>
void try_solvers(double tolerance) {
  std::vector<double> close, both_signs{1.0, 0.5};
  for (int i = 0; i < 60; ++i) close.push_back(1.0 - 0.01 * i);
  for (int i = 0; i < 40; ++i) both_signs.push_back(-0.9 + 0.01 * i);
  try_solver<C>({1.0, 0.7, 0.4}, 90, 8, 3, 32, tolerance);
  try_solver<C>({1.0, 1.0, 1.0, 1.0, 0.2}, 90, 8, 4, 24, tolerance);
  try_solver<C>(close, 90, 8, 8, 32, tolerance);  // with restarts
  try_solver<C>(close, 130, 16, 11, 112, tolerance);
  try_solver<C>(both_signs, 90, 8, 2, 24, tolerance);
  try_solver<C>({1.0}, 40, 8, 5, 32, tolerance);  // directions without length are replaced
  try_solver<C>({}, 40, 8, 2, 32, tolerance);     // zeros alone
  try_solver<C>({1.0, 0.7, 0.4}, 90, 8, 3, 32, tolerance, true);
}

// --- singular vectors and moves

template <class C>
struct Case {
  int64_t rows, cols;
  std::unique_ptr<C[]> data;
  DenseMatrix matrix;
  Similarity similarity;
  std::vector<double> row_degrees, col_degrees, values;

  // Blocks on the diagonal, and a little noise; each `gap`-th row and column is 0.
  Case(DType dtype, int64_t rows, int64_t cols, int64_t blocks, int64_t gap, Affinity affinity)
      : rows(rows), cols(cols), similarity{affinity, 0.5}, row_degrees(rows), col_degrees(cols) {
    data = numbers<C>(rows * cols, uniform);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        C& weight = data[i * cols + j];
        weight = i % blocks == j % blocks ? 1 + weight : C(0.1) * weight;
        if (gap && (i % gap == 0 || j % gap == 0)) weight = 0;
        values.push_back(similarity_of<double>(weight, similarity));
        row_degrees[i] += values.back();
        col_degrees[j] += values.back();
      }
    }
    matrix = {data.get(), dtype, rows, cols, cols};
  }
};

template <class C>
void try_singular_vectors(DType dtype, int64_t rows, int64_t cols, int64_t blocks, int64_t gap,
                          Affinity affinity, int64_t count, double tol) {
  const Case<C> given(dtype, rows, cols, blocks, gap, affinity);
  SingularProblem problem;
  problem.matrix = given.matrix;
  problem.similarity = given.similarity;
  problem.row_degrees = given.row_degrees.data();
  problem.col_degrees = given.col_degrees.data();
  problem.count = count;
  problem.width = (count + kLanes - 1) / kLanes * kLanes;
  problem.capacity = 3 * problem.width;
  problem.max_passes = 300;
  problem.tol = tol;
  const auto random = numbers<float>(cols * problem.width, uniform);
  problem.random = random.get();
  const auto vectors = numbers<double>((rows + cols) * count, normal);
  const auto values = numbers<double>(count, normal), residuals = numbers<double>(count, normal);
  const SingularOutcome outcome =
      singular_vectors(problem, vectors.get(), values.get(), residuals.get(), in_turn);
  check(outcome.converged, "converged", outcome.converged, 1);
  check(outcome.in_double || tol >= 1e-5, "in float64", outcome.in_double, 1);
  check_near(values[0], 1.0, std::max(tol * tol, 1e-6), "the first singular value");
  for (int64_t k = 0; k < count; ++k) {
    check(residuals[k] <= tol * values[k], "a residual", residuals[k], tol * values[k]);
    // A right = s D_row left, which the product gave on its way.
    for (int64_t i = 0; i < rows; ++i) {
      double image = 0;
      for (int64_t j = 0; j < cols; ++j)
        image += given.values[i * cols + j] * vectors[(rows + j) * count + k];
      check_near(image, values[k] * given.row_degrees[i] * vectors[i * count + k], 1e-4, "an image");
    }
  }
  ++passed;
}

// Moves lower the cut; once they end, none would, to a cluster that the node has an edge to.
void try_moves(int64_t rows, int64_t cols, int64_t clusters, int64_t gap, Affinity affinity) {
  const Case<float> given(DType::float32, rows, cols, std::max<int64_t>(clusters, 1), gap, affinity);
  const auto labels = numbers<int64_t>(rows + cols, [&] { return double(random_numbers() % clusters); });
  if (gap) labels[rows + cols - 1] = -1;
  const auto cut = [&] {
    std::vector<double> inside(clusters), volume(clusters);
    for (int64_t i = 0; i < rows + cols; ++i) {
      if (labels[i] >= 0) {
        volume[labels[i]] += i < rows ? given.row_degrees[i] : given.col_degrees[i - rows];
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        if (labels[i] >= 0 && labels[i] == labels[rows + j]) {
          inside[labels[i]] += 2 * given.values[i * cols + j];
        }
      }
    }
    double sum = 0;
    for (int64_t c = 0; c < clusters; ++c) sum += volume[c] > 0 ? (volume[c] - inside[c]) / volume[c] : 0.0;
    return sum;
  };
  const double before = cut();
  move_sides<double>(given.matrix, given.similarity, given.row_degrees.data(), given.col_degrees.data(),
                     clusters, 1e-12, 50, labels.get(), in_turn);
  const double after = cut();
  check(after <= before + 1e-9, "the cut after moves", after, before);
  for (int64_t i = 0; i < rows + cols; ++i) {
    const int64_t own = labels[i];
    if (own < 0 || std::count(labels.get(), labels.get() + rows + cols, own) == 1) continue;
    for (int64_t c = 0; c < clusters; ++c) {
      double tie = 0;
      for (int64_t other = i < rows ? rows : 0; other < (i < rows ? rows + cols : rows); ++other) {
        const int64_t place = i < rows ? i * cols + other - rows : other * cols + i - rows;
        if (labels[other] == c) tie += given.values[place];
      }
      if (tie == 0) continue;
      labels[i] = c;
      check(cut() >= after - 1e-9, "the cut after one more move", cut(), after);
    }
    labels[i] = own;
  }
  number_as_met(rows + cols, clusters, labels.get());
  int64_t met = 0;
  for (int64_t i = 0; i < rows + cols; ++i) {
    check(labels[i] <= met, "a number", labels[i], met);
    met = std::max(met, labels[i] + 1);
  }
  ++passed;
}

}  // namespace

int main() {
  for (int64_t size : {0, 1, 2, 3, 4, 8, 9, 16, 40, 128}) {
    for (double scale : {1.0, 1e-170, 1e150}) try_eigen(random_symmetric(size, scale));
  }
  try_special_matrices();
  try_products();
  try_solvers<double>(1e-9);
  try_solvers<float>(2e-5);
  for (Affinity affinity : {Affinity::abs, Affinity::square, Affinity::given}) {
    try_singular_vectors<float>(DType::float32, 70, 50, 3, 0, affinity, 3, 1e-3);
    try_singular_vectors<float>(DType::float32, 50, 70, 4, 7, affinity, 4, 1e-3);
    try_singular_vectors<double>(DType::float64, 90, 80, 5, 0, affinity, 9, 1e-8);
    try_moves(9, 7, 2, 0, affinity);
    try_moves(14, 17, 3, 5, affinity);
  }
  try_singular_vectors<float>(DType::float32, 1, 40, 1, 0, Affinity::abs, 1, 1e-3);
  try_moves(1, 1, 1, 0, Affinity::abs);
  try_moves(20, 6, 9, 0, Affinity::abs);
  std::printf("%s: %d of co-clustering passed, 0 failed\n", name_of(instruction_set_in_use()), passed);
}
