// Dense algebra of small matrices, whose sides are numbers of vectors: what a solver does between its passes.
//
// Everything is in float64 and in one order of operations, the same for every instruction set.
#pragma once

#include <cstdint>
#include <vector>

namespace modfast {

// A row-major matrix.
struct Small {
  int64_t rows = 0, cols = 0;
  std::vector<double> numbers;

  Small() = default;
  Small(int64_t rows, int64_t cols) : rows(rows), cols(cols), numbers(rows * cols) {}
  static Small identity(int64_t size);
  double* operator[](int64_t row) { return numbers.data() + row * cols; }
  const double* operator[](int64_t row) const { return numbers.data() + row * cols; }
};

// to += factor a b
void add_product(const Small& a, const Small& b, double factor, Small* to);
// to += factor a^T b
void add_turned_product(const Small& a, const Small& b, double factor, Small* to);

// The eigenvalues of a symmetric matrix, ascending, in `values`; row i of the matrix becomes the eigenvector
// of value i. Throws std::invalid_argument if a number is not finite.
void symmetric_eigen(Small* matrix, std::vector<double>* values);

}  // namespace modfast
