#include "common/parallel.h"
#include "spectral/lines.h"
#include "spectral/spectral.h"

#include <atomic>
#include <cstddef>
#include <memory>
#include <stdexcept>

namespace modfast {
namespace {

// The numbers of rows of a sparse matrix that are taken at once, with and without a backward product.
constexpr int64_t kSparseRows = 64;
constexpr int64_t kForwardRows = 1024;
constexpr int64_t kColsOfChunk = 2048;

// A matrix in strips of rows. Each strip has its own sums over columns, which are then added up in order.
// There are enough strips for many threads, but few enough that these sums stay small beside the matrix.
struct Strips {
  int64_t rows, each;

  Strips(int64_t rows, int64_t at_least) : rows(rows), each(std::max(at_least, (rows + 63) / 64)) {}
  int64_t count() const { return (rows + each - 1) / each; }
};

Strips strips_of(const DenseMatrix& matrix, int64_t width) {
  return {matrix.rows, std::max<int64_t>(64, 8 * width)};
}
int64_t entries_of(const SparseMatrix& matrix) {
  return matrix.wide ? static_cast<const int64_t*>(matrix.starts)[matrix.rows]
                     : static_cast<const int32_t*>(matrix.starts)[matrix.rows];
}
Strips strips_of(const SparseMatrix& matrix, int64_t width) {
  // The sums of all strips together hold at most a quarter as many numbers as the matrix has entries, unless
  // there is only one strip.
  const int64_t fit = entries_of(matrix) / std::max<int64_t>(1, 4 * matrix.cols * width);
  // A power of two, which is divisible by common numbers of threads.
  int64_t count = 1;
  while (2 * count <= std::min<int64_t>(fit, 64)) count *= 2;
  return {matrix.rows, std::max(kSparseRows, (matrix.rows + count - 1) / count)};
}

// Calls collect(begin, end, columns) for each strip, with zeros in columns, which holds `numbers` numbers;
// result becomes the sum of all columns.
template <class C, class F>
void collect_columns(const Strips& strips, int64_t numbers, C* result, ParallelFor parallel_for,
                     const F& collect) {
  // Not cleared here: the thread that fills an array clears it.
  const std::unique_ptr<C[]> collected(new C[std::max<int64_t>(0, strips.count() - 1) * numbers]);
  for_each_chunk(parallel_for, strips.rows, strips.each, [&](int64_t begin, int64_t end) {
    const int64_t strip = begin / strips.each;
    C* to = strip == 0 ? result : collected.get() + (strip - 1) * numbers;
    std::fill(to, to + numbers, C(0));
    collect(begin, end, to);
  });
  if (strips.rows == 0) std::fill(result, result + numbers, C(0));
  for_each_chunk(parallel_for, numbers, kColsOfChunk, [&](int64_t begin, int64_t end) {
    for (int64_t strip = 1; strip < strips.count(); ++strip) {
      const C* from = collected.get() + (strip - 1) * numbers;
      for (int64_t j = begin; j < end; ++j) result[j] += from[j];
    }
  });
}

const char* row_of(const DenseMatrix& matrix, int64_t row) {
  return static_cast<const char*>(matrix.data) + row * matrix.row_stride * bytes_of(matrix.dtype);
}

// Set by any thread that finds an index out of range.
struct OutOfRange {
  std::atomic<bool> met{false};
  void require(bool good) {
    if (!good) met = true;
  }
  void raise() const {
    if (met) throw std::out_of_range("indices must be at least 0 and less than the number of columns");
  }
};

template <class I, class T>
bool sparse_sums(const SparseMatrix& matrix, Similarity similarity, int64_t begin, int64_t end,
                 const double* right, const double* left, double* row_sums, double* cols) {
  constexpr int64_t kAhead = 24;
  const I *starts = static_cast<const I*>(matrix.starts), *indices = static_cast<const I*>(matrix.indices);
  const T* values = static_cast<const T*>(matrix.values);
  const int64_t last = starts[end];
  for (int64_t i = begin; i < end; ++i) {
    double sum = 0;
    for (int64_t e = starts[i]; e < starts[i + 1]; ++e) {
      if (e + kAhead < last) {
        if (cols) __builtin_prefetch(address_of(cols, indices[e + kAhead], 1), 1);
        if (right) __builtin_prefetch(address_of(right, indices[e + kAhead], 1));
      }
      if (static_cast<uint64_t>(indices[e]) >= static_cast<uint64_t>(matrix.cols)) return false;
      const double a = similarity_of<double>(values[e], similarity);
      sum += right ? a * right[indices[e]] : a;
      if (cols) cols[indices[e]] += left ? a * left[i] : a;
    }
    if (row_sums) row_sums[i] = sum;
  }
  return true;
}

}  // namespace

void similarity_sums(const DenseMatrix& matrix, Similarity similarity, const double* right,
                     const double* left, double* row_sums, double* col_sums, ParallelFor parallel_for) {
  const auto& lines = spectral_lines_in_use();
  collect_columns(strips_of(matrix, 1), matrix.cols, col_sums, parallel_for,
                  [&](int64_t begin, int64_t end, double* cols) {
                    std::vector<double> row(matrix.cols);
                    for (int64_t i = begin; i < end; ++i) {
                      lines.of_double.similarities(row_of(matrix, i), matrix.dtype, matrix.cols, similarity,
                                                   row.data());
                      row_sums[i] = lines.sums(row.data(), matrix.cols, left ? left[i] : 1.0, right, cols);
                    }
                  });
}

void similarity_sums(const SparseMatrix& matrix, Similarity similarity, const double* right,
                     const double* left, double* row_sums, double* col_sums, ParallelFor parallel_for) {
  const auto sums = matrix.wide ? matrix.dtype == DType::float64 ? sparse_sums<int64_t, double>
                                                                 : sparse_sums<int64_t, float>
                    : matrix.dtype == DType::float64 ? sparse_sums<int32_t, double>
                                                     : sparse_sums<int32_t, float>;
  OutOfRange indices;
  const auto pass = [&](int64_t begin, int64_t end, double* cols) {
    indices.require(sums(matrix, similarity, begin, end, right, left, row_sums, cols));
  };
  if (col_sums) {
    collect_columns(strips_of(matrix, 1), matrix.cols, col_sums, parallel_for, pass);
  } else {
    for_each_chunk(parallel_for, matrix.rows, kForwardRows,
                   [&](int64_t begin, int64_t end) { pass(begin, end, nullptr); });
  }
  indices.raise();
}

namespace {

// The vectors of rows [begin, end) for the backward product: left, or the forward product times row_weights.
template <class C>
const C* to_go_back(const Blocks<C>& blocks, int64_t begin, int64_t end, std::vector<C>* weighted) {
  const int64_t width = blocks.width;
  if (blocks.left) return blocks.left + begin * width;
  weighted->resize((end - begin) * width);
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t k = 0; k < width; ++k) {
      (*weighted)[(i - begin) * width + k] = blocks.row_weights[i] * blocks.forward[i * width + k];
    }
  }
  return weighted->data();
}

}  // namespace

