// Tests of the work of the spectral family's CUDA kernels' threads, called on the CPU for every thread of
// every block in turn, as the kernels call them, against plain loops. Only synchronisation and the sums over
// a warp are not tested here. `make sanitize` builds and runs it.
#include "spectral/plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

namespace {

using namespace modfast;

std::mt19937 random_numbers(0);

int64_t draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_numbers);
}
double normal() { return std::normal_distribution<double>()(random_numbers); }

void check(bool holds, const char* what, double found, double expected) {
  if (holds) return;
  std::fprintf(stderr, "%s: found %.17g, expected %.17g\n", what, found, expected);
  std::exit(1);
}

// Numbers of size one, in memory that ends with the last of them, so that an access beyond it is detected.
template <class T>
std::unique_ptr<T[]> numbers(int64_t count) {
  std::unique_ptr<T[]> made(new T[count]);
  for (int64_t i = 0; i < count; ++i) narrow(static_cast<Compute<T>>(normal()), made[i]);
  return made;
}

double exact(double weight, Similarity similarity) {
  const double w = weight * similarity.scale;
  return similarity.affinity == Affinity::abs      ? std::abs(w)
         : similarity.affinity == Affinity::square ? w * w
                                                   : w;
}

Similarity any_similarity() { return {static_cast<Affinity>(draw(0, 2)), draw(0, 1) ? 1.0 : 0.25}; }

template <class T>
struct Dense {
  std::unique_ptr<T[]> data;
  DenseMatrix matrix;
  std::vector<double> values;

  Dense(DType dtype, int64_t rows, int64_t cols) {
    const int64_t stride = cols + (draw(0, 1) ? 3 : 0);
    data = numbers<T>(rows == 0 || cols == 0 ? 0 : (rows - 1) * stride + cols);
    matrix.data = data.get();
    matrix.dtype = dtype;
    matrix.rows = rows;
    matrix.cols = cols;
    matrix.row_stride = stride;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        values.push_back(static_cast<double>(widen(*weights_at<T>(matrix, i, j))));
      }
    }
  }
  double value(int64_t i, int64_t j) const { return values[i * matrix.cols + j]; }
};

template <class C, int N>
void multiply_tiles(const Product<C>& p, int64_t first_vector, int64_t parts) {
  using Sums = C[kShare][kShare];
  for (int64_t block = 0; block < tiles_of<C, N>(p, parts); ++block) {
    const auto tile = std::make_unique<Tile<C, N>>();
    const std::unique_ptr<Sums[]> sums(new Sums[kTileThreads]());
    const TileSpot spot = tile_spot<C, N>(p, first_vector, parts, block);
    for (int64_t at = spot.begin; at < spot.end; at += Tile<C, N>::depth) {
      for (int thread = 0; thread < kTileThreads; ++thread) thread_read(p, spot, at, thread, tile.get());
      for (int thread = 0; thread < kTileThreads; ++thread) thread_multiply(*tile, thread, sums[thread]);
    }
    for (int thread = 0; thread < kTileThreads; ++thread) thread_write<C, N>(p, spot, thread, sums[thread]);
  }
}

int striped = 0;  // products that took more than one stripe

// The operands of a product: right, left or both, or right with weights of the rows.
template <class C, class T>
void try_product(const Dense<T>& dense, int kind, double rounding) {
  const DenseMatrix& m = dense.matrix;
  const Similarity similarity = any_similarity();
  Blocks<C> blocks;
  blocks.width = 8 * draw(1, 10);
  const auto right = numbers<C>(m.cols * blocks.width), left = numbers<C>(m.rows * blocks.width);
  const auto row_weights = numbers<C>(m.rows);
  const auto forward = numbers<C>(m.rows * blocks.width), backward = numbers<C>(m.cols * blocks.width);
  if (kind != 1) blocks.right = right.get(), blocks.forward = forward.get();
  if (kind == 1 || kind == 2) blocks.left = left.get();
  if (kind == 3) blocks.row_weights = row_weights.get();
  if (kind != 0) blocks.backward = backward.get();

  const ProductPlan<C> plan(m, similarity, blocks, draw(0, 1) ? kStripeBytes : 1);
  striped += plan.stripe < m.rows;
  const PieceRoom room = plan.room();
  const auto forward_pieces = numbers<C>(room.forward), backward_pieces = numbers<C>(room.backward);
  plan.run(
      forward_pieces.get(), backward_pieces.get(),
      [](const Product<C>& p) {
        for_parts(p.width, [&](auto vectors, int64_t first_vector, int64_t parts) {
          multiply_tiles<C, decltype(vectors)::value>(p, first_vector, parts);
        });
      },
      [](const C* pieces, int64_t count, int64_t total, C* out) {
        for (int64_t number = 0; number < total; ++number) {
          double sum = 0.0;
          for (int adder = 0; adder < kAdders; ++adder) {
            sum += thread_add_up(pieces, count, total, number, adder);
          }
          out[number] = static_cast<C>(sum);
        }
      });

  for (int64_t i = 0; blocks.forward && i < m.rows; ++i) {
    for (int64_t k = 0; k < blocks.width; ++k) {
      double sum = 0.0, size = 0.0;
      for (int64_t j = 0; j < m.cols; ++j) {
        const double term = exact(dense.value(i, j), similarity) * right[j * blocks.width + k];
        sum += term;
        size += std::abs(term);
      }
      const double found = forward[i * blocks.width + k];
      check(std::abs(found - sum) <= rounding * size, "forward", found, sum);
    }
  }
  for (int64_t j = 0; blocks.backward && j < m.cols; ++j) {
    for (int64_t k = 0; k < blocks.width; ++k) {
      double sum = 0.0, size = 0.0;
      for (int64_t i = 0; i < m.rows; ++i) {
        const int64_t at = i * blocks.width + k;
        const double back = blocks.left ? double(left[at]) : double(row_weights[i]) * double(forward[at]);
        const double term = exact(dense.value(i, j), similarity) * back;
        sum += term;
        size += std::abs(term);
      }
      const double found = backward[j * blocks.width + k];
      check(std::abs(found - sum) <= rounding * size, "backward", found, sum);
    }
  }
}

