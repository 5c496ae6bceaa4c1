#include "spectral/spectral.h"

#include <algorithm>
#include <stdexcept>

namespace modfast {
namespace {

// A counting sort by column: it keeps the order of entries of the same column.
template <class I, class T>
void transpose(const SparseMatrix& matrix, I* starts, I* indices, T* values) {
  const I *from = static_cast<const I*>(matrix.starts), *columns = static_cast<const I*>(matrix.indices);
  const T* given = static_cast<const T*>(matrix.values);
  std::fill(starts, starts + matrix.cols + 1, I(0));
  for (int64_t e = 0; e < from[matrix.rows]; ++e) {
    if (static_cast<uint64_t>(columns[e]) >= static_cast<uint64_t>(matrix.cols)) {
      throw std::out_of_range("indices must be at least 0 and less than the number of columns");
    }
    ++starts[columns[e] + 1];
  }
  for (int64_t j = 0; j < matrix.cols; ++j) starts[j + 1] += starts[j];
  std::vector<I> next(starts, starts + matrix.cols);
  for (int64_t i = 0; i < matrix.rows; ++i) {
    for (int64_t e = from[i]; e < from[i + 1]; ++e) {
      const I place = next[columns[e]]++;
      indices[place] = static_cast<I>(i);
      values[place] = given[e];
    }
  }
}

}  // namespace

void sparse_transpose(const SparseMatrix& matrix, void* starts, void* indices, void* values) {
  const auto run = [&](auto index, auto value) {
    using I = decltype(index);
    using T = decltype(value);
    transpose(matrix, static_cast<I*>(starts), static_cast<I*>(indices), static_cast<T*>(values));
  };
  if (matrix.wide) {
    matrix.dtype == DType::float64 ? run(int64_t{}, double{}) : run(int64_t{}, float{});
  } else {
    matrix.dtype == DType::float64 ? run(int32_t{}, double{}) : run(int32_t{}, float{});
  }
}

}  // namespace modfast