template <class C>
void similarity_product(const DenseMatrix& matrix, Similarity similarity, const Blocks<C>& blocks,
                        ParallelFor parallel_for) {
  const auto& lines = spectral_lines_in_use().of<C>();
  const int64_t cols = matrix.cols, width = blocks.width;
  const auto pass = [&](int64_t begin, int64_t end, C* backward) {
    const int64_t panels = (cols + kPanelCols - 1) / kPanelCols;
    std::vector<C> rows(panels * kRowsAtOnce * kPanelStride), weighted;
    const auto for_each_panel = [&](const auto& f) {
      for (int64_t t = 0; t < panels; ++t) {
        const int64_t first = t * kPanelCols;
        f(rows.data() + t * kRowsAtOnce * kPanelStride, first, std::min(kPanelCols, cols - first));
      }
    };
    for (int64_t i = begin; i < end; i += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, end - i);
      C* forward = blocks.right ? blocks.forward + i * width : nullptr;
      if (forward) std::fill(forward, forward + count * width, C(0));
      // Row by row, in the order of memory.
      for (int64_t r = 0; r < count; ++r) {
        const char* row = row_of(matrix, i + r);
        for_each_panel([&](C* panel, int64_t first, int64_t n) {
          lines.similarities(row + first * bytes_of(matrix.dtype), matrix.dtype, n, similarity,
                             panel + r * kPanelStride);
        });
      }
      if (forward) {
        for_each_panel([&](const C* panel, int64_t first, int64_t n) {
          lines.forward(panel, count, n, blocks.right + first * width, width, forward);
        });
      }
      if (!backward) continue;
      const C* back = to_go_back(blocks, i, i + count, &weighted);
      for_each_panel([&](const C* panel, int64_t first, int64_t n) {
        lines.backward(panel, count, n, back, width, backward + first * width);
      });
    }
  };
  if (blocks.backward) {
    collect_columns(strips_of(matrix, width), cols * width, blocks.backward, parallel_for, pass);
  } else {
    const Strips strips = strips_of(matrix, 1);
    for_each_chunk(parallel_for, matrix.rows, strips.each,
                   [&](int64_t begin, int64_t end) { pass(begin, end, static_cast<C*>(nullptr)); });
  }
}