template <class T>
void try_sums(const Dense<T>& dense) {
  const DenseMatrix& m = dense.matrix;
  const Similarity similarity = any_similarity();
  std::vector<double> rows(m.rows), cols(m.cols), exact_rows(m.rows), exact_cols(m.cols);
  for (int64_t i = 0; i < m.rows; ++i) {
    for (int64_t j = 0; j < m.cols; ++j) {
      exact_rows[i] += exact(dense.value(i, j), similarity);
      exact_cols[j] += exact(dense.value(i, j), similarity);
    }
  }
  for (int64_t first = 0; first < m.cols; first += kColsOfSums) {
    for (int lane = 0; lane < kWarp; ++lane) {
      double of_thread[kColsOfThread] = {};
      for (int64_t i = 0; i < m.rows; ++i) {
        rows[i] += thread_row_sum(m, similarity, i, first, lane, of_thread);
      }
      for (int i = 0; i < kColsOfThread; ++i) {
        const int64_t col = first + lane + i * kWarp;
        if (col < m.cols) cols[col] = of_thread[i];
      }
    }
  }
  const double allowed = 1e-12 * static_cast<double>(m.rows + m.cols);
  for (int64_t i = 0; i < m.rows; ++i) {
    check(std::abs(rows[i] - exact_rows[i]) <= allowed, "sum of a row", rows[i], exact_rows[i]);
  }
  for (int64_t j = 0; j < m.cols; ++j) {
    check(std::abs(cols[j] - exact_cols[j]) <= allowed, "sum of a column", cols[j], exact_cols[j]);
  }
}

template <class T>
void try_edges(const Dense<T>& dense, double rounding) {
  const int64_t rows = dense.matrix.rows, cols = dense.matrix.cols, width = draw(0, 5);
  const auto row_terms = numbers<double>(rows), col_terms = numbers<double>(cols);
  const auto row_vectors = numbers<double>(rows * width), col_vectors = numbers<double>(cols * width);
  const auto grad = numbers<T>(rows * cols);
  const EdgeGradient g{dense.matrix,      row_terms.get(), col_terms.get(), row_vectors.get(),
                       col_vectors.get(), width,           grad.get()};
  const int64_t blocks = parts_of(cols, kEdgeThreads) * parts_of(rows, kEdgeRows);
  for (int64_t block = 0; block < blocks; ++block) {
    for (int thread = 0; thread < kEdgeThreads; ++thread) thread_edge_gradient(g, block, thread);
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      const double w = dense.value(i, j);
      double term = row_terms[i] + col_terms[j];
      for (int64_t e = 0; e < width; ++e)
        term -= 2.0 * row_vectors[i * width + e] * col_vectors[j * width + e];
      const double expected = w == 0.0 ? 0.0 : w < 0.0 ? -term : term;
      const double found = static_cast<double>(widen(grad[i * cols + j]));
      check(std::abs(found - expected) <= rounding * (1.0 + std::abs(expected)), "edge", found, expected);
    }
  }
}

// A sparse matrix, some of whose starts and indices may be out of range.
template <class I, class T>
struct Sparse {
  std::unique_ptr<I[]> starts, indices;
  std::unique_ptr<T[]> values;
  Rows rows;

