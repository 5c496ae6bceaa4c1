// Inner products with a basis of vectors, and its rotation, on a GPU; one launch takes all blocks of it.
//
// The sizes alone determine the order of every sum.
#include "spectral/cuda_graph.h"
#include "spectral/kernel_parts.h"

#include <algorithm>
#include <type_traits>

namespace modfast {
namespace {

// A vector of the basis: number i is numbers[i * stride]; null if the basis has no such vector.
template <class C>
struct Vector {
  C* numbers = nullptr;
  int64_t stride = 0;
};
template <class C>
__device__ Vector<C> vector_of(const BasisBlocks<C>& basis, int64_t vector) {
  int64_t begin = 0;
  for (int b = 0; b < basis.count; ++b) {
    if (vector < basis.ends[b]) return {basis.blocks[b] + (vector - begin), basis.ends[b] - begin};
    begin = basis.ends[b];
  }
  return {};
}

// Calls f with the number of vectors of a block that a tile takes: 8, 16 or 32.
template <class F>
auto with_part(int64_t width, const F& f) {
  if (width <= 8) return f(std::integral_constant<int, 8>{});
  if (width <= 16) return f(std::integral_constant<int, 16>{});
  return f(std::integral_constant<int, 32>{});
}

// --- Inner products
//
// A block of threads computes the inner products of 64 vectors of the basis with N vectors of the block, over
// one piece of their length: the basis is read once for each N vectors. Everything is summed in float64, in
// which the products of float32 numbers are exact. If N is small, groups of threads share the piece.

constexpr int kInnerVectors = 64, kInnerDepth = 32;

template <int N>
struct InnerTile {
  static constexpr int across = N / kShare, down = kInnerVectors / kShare;
  static constexpr int groups = kTileThreads / (across * down);
  double basis[kInnerDepth][kInnerVectors];
  double block[kInnerDepth][N];
};

template <class C>
struct Inner {
  BasisBlocks<C> basis;
  const C *block, *weights;
  int64_t width, piece;
  double* pieces;
};

template <class C, int N>
__global__ void __launch_bounds__(kTileThreads) inner_tiles(const __grid_constant__ Inner<C> p) {
  using Tile = InnerTile<N>;
  __shared__ Tile tile;
  const int thread = threadIdx.x;
  const int64_t basis_width = p.basis.width();
  const int64_t parts = parts_of(p.width, N), tiles = parts_of(basis_width, kInnerVectors);
  const int64_t first = blockIdx.x % parts * N, first_vector = blockIdx.x / parts % tiles * kInnerVectors;
  const int64_t piece = blockIdx.x / parts / tiles, begin = piece * p.piece;
  const int64_t end = begin + p.piece < p.basis.length ? begin + p.piece : p.basis.length;
  // A thread always reads the same vector.
  static_assert(kTileThreads % kInnerVectors == 0 && kTileThreads % N == 0, "a thread keeps its vector");
  const Vector<C> vector = vector_of(p.basis, first_vector + thread % kInnerVectors);
  const bool of_block = first + thread % N < p.width;
  const int column = thread % Tile::across * kShare, line = thread / Tile::across % Tile::down;
  const int group = thread / (Tile::across * Tile::down);

  double sums[kShare][kShare] = {};
  for (int64_t at = begin; at < end; at += kInnerDepth) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int d = thread / kInnerVectors; d < kInnerDepth; d += kTileThreads / kInnerVectors) {
      const bool there = vector.numbers && at + d < end;
      tile.basis[d][thread % kInnerVectors] = there ? vector.numbers[(at + d) * vector.stride] : C(0);
    }
    for (int d = thread / N; d < kInnerDepth; d += kTileThreads / N) {
      double number = 0.0;
      if (of_block && at + d < end) {
        number = p.block[(at + d) * p.width + first + thread % N];
        if (p.weights) number *= p.weights[at + d];
      }
      tile.block[d][thread % N] = number;
    }
    __syncthreads();
    for (int d = group; d < kInnerDepth; d += Tile::groups) {
      for (int l = 0; l < kShare; ++l) {
        const double of_basis = tile.basis[d][line + l * Tile::down];
        for (int v = 0; v < kShare; ++v) sums[l][v] = fused(of_basis, tile.block[d][column + v], sums[l][v]);
      }
    }
    __syncthreads();
  }
  double* out = p.pieces + (piece * Tile::groups + group) * basis_width * p.width;
  for (int l = 0; l < kShare; ++l) {
    const int64_t of_basis = first_vector + line + l * Tile::down;
    for (int v = 0; v < kShare; ++v) {
      const int64_t of_block_too = first + column + v;
      if (of_basis < basis_width && of_block_too < p.width)
        out[of_basis * p.width + of_block_too] = sums[l][v];
    }
  }
}

