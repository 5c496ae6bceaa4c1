#include "spectral/small.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace modfast {
namespace {

// In a matrix whose largest number is about one, numbers below this are lost in rounding.
constexpr double kVanishing = 1e-100;

// to += factor * from
void add_row(double factor, const double* __restrict from, int64_t n, double* __restrict to) {
  for (int64_t j = 0; j < n; ++j) to[j] += factor * from[j];
}

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t j = 0; j < n; ++j) sum += a[j] * b[j];
  return sum;
}

// Householder's reduction to a tridiagonal matrix T = Q^T A Q. Sets the diagonal and what is beside it; the
// matrix becomes Q^T.
void tridiagonal(Small* matrix, std::vector<double>* diagonal, std::vector<double>* beside) {
  Small& a = *matrix;
  const int64_t n = a.rows;
  // Reflection k is 1 - factors[k] v v^T, with v in row k of `reflections`.
  Small reflections(n, n);
  std::vector<double> factors(n), product(n);
  for (int64_t k = 0; k + 2 < n; ++k) {
    const int64_t first = k + 1, size = n - first;
    double* v = reflections[k] + first;
    for (int64_t i = 0; i < size; ++i) v[i] = a[first + i][k];
    const double rest = dot(v + 1, v + 1, size - 1);
    if (rest < kVanishing * kVanishing) continue;  // it is tridiagonal already
    const double length = std::sqrt(v[0] * v[0] + rest);
    const double beyond = v[0] > 0 ? -length : length;
    v[0] -= beyond;
    const double factor = 2.0 / (v[0] * v[0] + rest);
    factors[k] = factor;
    a[first][k] = a[k][first] = beyond;
    // A - v w^T - w v^T with w = factor (A v - factor / 2 (v^T A v) v).
    double* w = product.data();
    std::fill(w, w + size, 0.0);
    for (int64_t i = 0; i < size; ++i) add_row(v[i], a[first + i] + first, size, w);
    const double half = 0.5 * factor * dot(v, w, size);
    for (int64_t i = 0; i < size; ++i) w[i] = factor * (w[i] - half * v[i]);
    for (int64_t i = 0; i < size; ++i) {
      double* __restrict row = a[first + i] + first;
      for (int64_t j = 0; j < size; ++j) row[j] -= v[i] * w[j] + w[i] * v[j];
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    (*diagonal)[i] = a[i][i];
    if (i + 1 < n) (*beside)[i] = a[i + 1][i];
  }
  // Q = H_0 H_1 ...: the last reflection first, so that each touches only what is not yet the identity.
  Small q = Small::identity(n);
  for (int64_t k = n - 3; k >= 0; --k) {
    if (factors[k] == 0) continue;
    const int64_t first = k + 1, size = n - first;
    const double* v = reflections[k] + first;
    std::fill(product.begin(), product.begin() + size, 0.0);
    for (int64_t i = 0; i < size; ++i) add_row(v[i], q[first + i] + first, size, product.data());
    for (int64_t i = 0; i < size; ++i) {
      add_row(-factors[k] * v[i], product.data(), size, q[first + i] + first);
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) a[j][i] = q[i][j];
  }
}

// Rotates two rows of eigenvectors.
void rotate(double c, double s, int64_t n, double* __restrict low, double* __restrict high) {
  for (int64_t j = 0; j < n; ++j) {
    const double of_low = low[j], of_high = high[j];
    high[j] = s * of_low + c * of_high;
    low[j] = c * of_low - s * of_high;
  }
}

// The QL iteration with implicit shifts (G. H. Golub and C. F. Van Loan, "Matrix Computations", chapter 8):
// the tridiagonal matrix becomes diagonal, and its rotations are applied to the rows of `vectors`.
void diagonalise(std::vector<double>* diagonal, std::vector<double>* beside, Small* vectors) {
  std::vector<double>&d = *diagonal, &e = *beside;
  const auto n = static_cast<int64_t>(d.size());
  constexpr int kMostIterations = 60;  // for one eigenvalue; two or three are usual
  for (int64_t low = 0; low < n; ++low) {
    for (int iteration = 0;; ++iteration) {
      // The matrix falls apart where a number beside the diagonal is lost in rounding.
      int64_t high = low;
      const auto lost = [&](int64_t i) {
        constexpr double kRounding = std::numeric_limits<double>::epsilon();
        return std::abs(e[i]) <= kRounding * (std::abs(d[i]) + std::abs(d[i + 1])) + kVanishing;
      };
      while (high + 1 < n && !lost(high)) {
        ++high;
      }
      if (high == low) break;
      if (iteration == kMostIterations) throw std::runtime_error("an eigenvalue was not found");
      // Wilkinson's shift: the eigenvalue of the first two by two numbers that is nearer to the first.
      const double ratio = (d[low + 1] - d[low]) / (2.0 * e[low]);
      const double root = std::sqrt(ratio * ratio + 1.0);
      double g = d[high] - d[low] + e[low] / (ratio + (ratio < 0 ? -root : root));
      double c = 1, s = 1, moved = 0;
      int64_t i = high - 1;
      for (; i >= low; --i) {
        const double f = s * e[i], b = c * e[i];
        const double length = std::sqrt(f * f + g * g);
        e[i + 1] = length;
        if (length == 0) {
          d[i + 1] -= moved;
          e[high] = 0;
          break;
        }
        s = f / length;
        c = g / length;
        g = d[i + 1] - moved;
        const double r = (d[i] - g) * s + 2.0 * c * b;
        moved = s * r;
        d[i + 1] = g + moved;
        g = c * r - b;
        rotate(c, s, vectors->cols, (*vectors)[i], (*vectors)[i + 1]);
      }
      if (i >= low) continue;
      d[low] -= moved;
      e[low] = g;
      e[high] = 0;
    }
  }
}

}  // namespace

Small Small::identity(int64_t size) {
  Small unit(size, size);
  for (int64_t i = 0; i < size; ++i) unit[i][i] = 1.0;
  return unit;
}

void add_product(const Small& a, const Small& b, double factor, Small* to) {
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t k = 0; k < a.cols; ++k) add_row(factor * a[i][k], b[k], b.cols, (*to)[i]);
  }
}

void add_turned_product(const Small& a, const Small& b, double factor, Small* to) {
  for (int64_t k = 0; k < a.rows; ++k) {
    for (int64_t i = 0; i < a.cols; ++i) add_row(factor * a[k][i], b[k], b.cols, (*to)[i]);
  }
}

void symmetric_eigen(Small* matrix, std::vector<double>* values) {
  const int64_t n = matrix->rows;
  double largest = 0;
  for (double number : matrix->numbers) {
    if (!std::isfinite(number)) throw std::invalid_argument("a solver met numbers that are not finite");
    largest = std::max(largest, std::abs(number));
  }
  values->assign(n, 0.0);
  // With the largest number near one, no square overflows, and those that vanish are lost in rounding.
  const int exponent = largest > 0 ? std::ilogb(largest) : 0;
  for (double& number : matrix->numbers) number = std::ldexp(number, -exponent);
  std::vector<double> beside(n);
  tridiagonal(matrix, values, &beside);
  diagonalise(values, &beside, matrix);
  std::vector<int64_t> order(n);
  for (int64_t i = 0; i < n; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return (*values)[a] < (*values)[b]; });
  const Small vectors = *matrix;
  const std::vector<double> found = *values;
  for (int64_t i = 0; i < n; ++i) {
    (*values)[i] = std::ldexp(found[order[i]], exponent);
    std::copy_n(vectors[order[i]], n, (*matrix)[i]);
  }
}

}  // namespace modfast