  Sparse(DType dtype, int64_t height, int64_t width, int64_t degree) : starts(new I[height + 1]) {
    starts[0] = 0;
    for (int64_t i = 0; i < height; ++i) {
      starts[i + 1] = static_cast<I>(starts[i] + (width > 0 && draw(0, 3) ? draw(0, 2 * degree) : 0));
    }
    rows.entries = starts[height];
    indices.reset(new I[rows.entries]);
    for (int64_t e = 0; e < rows.entries; ++e) indices[e] = static_cast<I>(draw(0, width - 1));
    values = numbers<T>(rows.entries);
    rows.matrix.starts = starts.get();
    rows.matrix.indices = indices.get();
    rows.matrix.values = values.get();
    rows.matrix.wide = sizeof(I) == 8;
    rows.matrix.dtype = dtype;
    rows.matrix.rows = height;
    rows.matrix.cols = width;
  }
};

template <class I, class T, class C, int N>
void multiply_rows(const Rows& rows, Similarity similarity, const C* vectors, const C* scales, int64_t width,
                   int64_t first_vector, int64_t parts, std::vector<double>* out) {
  constexpr int kept = N / kGroupThreads;
  for (int64_t row = 0; row < rows.matrix.rows; ++row) {
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t vector = first_vector + part * N;
      for (int lane = 0; lane < kWarp; ++lane) {
        C sums[kept] = {};
        thread_sparse_sums<I, T, C, N>(rows, similarity, vectors, scales, width, row, vector, lane, sums);
        for (int v = 0; v < kept; ++v) {
          const int64_t place = row * width + vector + lane % kGroupThreads + v * kGroupThreads;
          (*out)[place] = (*out)[place] + static_cast<double>(sums[v]);
        }
      }
    }
  }
}

// Tests a valid matrix; order and columns are those of its transpose's entries.
template <class I, class T, class C>
std::vector<double> multiply_sparse(const Rows& rows, Similarity similarity, const C* vectors,
                                    const C* scales, int64_t width) {
  std::vector<double> out(rows.matrix.rows * width);
  for_parts(width, [&](auto part, int64_t first_vector, int64_t parts) {
    constexpr int N = decltype(part)::value;
    multiply_rows<I, T, C, N>(rows, similarity, vectors, scales, width, first_vector, parts, &out);
  });
  return out;
}