// There are about as many blocks of threads as fill a large GPU a few times: so the pieces hold few numbers.
constexpr int64_t kInnerBlocks = 1024;

template <int N>
int64_t inner_piece(int64_t length, int64_t basis_width, int64_t width) {
  const int64_t tiles = parts_of(basis_width, kInnerVectors) * parts_of(width, N);
  const int64_t pieces = std::max<int64_t>(1, kInnerBlocks / std::max<int64_t>(1, tiles));
  return rounded_up(std::max<int64_t>(parts_of(length, pieces), 4 * kInnerDepth), kInnerDepth);
}

// --- Rotation
//
// A block of threads multiplies some rows of the basis by N columns of the factors. Where these are all the
// factors, it then overwrites its own rows, which no other block reads. Where there are more, the result
// waits in scratch memory, some rows at a time, until it is complete.

template <class C>
struct Rotation {
  BasisBlocks<C> basis;
  const double* factors;
  int64_t width;
  int64_t first = 0, rows = 0;  // of the basis
  C* out = nullptr;             // (rows, width); null: the basis
};

template <class C, int N>
__global__ void __launch_bounds__(kTileThreads) rotate_tiles(const __grid_constant__ Rotation<C> p) {
  using OfRows = Tile<C, N>;
  __shared__ OfRows tile;
  static_assert(kTileThreads % OfRows::depth == 0, "a thread keeps its place in the tile");
  const int thread = threadIdx.x, inner = thread % OfRows::depth;
  const int64_t parts = parts_of(p.width, N), basis_width = p.basis.width();
  const int64_t column = blockIdx.x % parts * N, row = p.first + blockIdx.x / parts * OfRows::lines;
  const int64_t end = p.first + p.rows;
  C sums[kShare][kShare] = {};
  for (int64_t at = 0; at < basis_width; at += OfRows::depth) {
    const Vector<C> vector = vector_of(p.basis, at + inner);
    for (int line = thread / OfRows::depth; line < OfRows::lines; line += kTileThreads / OfRows::depth) {
      const bool there = vector.numbers && row + line < end;
      tile.similarities[inner][line] = there ? vector.numbers[(row + line) * vector.stride] : C(0);
    }
    for (int i = thread; i < OfRows::depth * N; i += kTileThreads) {
      const int64_t of_basis = at + i / N, to = column + i % N;
      tile.vectors[i / N][i % N] =
          of_basis < basis_width && to < p.width ? static_cast<C>(p.factors[of_basis * p.width + to]) : C(0);
    }
    __syncthreads();
    thread_multiply(tile, thread, sums);
    __syncthreads();
  }
  const int64_t to = column + thread % OfRows::across * kShare;
  if (to >= p.width) return;
  // kShare neighbouring vectors are in one block.
  static_assert(kLanes % kShare == 0, "a thread writes to one block");
  const Vector<C> vector =
      p.out ? Vector<C>{p.out - p.first * p.width + to, p.width} : vector_of(p.basis, to);
  for (int l = 0; l < kShare; ++l) {
    const int64_t i = row + thread / OfRows::across + l * OfRows::down;
    if (i >= end) return;
    for (int v = 0; v < kShare; ++v) vector.numbers[i * vector.stride + v] = sums[l][v];
  }
}

