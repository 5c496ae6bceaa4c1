// Products with matrices of similarities on a GPU. products_threads.h holds the work of a thread.
//
// The sizes alone determine the order of every sum: there are no atomics, and the bits are always the same.
#include "spectral/cuda.h"
#include "spectral/kernel_parts.h"

#include <algorithm>

namespace modfast {
namespace {

constexpr int kThreadsOfBlock = kWarp * kWarps;

template <class C, int N>
__global__ void __launch_bounds__(kTileThreads)
    product_tiles(const __grid_constant__ Product<C> p, int64_t first_vector, int64_t parts) {
  __shared__ Tile<C, N> tile;
  const TileSpot spot = tile_spot<C, N>(p, first_vector, parts, blockIdx.x);
  C sums[kShare][kShare] = {};
  for (int64_t at = spot.begin; at < spot.end; at += Tile<C, N>::depth) {
    thread_read(p, spot, at, threadIdx.x, &tile);
    __syncthreads();
    thread_multiply(tile, threadIdx.x, sums);
    __syncthreads();
  }
  thread_write<C, N>(p, spot, threadIdx.x, sums);
}

template <class C>
void launch_product(const Product<C>& p, cudaStream_t stream) {
  for_parts(p.width, [&](auto vectors, int64_t first_vector, int64_t parts) {
    constexpr int N = decltype(vectors)::value;
    const int64_t blocks = tiles_of<C, N>(p, parts);
    if (blocks > 0) launch(product_tiles<C, N>, blocks, kTileThreads, 0, stream, p, first_vector, parts);
  });
}

// One block of threads for each tile of columns and piece of the rows.
__global__ void __launch_bounds__(kThreadsOfBlock)
    dense_sums(const __grid_constant__ DenseMatrix m, Similarity similarity, int64_t piece,
               double* row_pieces, double* col_pieces) {
  __shared__ double of_warp[kWarps][kColsOfSums];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t tiles = parts_of(m.cols, kColsOfSums), tile = blockIdx.x % tiles, strip = blockIdx.x / tiles;
  const int64_t begin = strip * piece, end = begin + piece < m.rows ? begin + piece : m.rows;
  double cols[kColsOfThread] = {};
  for (int64_t row = begin + warp; row < end; row += kWarps) {
    const double sum = warp_sum(thread_row_sum(m, similarity, row, tile * kColsOfSums, lane, cols));
    if (lane == 0) row_pieces[tile * m.rows + row] = sum;
  }
  for (int i = 0; i < kColsOfThread; ++i) of_warp[warp][lane + i * kWarp] = cols[i];
  __syncthreads();
  const int64_t col = tile * kColsOfSums + threadIdx.x;
  if (col >= m.cols) return;
  double sum = 0.0;
  for (int i = 0; i < kWarps; ++i) sum += of_warp[i][threadIdx.x];
  col_pieces[strip * m.cols + col] = sum;
}
static_assert(kColsOfSums == kThreadsOfBlock, "each thread adds up one column");

// Blocks to a multiprocessor, at least: what lets it run most warps without spilled registers.
template <class C, int N>
constexpr int kSparseBlocks = sizeof(C) == 8 && N > 8 ? 6 : 7;

// One warp for each row.
template <class C, int N>
__global__ void __launch_bounds__(kThreadsOfBlock, kSparseBlocks<C, N>)
    sparse_product(const __grid_constant__ Rows rows, Similarity similarity, const C* vectors,
                   const C* scales, const C* row_weights, int64_t width, int64_t first_vector, int64_t parts,
                   C* out) {
  const int64_t item = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t row = item / parts, vector = first_vector + item % parts * N;
  const int lane = threadIdx.x % kWarp;
  if (row >= rows.matrix.rows) return;
  C sums[N / kGroupThreads] = {};
  with_types(rows.matrix, [&](auto index, auto value) {
    thread_sparse_sums<decltype(index), decltype(value), C, N>(rows, similarity, vectors, scales, width, row,
                                                               vector, lane, sums);
  });
  for (int v = 0; v < N / kGroupThreads; ++v) {
    C sum = warp_sum(sums[v], kGroupThreads);
    if (row_weights) sum *= row_weights[row];
    if (lane < kGroupThreads) out[row * width + vector + lane + v * kGroupThreads] = sum;
  }
}

__global__ void __launch_bounds__(kThreadsOfBlock)
    sparse_sums(const __grid_constant__ Rows rows, Similarity similarity, const double* probes,
                double* row_sums) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (row >= rows.matrix.rows) return;
  double sum = 0.0;
  with_types(rows.matrix, [&](auto index, auto value) {
    sum = thread_sparse_row_sum<decltype(index), decltype(value)>(rows, similarity, probes, row, lane);
  });
  sum = warp_sum(sum);
  if (lane == 0) row_sums[row] = sum;
}

// One thread for each entry and for each start.
__global__ void __launch_bounds__(kThreadsOfBlock)
    turn(const __grid_constant__ Rows rows, const void* columns, const int64_t* order, void* starts,
         void* indices, void* values) {
  const int64_t i = int64_t(blockIdx.x) * kThreadsOfBlock + threadIdx.x;
  with_types(rows.matrix, [&](auto index, auto value) {
    using I = decltype(index);
    using T = decltype(value);
    if (i <= rows.matrix.cols) {
      const int64_t start = thread_turned_start(static_cast<const I*>(columns), rows.entries, i);
      static_cast<I*>(starts)[i] = static_cast<I>(start);
    }
    if (i < rows.entries) {
      thread_turn_entry(rows, order, i, static_cast<I*>(indices), static_cast<T*>(values));
    }
  });
}

__global__ void __launch_bounds__(kEdgeThreads) edge_gradients(const __grid_constant__ EdgeGradient g) {
  thread_edge_gradient(g, blockIdx.x, threadIdx.x);
}

}  // namespace