template <class I, class T, class C>
void try_sparse(DType dtype, double rounding) {
  const int64_t height = draw(0, 40), width = draw(0, 40), vectors = 8 * draw(1, 9);
  Sparse<I, T> sparse(dtype, height, width, draw(0, 12));
  Rows& rows = sparse.rows;
  const int64_t entries = rows.entries;
  const Similarity similarity = any_similarity();
  const auto right = numbers<C>(width * vectors), left = numbers<C>(height * vectors),
             scales = numbers<C>(height);
  const auto right_probe = numbers<double>(width), left_probe = numbers<double>(height);

  std::vector<int64_t> row_of(entries), order(entries);
  for (int64_t i = 0; i < height; ++i) {
    for (int64_t e = sparse.starts[i]; e < sparse.starts[i + 1]; ++e) row_of[e] = i;
  }
  for (int64_t e = 0; e < entries; ++e) order[e] = e;
  const auto before = [&](int64_t a, int64_t b) { return sparse.indices[a] < sparse.indices[b]; };
  std::stable_sort(order.begin(), order.end(), before);
  std::vector<I> columns(entries);
  for (int64_t e = 0; e < entries; ++e) columns[e] = sparse.indices[order[e]];

  std::unique_ptr<I[]> starts(new I[width + 1]), indices(new I[entries]);
  std::unique_ptr<T[]> values(new T[entries]);
  const auto turn = [&] {
    for (int64_t j = 0; j <= width; ++j) {
      starts[j] = static_cast<I>(thread_turned_start(columns.data(), entries, j));
    }
    for (int64_t e = 0; e < entries; ++e) {
      thread_turn_entry(rows, order.data(), e, indices.get(), values.get());
    }
  };
  turn();
  Rows turned = rows;
  turned.matrix = {starts.get(), indices.get(), rows.matrix.wide, values.get(), dtype, width, height};

  std::vector<double> forward(height * vectors), forward_size(height * vectors), backward(width * vectors);
  std::vector<double> backward_size(width * vectors), row_sums(height), col_sums(width);
  for (int64_t e = 0; e < entries; ++e) {
    const int64_t i = row_of[e], j = sparse.indices[e];
    const double a = exact(static_cast<double>(sparse.values[e]), similarity);
    row_sums[i] = row_sums[i] + a * right_probe[j];
    col_sums[j] = col_sums[j] + a * left_probe[i];
    for (int64_t k = 0; k < vectors; ++k) {
      const double there = a * right[j * vectors + k], back = a * scales[i] * left[i * vectors + k];
      forward[i * vectors + k] = forward[i * vectors + k] + there;
      forward_size[i * vectors + k] = forward_size[i * vectors + k] + std::abs(there);
      backward[j * vectors + k] = backward[j * vectors + k] + back;
      backward_size[j * vectors + k] = backward_size[j * vectors + k] + std::abs(back);
    }
  }
  const C* whole = nullptr;
  const auto found = multiply_sparse<I, T, C>(rows, similarity, right.get(), whole, vectors);
  const auto found_back = multiply_sparse<I, T, C>(turned, similarity, left.get(), scales.get(), vectors);
  for (size_t i = 0; i < found.size(); ++i) {
    check(std::abs(found[i] - forward[i]) <= rounding * forward_size[i], "sparse forward", found[i],
          forward[i]);
  }
  for (size_t i = 0; i < found_back.size(); ++i) {
    check(std::abs(found_back[i] - backward[i]) <= rounding * backward_size[i], "sparse backward",
          found_back[i], backward[i]);
  }
  for (int64_t i = 0; i < height; ++i) {
    double sum = 0.0;
    for (int lane = 0; lane < kWarp; ++lane) {
      sum += thread_sparse_row_sum<I, T>(rows, similarity, right_probe.get(), i, lane);
    }
    check(std::abs(sum - row_sums[i]) <= 1e-10, "sparse sum of a row", sum, row_sums[i]);
  }
  for (int64_t j = 0; j < width; ++j) {
    double sum = 0.0;
    for (int lane = 0; lane < kWarp; ++lane) {
      sum += thread_sparse_row_sum<I, T>(turned, similarity, left_probe.get(), j, lane);
    }
    check(std::abs(sum - col_sums[j]) <= 1e-10, "sparse sum of a column", sum, col_sums[j]);
  }

  // Starts and indices out of range: the sanitizer detects invalid accesses.
  if (entries == 0) return;
  const I nonsense[] = {-1, static_cast<I>(width), std::numeric_limits<I>::max(),
                        std::numeric_limits<I>::min()};
  for (int64_t e = 0; e < entries; e += 3) sparse.indices[e] = nonsense[draw(0, 3)];
  multiply_sparse<I, T, C>(rows, similarity, right.get(), whole, vectors);
  std::stable_sort(order.begin(), order.end(), before);
  for (int64_t e = 0; e < entries; ++e) columns[e] = sparse.indices[order[e]];
  for (int64_t i = 0; i <= height; ++i) {
    if (draw(0, 1) || i == 0)
      sparse.starts[i] = draw(0, 1) ? nonsense[draw(0, 3)] : static_cast<I>(draw(-2, 50));
  }
  sparse.starts[0] = nonsense[0];
  turn();
  multiply_sparse<I, T, C>(rows, similarity, right.get(), whole, vectors);
  multiply_sparse<I, T, C>(turned, similarity, left.get(), scales.get(), vectors);
  for (int64_t i = 0; i < height; ++i) {
    for (int lane = 0; lane < kWarp; ++lane) {
      thread_sparse_row_sum<I, T>(rows, similarity, right_probe.get(), i, lane);
    }
  }
}

template <class T>
void try_dense(DType dtype, double rounding) {
  // Sizes around those of a tile, of its depth, of a piece.
  const int64_t edges[] = {0, 1, 2, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 130, 255, 257, 300, 513};
  const int64_t rows = draw(0, 3) ? edges[draw(0, 17)] : draw(1000, 1300);
  const int64_t cols = edges[draw(0, rows > 999 ? 6 : rows > 150 ? 11 : 17)];
  const Dense<T> dense(dtype, rows, cols);
  for (int kind = 0; kind < 4; ++kind) {
    try_product<float>(dense, kind, 1e-5);
    try_product<double>(dense, kind, 1e-14);
  }
  try_sums(dense);
  try_edges(dense, rounding);
}

}  // namespace

int main() {
  constexpr int kTrials = 20;
  for (int trial = 0; trial < kTrials; ++trial) {
    try_dense<float>(DType::float32, 3e-7);
    try_dense<double>(DType::float64, 1e-14);
    try_dense<Half>(DType::float16, 2e-3);
    try_dense<BFloat>(DType::bfloat16, 1.6e-2);
    try_sparse<int32_t, float, float>(DType::float32, 1e-5);
    try_sparse<int64_t, float, double>(DType::float32, 1e-13);
    try_sparse<int32_t, double, float>(DType::float64, 1e-5);
    try_sparse<int64_t, double, double>(DType::float64, 1e-13);
  }
  check(striped > 20, "products in stripes", striped, 21);
  std::printf("spectral threads: %d passed, 0 failed\n", 8 * kTrials);
}
