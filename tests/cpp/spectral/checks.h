// What the tests of the spectral family share: random numbers and checks.
#pragma once

#include "common/half.h"
#include "common/numbers.h"
#include "common/parallel.h"
#include "spectral/spectral.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

namespace modfast {

inline void in_turn(int64_t count, int64_t grain, LoopBody body, void* context) {
  for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(begin + grain, count), context);
}

inline std::mt19937 random_numbers(0);
inline int passed = 0;

inline int64_t draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_numbers);
}
inline double normal() { return std::normal_distribution<double>()(random_numbers); }

inline void check(bool holds, const char* what, double found, double expected) {
  if (holds) return;
  std::fprintf(stderr, "%s: found %.17g, expected %.17g\n", what, found, expected);
  std::exit(1);
}
inline void check_near(double found, double expected, double allowed, const char* what) {
  check(std::abs(found - expected) <= allowed, what, found, expected);
}

// Memory that ends with its last number, so that an access beyond it is detected.
template <class T>
std::unique_ptr<T[]> numbers(int64_t count) {
  std::unique_ptr<T[]> made(new T[count]);
  for (int64_t i = 0; i < count; ++i) narrow(static_cast<Compute<T>>(normal()), made[i]);
  return made;
}

// A matrix as a list of entries, for the checks of dense and sparse matrices.
struct Entry {
  int64_t row, col;
  double weight;
};

template <class I, class T>
struct Sparse {
  std::unique_ptr<I[]> starts, indices;
  std::unique_ptr<T[]> values;
  SparseMatrix matrix;

  Sparse(DType dtype, int64_t rows, int64_t cols, const std::vector<Entry>& entries)
      : starts(new I[rows + 1]()), indices(new I[entries.size()]), values(new T[entries.size()]) {
    for (size_t e = 0; e < entries.size(); ++e) {
      indices[e] = static_cast<I>(entries[e].col);
      values[e] = static_cast<T>(entries[e].weight);
      starts[entries[e].row + 1] = static_cast<I>(e + 1);
    }
    for (int64_t i = 0; i < rows; ++i) starts[i + 1] = std::max(starts[i], starts[i + 1]);
    matrix.starts = starts.get();
    matrix.indices = indices.get();
    matrix.wide = sizeof(I) == 8;
    matrix.values = values.get();
    matrix.dtype = dtype;
    matrix.rows = rows;
    matrix.cols = cols;
  }
};

}  // namespace modfast