template <class C>
void similarity_product(const SparseMatrix& matrix, Similarity similarity, const Blocks<C>& blocks,
                        ParallelFor parallel_for) {
  const auto& lines = spectral_lines_in_use().of<C>();
  const int64_t width = blocks.width;
  OutOfRange indices;
  const auto go = [&](int64_t begin, int64_t end) {
    indices.require(lines.sparse_forward(matrix, similarity, begin, end, blocks.right, width,
                                         blocks.forward + begin * width));
  };
  const auto go_and_return = [&](int64_t first, int64_t last, C* backward) {
    std::vector<C> weighted;
    for (int64_t i = first; i < last; i += kSparseRows) {
      const int64_t end = std::min(last, i + kSparseRows);
      if (blocks.right) go(i, end);
      indices.require(lines.sparse_backward(matrix, similarity, i, end, to_go_back(blocks, i, end, &weighted),
                                            width, backward));
    }
  };
  if (blocks.backward) {
    collect_columns(strips_of(matrix, width), matrix.cols * width, blocks.backward, parallel_for,
                    go_and_return);
  } else {
    for_each_chunk(parallel_for, matrix.rows, kForwardRows, go);
  }
  indices.raise();
}

template <class C>
void graph_product(const SparseMatrix& graph, Similarity similarity, const C* right, const C* row_weights,
                   int64_t width, C* out, ParallelFor parallel_for) {
  const auto& lines = spectral_lines_in_use().of<C>();
  OutOfRange indices;
  for_each_chunk(parallel_for, graph.rows, kForwardRows, [&](int64_t begin, int64_t end) {
    C* to = out + begin * width;
    indices.require(lines.sparse_forward(graph, similarity, begin, end, right, width, to));
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t k = 0; k < width; ++k) *to++ *= row_weights[i];
    }
  });
  indices.raise();
}

template void graph_product(const SparseMatrix&, Similarity, const float*, const float*, int64_t, float*,
                            ParallelFor);
template void graph_product(const SparseMatrix&, Similarity, const double*, const double*, int64_t, double*,
                            ParallelFor);
template void similarity_product(const DenseMatrix&, Similarity, const Blocks<float>&, ParallelFor);
template void similarity_product(const DenseMatrix&, Similarity, const Blocks<double>&, ParallelFor);
template void similarity_product(const SparseMatrix&, Similarity, const Blocks<float>&, ParallelFor);
template void similarity_product(const SparseMatrix&, Similarity, const Blocks<double>&, ParallelFor);

void edge_gradient(const DenseMatrix& weight, const double* row_terms, const double* col_terms,
                   const double* row_vectors, const double* col_vectors, int64_t width, void* grad,
                   ParallelFor parallel_for) {
  const auto& lines = spectral_lines_in_use();
  // The transpose of col_vectors, so that they run along the columns as the weights do.
  const int64_t cols = weight.cols;
  std::vector<double> along(width * cols);
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t e = 0; e < width; ++e) along[e * cols + j] = col_vectors[j * width + e];
  }
  for_each_chunk(parallel_for, weight.rows, 16, [&](int64_t begin, int64_t end) {
    constexpr int64_t kPart = 1024;  // columns at once, which fit into the first-level cache
    double weights[kPart], made[kPart];
    for (int64_t j = 0; j < cols; j += kPart) {
      const int64_t n = std::min(kPart, cols - j);
      for (int64_t i = begin; i < end; ++i) {
        lines.of_double.similarities(row_of(weight, i) + j * bytes_of(weight.dtype), weight.dtype, n,
                                     {Affinity::given, 1.0}, weights);
        lines.edge_gradient(weights, row_terms[i], col_terms + j, row_vectors + i * width, along.data() + j,
                            cols, width, n, made);
        const int64_t place = i * cols + j;
        switch (weight.dtype) {
          case DType::float32: std::copy(made, made + n, static_cast<float*>(grad) + place); break;
          case DType::float64: std::copy(made, made + n, static_cast<double*>(grad) + place); break;
          case DType::float16:
            for (int64_t c = 0; c < n; ++c) narrow(float(made[c]), static_cast<Half*>(grad)[place + c]);
            break;
          case DType::bfloat16:
            for (int64_t c = 0; c < n; ++c) narrow(float(made[c]), static_cast<BFloat*>(grad)[place + c]);
            break;
        }
      }
    }
  });
}

}  // namespace modfast