// One thread for each number of p.out.
constexpr int kCopyThreads = 256;
template <class C>
__global__ void __launch_bounds__(kCopyThreads) copy_rotated(const __grid_constant__ Rotation<C> p) {
  const int64_t i = int64_t(blockIdx.x) * kCopyThreads + threadIdx.x;
  if (i >= p.rows * p.width) return;
  const Vector<C> vector = vector_of(p.basis, i % p.width);
  vector.numbers[(p.first + i / p.width) * vector.stride] = p.out[i];
}

constexpr int64_t kMostColumns = 32;          // that a block of threads computes
constexpr int64_t kRotatedNumbers = 1 << 20;  // that wait in scratch memory, within the cache

int64_t rows_at_once(int64_t length, int64_t width) {
  return std::min(length, std::max<int64_t>(1024, kRotatedNumbers / width));
}

template <class C>
void launch_rotation(const Rotation<C>& p, cudaStream_t stream) {
  with_part(p.width, [&](auto part) {
    constexpr int N = decltype(part)::value;
    const int64_t blocks = parts_of(p.rows, Tile<C, N>::lines) * parts_of(p.width, N);
    if (blocks > 0) launch(rotate_tiles<C, N>, blocks, kTileThreads, 0, stream, p);
  });
}

}  // namespace

int64_t inner_room(int64_t length, int64_t basis_width, int64_t width) {
  return with_part(width, [&](auto part) {
    constexpr int N = decltype(part)::value;
    const int64_t pieces = parts_of(length, inner_piece<N>(length, basis_width, width));
    return pieces * InnerTile<N>::groups * basis_width * width;
  });
}

template <class C>
const char* cuda_basis_inner(const BasisBlocks<C>& basis, const C* block, const C* weights, int64_t width,
                             double* pieces, double* products, void* given_stream) {
  const auto stream = static_cast<cudaStream_t>(given_stream);
  with_part(width, [&](auto part) {
    constexpr int N = decltype(part)::value;
    const int64_t piece = inner_piece<N>(basis.length, basis.width(), width);
    const int64_t count = parts_of(basis.length, piece);
    const int64_t blocks = count * parts_of(basis.width(), kInnerVectors) * parts_of(width, N);
    const Inner<C> p{basis, block, weights, width, piece, pieces};
    if (blocks > 0) launch(inner_tiles<C, N>, blocks, kTileThreads, 0, stream, p);
    launch_add_up(pieces, count * InnerTile<N>::groups, basis.width() * width, products, stream);
  });
  return outcome();
}

int64_t rotation_room(int64_t length, int64_t width) {
  return width <= kMostColumns ? 0 : rows_at_once(length, width) * width;
}

template <class C>
const char* cuda_basis_rotate(const BasisBlocks<C>& basis, const double* factors, int64_t width, C* room,
                              void* given_stream) {
  const auto stream = static_cast<cudaStream_t>(given_stream);
  Rotation<C> p{basis, factors, width, 0, basis.length, nullptr};
  if (width <= kMostColumns) {
    launch_rotation(p, stream);
    return outcome();
  }
  p.out = room;
  const int64_t rows = rows_at_once(basis.length, width);
  for (; p.first < basis.length; p.first += rows) {
    p.rows = std::min(rows, basis.length - p.first);
    launch_rotation(p, stream);
    launch(copy_rotated<C>, parts_of(p.rows * width, kCopyThreads), kCopyThreads, 0, stream, p);
  }
  return outcome();
}

#define MODFAST_INSTANCES(C)                                                                         \
  template const char* cuda_basis_inner(const BasisBlocks<C>&, const C*, const C*, int64_t, double*, \
                                        double*, void*);                                             \
  template const char* cuda_basis_rotate(const BasisBlocks<C>&, const double*, int64_t, C*, void*);
MODFAST_INSTANCES(float)
MODFAST_INSTANCES(double)
#undef MODFAST_INSTANCES

}  // namespace modfast
