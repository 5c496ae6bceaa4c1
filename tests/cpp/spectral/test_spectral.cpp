// Tests of the spectral family's kernels alone, against plain loops: products and basis functions; k-means
// and moves are in test_clusters.cpp. `make sanitize` builds and runs it under the address and
// undefined-behaviour sanitizers; see test_energy.cpp.
#include "checks.h"
#include "common/half.h"
#include "common/instruction_set.h"
#include "spectral/spectral.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

namespace {

using namespace modfast;

double exact(double weight, Similarity similarity) {
  const double w = weight * similarity.scale;
  return similarity.affinity == Affinity::abs      ? std::abs(w)
         : similarity.affinity == Affinity::square ? w * w
                                                   : w;
}
Similarity any_similarity() { return {static_cast<Affinity>(draw(0, 2)), draw(0, 1) ? 1.0 : 0.25}; }

// The operands of a product: right, left or both, or right with weights of the rows.
template <class C, class Matrix>
void try_product(const Matrix& matrix, const std::vector<Entry>& entries, int kind, double rounding) {
  const Similarity similarity = any_similarity();
  const int64_t rows = matrix.rows, cols = matrix.cols;
  Blocks<C> blocks;
  blocks.width = 8 * draw(1, 9);
  const int64_t width = blocks.width;
  const auto right = numbers<C>(cols * width), left = numbers<C>(rows * width),
             row_weights = numbers<C>(rows);
  const auto forward = numbers<C>(rows * width), backward = numbers<C>(cols * width);
  if (kind != 1) blocks.right = right.get(), blocks.forward = forward.get();
  if (kind == 1 || kind == 2) blocks.left = left.get();
  if (kind == 3) blocks.row_weights = row_weights.get();
  if (kind != 0) blocks.backward = backward.get();
  similarity_product(matrix, similarity, blocks, in_turn);

  // Sums, and sums of absolute values.
  std::vector<double> sums((rows + cols) * width), sizes((rows + cols) * width);
  for (const Entry& entry : entries) {
    const double a = exact(entry.weight, similarity);
    for (int64_t k = 0; k < width; ++k) {
      const int64_t at_row = entry.row * width + k, at_col = entry.col * width + k,
                    back = rows * width + at_col;
      const double there = a * right[at_col];
      sums[at_row] = sums[at_row] + there;
      sizes[at_row] = sizes[at_row] + std::abs(there);
      // The backward product starts from the rounded forward product.
      double from = left[at_row];
      if (kind == 3) from = double(row_weights[entry.row]) * double(forward[at_row]);
      sums[back] = sums[back] + a * from;
      sizes[back] = sizes[back] + std::abs(a * from);
    }
  }
  for (int64_t i = 0; blocks.forward && i < rows * width; ++i) {
    check_near(forward[i], sums[i], rounding * sizes[i], "forward");
  }
  for (int64_t i = 0; blocks.backward && i < cols * width; ++i) {
    check_near(backward[i], sums[rows * width + i], rounding * sizes[rows * width + i], "backward");
  }
  ++passed;
}

template <class Matrix>
void try_sums(const Matrix& matrix, const std::vector<Entry>& entries, bool probed) {
  const Similarity similarity = any_similarity();
  const auto right = numbers<double>(matrix.cols), left = numbers<double>(matrix.rows);
  const auto row_sums = numbers<double>(matrix.rows), col_sums = numbers<double>(matrix.cols);
  similarity_sums(matrix, similarity, probed ? right.get() : nullptr, probed ? left.get() : nullptr,
                  row_sums.get(), col_sums.get(), in_turn);
  std::vector<double> rows(matrix.rows), cols(matrix.cols);
  for (const Entry& entry : entries) {
    const double a = exact(entry.weight, similarity);
    rows[entry.row] = rows[entry.row] + (probed ? a * right[entry.col] : a);
    cols[entry.col] = cols[entry.col] + (probed ? a * left[entry.row] : a);
  }
  const double allowed = 1e-12 * (1.0 + static_cast<double>(entries.size()));
  for (int64_t i = 0; i < matrix.rows; ++i) check_near(row_sums[i], rows[i], allowed, "sum of a row");
  for (int64_t j = 0; j < matrix.cols; ++j) check_near(col_sums[j], cols[j], allowed, "sum of a column");
  ++passed;
}

template <class Matrix>
void try_matrix(const Matrix& matrix, const std::vector<Entry>& entries) {
  for (int kind = 0; kind < 4; ++kind) {
    try_product<float>(matrix, entries, kind, 2e-5);
    try_product<double>(matrix, entries, kind, 1e-13);
  }
  try_sums(matrix, entries, false);
  try_sums(matrix, entries, true);
}

template <class T>
void try_dense(DType dtype, int64_t rows, int64_t cols, double rounding) {
  const int64_t stride = cols + (draw(0, 1) ? 3 : 0);
  const auto data = numbers<T>(rows == 0 || cols == 0 ? 0 : (rows - 1) * stride + cols);
  DenseMatrix matrix;
  matrix.data = data.get();
  matrix.dtype = dtype;
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.row_stride = stride;
  if (rows * cols > 0) narrow(Compute<T>(0), data[(rows - 1) * stride]);
  std::vector<Entry> entries;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      entries.push_back({i, j, static_cast<double>(widen(data[i * stride + j]))});
    }
  }
  try_matrix(matrix, entries);

  const int64_t width = draw(0, 5);
  const auto row_terms = numbers<double>(rows), col_terms = numbers<double>(cols);
  const auto row_vectors = numbers<double>(rows * width), col_vectors = numbers<double>(cols * width);
  const auto grad = numbers<T>(rows * cols);
  edge_gradient(matrix, row_terms.get(), col_terms.get(), row_vectors.get(), col_vectors.get(), width,
                grad.get(), in_turn);
  for (const Entry& entry : entries) {
    double term = row_terms[entry.row] + col_terms[entry.col];
    for (int64_t e = 0; e < width; ++e) {
      term -= 2.0 * row_vectors[entry.row * width + e] * col_vectors[entry.col * width + e];
    }
    const double expected = entry.weight == 0.0 ? 0.0 : entry.weight < 0.0 ? -term : term;
    const double found = static_cast<double>(widen(grad[entry.row * cols + entry.col]));
    check_near(found, expected, rounding * (1.0 + std::abs(expected)), "edge gradient");
  }
  ++passed;
}