template <class C>
const char* cuda_product(const ProductPlan<C>& plan, C* forward_pieces, C* backward_pieces,
                         void* given_stream) {
  const auto stream = static_cast<cudaStream_t>(given_stream);
  plan.run(
      forward_pieces, backward_pieces,  //
      [&](const Product<C>& p) { launch_product(p, stream); },
      [&](const C* pieces, int64_t count, int64_t numbers, C* out) {
        launch_add_up(pieces, count, numbers, out, stream);
      });
  return outcome();
}

const char* cuda_sums(const DenseMatrix& m, Similarity similarity, double* row_pieces, double* col_pieces,
                      double* row_sums, double* col_sums, void* given_stream) {
  const auto stream = static_cast<cudaStream_t>(given_stream);
  const int64_t piece = piece_length(m.rows, 1);
  const int64_t tiles = parts_of(m.cols, kColsOfSums), strips = parts_of(m.rows, piece);
  if (tiles * strips > 0) {
    launch(dense_sums, tiles * strips, kThreadsOfBlock, 0, stream, m, similarity, piece, row_pieces,
           col_pieces);
  }
  launch_add_up(row_pieces, tiles, m.rows, row_sums, stream);
  launch_add_up(col_pieces, strips, m.cols, col_sums, stream);
  return outcome();
}

template <class C>
const char* cuda_product(const Rows& rows, Similarity similarity, const C* vectors, const C* scales,
                         const C* row_weights, int64_t width, C* out, void* given_stream) {
  const auto stream = static_cast<cudaStream_t>(given_stream);
  for_parts(width, [&](auto part, int64_t first_vector, int64_t parts) {
    constexpr int N = decltype(part)::value;
    const int64_t blocks = parts_of(rows.matrix.rows * parts, kWarps);
    if (blocks == 0) return;
    launch(sparse_product<C, N>, blocks, kThreadsOfBlock, 0, stream, rows, similarity, vectors, scales,
           row_weights, width, first_vector, parts, out);
  });
  return outcome();
}

const char* cuda_sums(const Rows& rows, Similarity similarity, const double* probes, double* row_sums,
                      void* stream) {
  const int64_t blocks = parts_of(rows.matrix.rows, kWarps);
  if (blocks > 0) {
    launch(sparse_sums, blocks, kThreadsOfBlock, 0, static_cast<cudaStream_t>(stream), rows, similarity,
           probes, row_sums);
  }
  return outcome();
}

const char* cuda_turn(const Rows& rows, const void* columns, const int64_t* order, void* starts,
                      void* indices, void* values, void* stream) {
  const int64_t blocks = parts_of(std::max(rows.entries, rows.matrix.cols + 1), kThreadsOfBlock);
  launch(turn, blocks, kThreadsOfBlock, 0, static_cast<cudaStream_t>(stream), rows, columns, order, starts,
         indices, values);
  return outcome();
}

const char* cuda_edge_gradient(const EdgeGradient& g, void* stream) {
  const int64_t blocks = parts_of(g.weight.cols, kEdgeThreads) * parts_of(g.weight.rows, kEdgeRows);
  if (blocks > 0) launch(edge_gradients, blocks, kEdgeThreads, 0, static_cast<cudaStream_t>(stream), g);
  return outcome();
}

#define MODFAST_INSTANCES(C)                                                                            \
  template const char* cuda_product(const ProductPlan<C>&, C*, C*, void*);                              \
  template const char* cuda_product(const Rows&, Similarity, const C*, const C*, const C*, int64_t, C*, \
                                    void*);
MODFAST_INSTANCES(float)
MODFAST_INSTANCES(double)
#undef MODFAST_INSTANCES

}  // namespace modfast
