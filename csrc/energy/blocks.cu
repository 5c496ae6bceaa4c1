// Sums and scalings by pair of clusters on a GPU. blocks_threads.h holds the work of a thread.
#include "common/launch.h"
#include "energy/blocks_threads.h"
#include "energy/cuda.h"

#include <algorithm>

namespace modfast {
namespace {

// Enough blocks of threads to fill a large GPU several times.
constexpr int64_t kWantedBlocks = 2048;

// The segments of rows are divided into groups; a block of threads processes the segments of one group.
int64_t segments_per_group(const Matrix& m) {
  const int64_t blocks = (int64_t(m.none) + 1) * segments_of(m.cols);
  const int64_t groups = std::max<int64_t>(1, kWantedBlocks / std::max<int64_t>(1, blocks));
  return std::max<int64_t>(1, (segments_of(m.rows) + groups - 1) / groups);
}

int64_t groups_of(const Matrix& m) {
  const int64_t each = segments_per_group(m);
  return (segments_of(m.rows) + each - 1) / each;
}

__global__ void __launch_bounds__(kThreads)
    sort_segments(LabelSource source, int64_t lines, int32_t none, int32_t* orders, int32_t* all_starts) {
  const int64_t segment = blockIdx.x;
  int32_t* starts = all_starts + segment * (int64_t(none) + 2);
  thread_count_labels(source, lines, none, segment, threadIdx.x, starts);
  __syncthreads();
  if (threadIdx.x == 0) add_up_starts(none, starts);
  __syncthreads();
  thread_fill_order(source, lines, none, segment, threadIdx.x, starts, orders + segment * kSegment);
}

template <class T>
__device__ void block_column_sums(const Matrix& m, bool product, int64_t segment, const int32_t* order,
                                  const int32_t* starts, int32_t label, int64_t first_col, double* sums) {
  thread_column_sums<T>(m, product, segment * kSegment, order + starts[label],
                        starts[label + 1] - starts[label], first_col, threadIdx.x, sums);
}

// One block of threads for each tile of columns, label of rows and group of segments.
// At least six blocks to a multiprocessor: left to itself, the compiler spills on some architectures.
__global__ void __launch_bounds__(kThreads, 6)
    block_sums(const __grid_constant__ Matrix m, bool product, int64_t per_group, const int32_t* row_orders,
               const int32_t* row_starts, const int32_t* col_orders, const int32_t* col_starts,
               double* partial) {
  const int64_t tile = blockIdx.x % segments_of(m.cols), rest = blockIdx.x / segments_of(m.cols);
  const int64_t labels = int64_t(m.none) + 1, label = rest % labels, group = rest / labels;
  double sums[kColumnsPerThread] = {};
  for (int64_t i = 0; i < per_group; ++i) {
    const int64_t segment = group * per_group + i;
    if (segment >= segments_of(m.rows)) break;
    const int32_t* order = row_orders + segment * kSegment;
    const int32_t* starts = row_starts + segment * (labels + 1);
    switch (m.dtype) {
      case DType::float32:
        block_column_sums<float>(m, product, segment, order, starts, label, tile * kSegment, sums);
        break;
      case DType::float64:
        block_column_sums<double>(m, product, segment, order, starts, label, tile * kSegment, sums);
        break;
      case DType::float16:
        block_column_sums<Half>(m, product, segment, order, starts, label, tile * kSegment, sums);
        break;
      case DType::bfloat16:
        block_column_sums<BFloat>(m, product, segment, order, starts, label, tile * kSegment, sums);
        break;
    }
  }
  __shared__ double column_sums[kSegment];
  for (int i = 0; i < kColumnsPerThread; ++i) column_sums[threadIdx.x + i * kThreads] = sums[i];
  __syncthreads();
  const int32_t* starts = col_starts + tile * (labels + 1);
  for (int64_t b = threadIdx.x; b < labels; b += kThreads) {
    partial[blockIdx.x * labels + b] =
        label_sum(column_sums, col_orders + tile * kSegment, starts[b], starts[b + 1]);
  }
}

// One thread for each pair of clusters adds up the sums of the groups and tiles, in order.
__global__ void __launch_bounds__(kThreads)
    add_up_blocks(int64_t labels, int64_t tiles, int64_t groups, const double* partial, double* blocks) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= labels * labels) return;
  const int64_t a = at / labels, b = at % labels;
  double sum = 0.0;
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      sum += partial[((group * labels + a) * tiles + tile) * labels + b];
    }
  }
  blocks[at] = sum;
}

// At least four blocks to a multiprocessor: left to itself, the compiler spills on some architectures.
__global__ void __launch_bounds__(kThreads, 4)
    block_scales(const __grid_constant__ Matrix m, const double* factors) {
  switch (m.dtype) {
    case DType::float32: return thread_block_scale<float>(m, factors, blockIdx.x, threadIdx.x);
    case DType::float64: return thread_block_scale<double>(m, factors, blockIdx.x, threadIdx.x);
    case DType::float16: return thread_block_scale<Half>(m, factors, blockIdx.x, threadIdx.x);
    case DType::bfloat16: return thread_block_scale<BFloat>(m, factors, blockIdx.x, threadIdx.x);
  }
}

}  // namespace

BlockRoom block_room(const Matrix& m) {
  const int64_t labels = int64_t(m.none) + 1, segments = segments_of(m.rows) + segments_of(m.cols);
  return {segments * kSegment, segments * (labels + 1), groups_of(m) * labels * segments_of(m.cols) * labels};
}

const char* cuda_block_inner(const Matrix& m, bool product, int32_t* orders, int32_t* starts, double* partial,
                             double* blocks, void* given_stream) {
  const auto stream = static_cast<cudaStream_t>(given_stream);
  const int64_t labels = int64_t(m.none) + 1;
  const int64_t row_segments = segments_of(m.rows), tiles = segments_of(m.cols), groups = groups_of(m);
  int32_t* col_orders = orders + row_segments * kSegment;
  int32_t* col_starts = starts + row_segments * (labels + 1);
  if (groups * tiles > 0) {
    launch(sort_segments, row_segments, kThreads, 0, stream, m.row_labels, m.rows, m.none, orders, starts);
    launch(sort_segments, tiles, kThreads, 0, stream, m.col_labels, m.cols, m.none, col_orders, col_starts);
    launch(block_sums, groups * labels * tiles, kThreads, 0, stream, m, product, segments_per_group(m),
           orders, starts, col_orders, col_starts, partial);
  }
  const int64_t all = labels * labels;
  launch(add_up_blocks, (all + kThreads - 1) / kThreads, kThreads, 0, stream, labels, tiles, groups, partial,
         blocks);
  return outcome();
}

const char* cuda_block_scale(const Matrix& m, const double* factors, void* stream) {
  if (m.items > 0) {
    launch(block_scales, m.items, kThreads, 0, static_cast<cudaStream_t>(stream), m, factors);
  }
  return outcome();
}

}  // namespace modfast
