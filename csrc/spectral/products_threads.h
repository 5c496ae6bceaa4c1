// The work of one thread of the spectral family's CUDA kernels; see energy/loss_threads.h. Only
// synchronisation and adding up what the threads return are in products.cu.
//
// A dense product is cut into tiles: a block of threads computes some lines of the result, for some
// neighbouring vectors, from one piece of the sums. The pieces are added up afterwards, in order. In a
// forward product a line is a row and the sums are over columns, the inner dimension; in a backward product
// it is the other way round.
#pragma once

#include "common/half.h"
#include "spectral/spectral.h"

#include <cmath>
#include <cstdint>
#include <type_traits>

namespace modfast {

MODFAST_HD inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
MODFAST_HD inline double fused(double a, double b, double c) { return fma(a, b, c); }

MODFAST_HD constexpr int64_t rounded_up(int64_t number, int64_t to) { return (number + to - 1) / to * to; }
MODFAST_HD constexpr int64_t parts_of(int64_t number, int64_t each) { return (number + each - 1) / each; }

// The length of the pieces of a sum over `count` numbers, a function of sizes alone. All pieces of a product
// together hold at most a sixteenth as many numbers as the matrix; a sum has at most 1024 pieces.
MODFAST_HD inline int64_t piece_length(int64_t count, int64_t width) {
  int64_t length = 16 * width < 128 ? 128 : 16 * width;
  if (length < parts_of(count, 1024)) length = parts_of(count, 1024);
  return rounded_up(length, 32);
}

template <class T>
MODFAST_HD inline const T* weights_at(const DenseMatrix& matrix, int64_t row, int64_t col) {
  return static_cast<const T*>(matrix.data) + row * matrix.row_stride + col;
}

// --- Dense products

constexpr int kTileThreads = 128;
constexpr int kShare = 4;  // a thread computes kShare lines of kShare vectors

// out (pieces, lines, width) = the sums over each piece of the inner numbers
template <class C>
struct Product {
  DenseMatrix matrix;
  Similarity similarity;
  bool back = false;
  const C* vectors = nullptr;  // (all inner numbers, width)
  const C* scales = nullptr;   // one for each row of the vectors, or null
  int64_t width = 0;
  int64_t lines = 0;                   // the number of lines
  int64_t first_line = 0;              // the row or column of the first line of out
  int64_t first_inner = 0, inner = 0;  // the first number and the length of the sums
  int64_t piece = 1;                   // the length of the pieces of the sums
  C* out = nullptr;
};

// The shared memory of a block of threads. The similarities of one inner number lie side by side, one for
// each line. Their stride avoids bank conflicts when threads that read along a row of the matrix write down a
// column.
template <class C, int N>
struct Tile {
  static constexpr int across = N / kShare, down = kTileThreads / across, lines = down * kShare;
  static constexpr int depth = 128 / sizeof(C);
  C similarities[depth][lines + 1];
  alignas(16) C vectors[depth][N];
};

template <class C, int N>
int64_t tiles_of(const Product<C>& p, int64_t parts) {
  return parts_of(p.inner, p.piece) * parts_of(p.lines, Tile<C, N>::lines) * parts;
}

// The part of the product that a block of threads computes; the width has parts, the first at first_vector.
struct TileSpot {
  int64_t piece, line, begin, end, vector;  // line: counted from out's first; begin, end: inner numbers
};
template <class C, int N>
MODFAST_HD inline TileSpot tile_spot(const Product<C>& p, int64_t first_vector, int64_t parts,
                                     int64_t block) {
  const int64_t across = parts_of(p.lines, Tile<C, N>::lines);
  TileSpot spot;
  spot.vector = first_vector + block % parts * N;
  spot.line = block / parts % across * Tile<C, N>::lines;
  spot.piece = block / parts / across;
  spot.begin = p.first_inner + spot.piece * p.piece;
  spot.end = spot.begin + p.piece;
  if (spot.end > p.first_inner + p.inner) spot.end = p.first_inner + p.inner;
  return spot;
}

// Reads the next inner numbers, from `at` on, into the tile, and zeros beyond the matrix. Neighbouring
// threads read neighbouring columns.
template <class T, class C, int N>
MODFAST_HD inline void thread_read_weights(const Product<C>& p, const TileSpot& spot, int64_t at, int thread,
                                           Tile<C, N>* tile) {
  constexpr int depth = Tile<C, N>::depth, lines = Tile<C, N>::lines;
#if defined(__CUDA_ARCH__)
#pragma unroll 8
#endif
  for (int i = thread; i < depth * lines; i += kTileThreads) {
    const int inner = p.back ? i / lines : i % depth, line = p.back ? i % lines : i / depth;
    const bool there = at + inner < spot.end && spot.line + line < p.lines;
    const int64_t of_line = p.first_line + spot.line + line;
    tile->similarities[inner][line] =
        there ? similarity_of<C>(p.back ? *weights_at<T>(p.matrix, at + inner, of_line)
                                        : *weights_at<T>(p.matrix, of_line, at + inner),
                                 p.similarity)
              : C(0);
  }
}

template <class C, int N>
MODFAST_HD inline void thread_read(const Product<C>& p, const TileSpot& spot, int64_t at, int thread,
                                   Tile<C, N>* tile) {
  switch (p.matrix.dtype) {
    case DType::float32: thread_read_weights<float>(p, spot, at, thread, tile); break;
    case DType::float64: thread_read_weights<double>(p, spot, at, thread, tile); break;
    case DType::float16: thread_read_weights<Half>(p, spot, at, thread, tile); break;
    case DType::bfloat16: thread_read_weights<BFloat>(p, spot, at, thread, tile); break;
  }
  for (int i = thread; i < Tile<C, N>::depth * N; i += kTileThreads) {
    const int64_t row = at + i / N;
    C number = 0;
    if (row < spot.end) {
      number = p.vectors[row * p.width + spot.vector + i % N];
      if (p.scales) number *= p.scales[row];
    }
    tile->vectors[i / N][i % N] = number;
  }
}

// A thread's lines are apart, so that neighbouring threads read neighbouring numbers.
template <class C, int N>
MODFAST_HD inline void thread_multiply(const Tile<C, N>& tile, int thread, C (&sums)[kShare][kShare]) {
  const int line = thread / Tile<C, N>::across, vector = thread % Tile<C, N>::across * kShare;
  for (int inner = 0; inner < Tile<C, N>::depth; ++inner) {
    C vectors[kShare];
    for (int v = 0; v < kShare; ++v) vectors[v] = tile.vectors[inner][vector + v];
    for (int l = 0; l < kShare; ++l) {
      const C similarity = tile.similarities[inner][line + l * Tile<C, N>::down];
      for (int v = 0; v < kShare; ++v) sums[l][v] = fused(similarity, vectors[v], sums[l][v]);
    }
  }
}

template <class C, int N>
MODFAST_HD inline void thread_write(const Product<C>& p, const TileSpot& spot, int thread,
                                    const C (&sums)[kShare][kShare]) {
  for (int l = 0; l < kShare; ++l) {
    const int64_t line = spot.line + thread / Tile<C, N>::across + l * Tile<C, N>::down;
    if (line >= p.lines) return;
    C* to =
        p.out + (spot.piece * p.lines + line) * p.width + spot.vector + thread % Tile<C, N>::across * kShare;
    for (int v = 0; v < kShare; ++v) to[v] = sums[l][v];
  }
}

// --- Adding up pieces: kAdders threads share the pieces of a number.

constexpr int kAdders = 8;

template <class C>
MODFAST_HD inline double thread_add_up(const C* pieces, int64_t count, int64_t numbers, int64_t number,
                                       int adder) {
  double sum = 0.0;
  for (int64_t piece = adder; piece < count; piece += kAdders) sum += pieces[piece * numbers + number];
  return sum;
}

// --- Sums of a dense matrix: a warp goes along rows, and each of its threads sums some columns.

constexpr int kWarp = 32, kWarps = 8, kColsOfThread = 8, kColsOfSums = kWarp * kColsOfThread;

// Returns the thread's share of the row's sum; adds to the sums of its columns lane, lane + kWarp, and so on.
template <class T>
MODFAST_HD inline double thread_row_sum(const DenseMatrix& m, Similarity similarity, int64_t row,
                                        int64_t first_col, int lane, double* cols) {
  double sum = 0.0;
  for (int i = 0; i < kColsOfThread; ++i) {
    const int64_t col = first_col + lane + i * kWarp;
    if (col >= m.cols) break;
    const double a = similarity_of<double>(*weights_at<T>(m, row, col), similarity);
    sum += a;
    cols[i] += a;
  }
  return sum;
}

MODFAST_HD inline double thread_row_sum(const DenseMatrix& m, Similarity similarity, int64_t row,
                                        int64_t first_col, int lane, double* cols) {
  switch (m.dtype) {
    case DType::float32: return thread_row_sum<float>(m, similarity, row, first_col, lane, cols);
    case DType::float64: return thread_row_sum<double>(m, similarity, row, first_col, lane, cols);
    case DType::float16: return thread_row_sum<Half>(m, similarity, row, first_col, lane, cols);
    case DType::bfloat16: return thread_row_sum<BFloat>(m, similarity, row, first_col, lane, cols);
  }
  return 0.0;
}

// --- Sparse matrices: one warp for each row. Starts and indices on the device are not checked beforehand. A
// row or an entry that is out of range counts as empty, so no access is outside the matrix and the vectors.

struct Rows {
  SparseMatrix matrix;
  int64_t entries = 0;
};

struct Entries {
  int64_t begin, end;
};
template <class I>
MODFAST_HD inline Entries entries_of(const Rows& rows, int64_t row) {
  const I* starts = static_cast<const I*>(rows.matrix.starts);
  const int64_t begin = starts[row], end = starts[row + 1];
  if (begin < 0 || end > rows.entries || begin > end) return {0, 0};
  return {begin, end};
}

// The column of an entry; negative if it is out of range.
template <class I>
MODFAST_HD inline int64_t column_of(const Rows& rows, int64_t entry) {
  const int64_t col = static_cast<const I*>(rows.matrix.indices)[entry];
  return col < rows.matrix.cols ? col : -1;
}

// A group of eight threads takes the vectors of an entry; the groups of a warp share the row's entries. sums:
// the thread's sums for the vectors lane % 8, lane % 8 + 8, and so on.
constexpr int kGroupThreads = 8, kGroups = kWarp / kGroupThreads;

template <class I, class T, class C, int N>
MODFAST_HD inline void thread_sparse_sums(const Rows& rows, Similarity similarity, const C* vectors,
                                          const C* scales, int64_t width, int64_t row, int64_t first_vector,
                                          int lane, C (&sums)[N / kGroupThreads]) {
  const T* values = static_cast<const T*>(rows.matrix.values);
  const Entries entries = entries_of<I>(rows, row);
#if defined(__CUDA_ARCH__)
#pragma unroll 4
#endif
  for (int64_t e = entries.begin + lane / kGroupThreads; e < entries.end; e += kGroups) {
    const int64_t col = column_of<I>(rows, e);
    if (col < 0) continue;
    C a = similarity_of<C>(values[e], similarity);
    if (scales) a *= scales[col];
    const C* from = vectors + col * width + first_vector + lane % kGroupThreads;
    for (int v = 0; v < N / kGroupThreads; ++v) sums[v] = fused(a, from[v * kGroupThreads], sums[v]);
  }
}

// The thread's share of the sum of a row of similarities, each times the probe of its column.
template <class I, class T>
MODFAST_HD inline double thread_sparse_row_sum(const Rows& rows, Similarity similarity, const double* probes,
                                               int64_t row, int lane) {
  const T* values = static_cast<const T*>(rows.matrix.values);
  const Entries entries = entries_of<I>(rows, row);
  double sum = 0.0;
  for (int64_t e = entries.begin + lane; e < entries.end; e += kWarp) {
    const int64_t col = column_of<I>(rows, e);
    if (col < 0) continue;
    const double a = similarity_of<double>(values[e], similarity);
    sum += probes ? a * probes[col] : a;
  }
  return sum;
}

// The transpose, from its entries' columns in the matrix, sorted, and their positions in the matrix (order).
template <class I>
MODFAST_HD inline int64_t thread_turned_start(const I* columns, int64_t entries, int64_t col) {
  int64_t low = 0, high = entries;  // searches the first entry of this column or a later one
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (columns[middle] < col) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class I, class T>
MODFAST_HD inline void thread_turn_entry(const Rows& rows, const int64_t* order, int64_t entry,
                                         I* turned_indices, T* turned_values) {
  const I* starts = static_cast<const I*>(rows.matrix.starts);
  const int64_t from = order[entry];
  int64_t low = 0, high = rows.matrix.rows;  // searches the last row that begins at or before the entry
  while (low + 1 < high) {
    const int64_t middle = low + (high - low) / 2;
    if (starts[middle] <= from) {
      low = middle;
    } else {
      high = middle;
    }
  }
  turned_indices[entry] = static_cast<I>(low);
  turned_values[entry] = static_cast<const T*>(rows.matrix.values)[from];
}

// --- The derivative of eigenvalues

constexpr int kEdgeThreads = 256, kEdgeRows = 8;

struct EdgeGradient {
  DenseMatrix weight;
  const double *row_terms, *col_terms, *row_vectors, *col_vectors;
  int64_t width;
  void* grad;  // contiguous
};

// Computes one column of a few rows, with the same rounding as the CPU.
template <class T>
MODFAST_HD inline void thread_edge_gradient(const EdgeGradient& g, int64_t block, int thread) {
  const int64_t tiles = parts_of(g.weight.cols, kEdgeThreads), first = block / tiles * kEdgeRows;
  const int64_t col = block % tiles * kEdgeThreads + thread;
  if (col >= g.weight.cols) return;
  const int rows = static_cast<int>(g.weight.rows - first < kEdgeRows ? g.weight.rows - first : kEdgeRows);
  double made[kEdgeRows];
  for (int r = 0; r < kEdgeRows; ++r) made[r] = r < rows ? g.row_terms[first + r] + g.col_terms[col] : 0.0;
  for (int64_t e = 0; e < g.width; ++e) {
    const double number = g.col_vectors[col * g.width + e];
    for (int r = 0; r < kEdgeRows; ++r) {
      if (r < rows) made[r] += -2.0 * g.row_vectors[(first + r) * g.width + e] * number;
    }
  }
  for (int r = 0; r < kEdgeRows; ++r) {
    if (r >= rows) return;
    const auto w = widen(*weights_at<T>(g.weight, first + r, col));
    narrow(static_cast<Compute<T>>(w == 0  ? 0.0
                                   : w < 0 ? -made[r]
                                           : made[r]),
           static_cast<T*>(g.grad)[(first + r) * g.weight.cols + col]);
  }
}

MODFAST_HD inline void thread_edge_gradient(const EdgeGradient& g, int64_t block, int thread) {
  switch (g.weight.dtype) {
    case DType::float32: return thread_edge_gradient<float>(g, block, thread);
    case DType::float64: return thread_edge_gradient<double>(g, block, thread);
    case DType::float16: return thread_edge_gradient<Half>(g, block, thread);
    case DType::bfloat16: return thread_edge_gradient<BFloat>(g, block, thread);
  }
}

}  // namespace modfast