// Rows without entries; entries in no order, some of which repeat.
template <class I, class T>
void try_sparse(DType dtype, int64_t rows, int64_t cols, int64_t degree) {
  std::vector<Entry> entries;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t here = cols == 0 || draw(0, 3) == 0 ? 0 : draw(0, 2 * degree);
    for (int64_t e = 0; e < here; ++e)
      entries.push_back({i, draw(0, cols - 1), static_cast<float>(normal())});
  }
  const Sparse<I, T> sparse(dtype, rows, cols, entries);
  try_matrix(sparse.matrix, entries);

  const std::unique_ptr<I[]> starts(new I[cols + 1]), indices(new I[entries.size()]);
  const std::unique_ptr<T[]> values(new T[entries.size()]);
  const auto transpose = [&] { sparse_transpose(sparse.matrix, starts.get(), indices.get(), values.get()); };
  transpose();
  auto by_column = entries;
  std::stable_sort(by_column.begin(), by_column.end(),
                   [](const Entry& one, const Entry& other) { return one.col < other.col; });
  for (size_t e = 0; e < entries.size(); ++e) {
    const Entry& entry = by_column[e];
    check(static_cast<size_t>(starts[entry.col]) <= e && e < static_cast<size_t>(starts[entry.col + 1]),
          "start of the transpose", double(starts[entry.col]), double(e));
    check(indices[e] == entry.row && values[e] == static_cast<T>(entry.weight), "entry of the transpose",
          double(values[e]), entry.weight);
  }
  check(starts[0] == 0 && static_cast<size_t>(starts[cols]) == entries.size(), "starts of the transpose",
        double(starts[cols]), double(entries.size()));
  if (entries.empty()) return;

  // An index out of range raises an error, without an access outside of the vectors.
  const I bad[] = {-1, static_cast<I>(cols), std::numeric_limits<I>::max(), std::numeric_limits<I>::min()};
  sparse.indices[draw(0, static_cast<int64_t>(entries.size()) - 1)] = bad[draw(0, 3)];
  Blocks<float> blocks;
  blocks.width = 8;
  const auto right = numbers<float>(cols * 8), forward = numbers<float>(rows * 8),
             weights = numbers<float>(rows);
  const auto backward = numbers<float>(cols * 8);
  const auto row_sums = numbers<double>(rows), col_sums = numbers<double>(cols);
  blocks.right = right.get();
  blocks.forward = forward.get();
  blocks.row_weights = weights.get();
  const auto refused = [](const auto& call) {
    try {
      call();
    } catch (const std::out_of_range&) {
      return true;
    }
    return false;
  };
  for (float* back : {static_cast<float*>(nullptr), backward.get()}) {
    blocks.backward = back;
    check(refused([&] { similarity_product(sparse.matrix, {}, blocks, in_turn); }), "a bad index", 0, 1);
  }
  check(refused([&] {
          similarity_sums(sparse.matrix, {}, nullptr, nullptr, row_sums.get(), col_sums.get(), in_turn);
        }),
        "a bad index of sums", 0, 1);
  check(refused(transpose), "a bad index of the transpose", 0, 1);
}

template <class C>
void try_basis(int64_t length, double rounding) {
  Basis<C> basis;
  basis.length = length;
  std::vector<std::unique_ptr<C[]>> kept;
  for (int64_t b = draw(1, 4); b > 0; --b) {
    basis.widths.push_back(8 * draw(1, 5));
    kept.push_back(numbers<C>(length * basis.widths.back()));
    basis.blocks.push_back(kept.back().get());
  }
  const int64_t all = basis.width(), width = 8 * draw(1, 6);
  const auto vector_of = [&](int64_t i, int64_t v) {
    size_t b = 0;
    for (; v >= basis.widths[b]; ++b) v -= basis.widths[b];
    return static_cast<double>(basis.blocks[b][i * basis.widths[b] + v]);
  };
  const auto block = numbers<C>(length * width), weights = numbers<C>(length);
  const bool weighted = draw(0, 1);
  const auto products = numbers<double>(all * width);
  basis_inner(basis, block.get(), weighted ? weights.get() : nullptr, width, products.get(), in_turn);
  for (int64_t v = 0; v < all; ++v) {
    for (int64_t k = 0; k < width; ++k) {
      double sum = 0.0, size = 0.0;
      for (int64_t i = 0; i < length; ++i) {
        const double term = vector_of(i, v) * block[i * width + k] * (weighted ? double(weights[i]) : 1.0);
        sum += term;
        size += std::abs(term);
      }
      check_near(products[v * width + k], sum, rounding * size, "inner");
    }
  }

  // The product of basis and factors, and the allowed rounding error.
  const auto product_with = [&](const double* factors, int64_t columns, int64_t i, int64_t k, double* size) {
    double sum = 0.0;
    for (int64_t v = 0; v < all; ++v) {
      const double term = vector_of(i, v) * factors[v * columns + k];
      sum += term;
      *size += std::abs(term);
    }
    return sum;
  };
  int64_t turned = 0;
  for (int64_t b = draw(1, static_cast<int64_t>(basis.widths.size())) - 1; b >= 0; --b)
    turned += basis.widths[b];
  const auto rotation = numbers<double>(all * turned);
  std::vector<double> expected(length * turned), allowed(length * turned), others;
  for (int64_t i = 0; i < length; ++i) {
    for (int64_t k = 0; k < turned; ++k) {
      expected[i * turned + k] = product_with(rotation.get(), turned, i, k, &allowed[i * turned + k]);
    }
    for (int64_t v = turned; v < all; ++v) others.push_back(vector_of(i, v));
  }
  basis_rotate(basis, rotation.get(), turned, in_turn);
  for (int64_t i = 0; i < length; ++i) {
    for (int64_t k = 0; k < turned; ++k) {
      const int64_t at = i * turned + k;
      check_near(vector_of(i, k), expected[at], rounding * allowed[at], "rotate");
    }
    for (int64_t v = turned; v < all; ++v) {
      check_near(vector_of(i, v), others[i * (all - turned) + v - turned], 0.0, "what is not rotated");
    }
  }
  ++passed;
}

}  // namespace

// With any argument, prints the instruction sets to run this program with.
int main(int count, char**) {
  if (count > 1) {
    for (const auto level : available_instruction_sets()) std::puts(name_of(level));
    return 0;
  }
  const auto dense = [](int64_t rows, int64_t cols) {
    try_dense<float>(DType::float32, rows, cols, 3e-7);
    try_dense<double>(DType::float64, rows, cols, 1e-14);
    try_dense<Half>(DType::float16, rows, cols, 2e-3);
    try_dense<BFloat>(DType::bfloat16, rows, cols, 1.6e-2);
  };
  const auto sparse = [](int64_t rows, int64_t cols, int64_t degree) {
    try_sparse<int32_t, float>(DType::float32, rows, cols, degree);
    try_sparse<int64_t, float>(DType::float32, rows, cols, degree);
    try_sparse<int32_t, double>(DType::float64, rows, cols, degree);
    try_sparse<int64_t, double>(DType::float64, rows, cols, degree);
  };
  for (int64_t cols = 0; cols <= 17; ++cols) {
    dense(draw(0, 9), cols);
    sparse(draw(0, 9), cols, 3);
  }
  dense(1, 1);
  dense(8, 513);   // a sum over columns and one more
  dense(7, 1030);  // a part of a row
  dense(1200, 5);  // several strips of rows
  sparse(1, 1, 1);
  sparse(150, 9, 200);  // enough entries for several strips
  sparse(1100, 40, 3);

  for (int64_t length : {1, 2, 63, 64, 65, 300}) {
    try_basis<float>(length, 1e-5);
    try_basis<double>(length, 1e-13);
  }
  try_basis<float>(4200, 1e-5);  // several chunks

  std::printf("%s: %d of the spectral family passed, 0 failed\n", name_of(instruction_set_in_use()), passed);
}
