// What several CUDA kernels of the spectral family share; only .cu files include it.
#pragma once

#include "common/launch.h"
#include "spectral/products_threads.h"

namespace modfast {
namespace {  // each file has kernels of its own

// The sum over all threads of a warp, as a tree; every thread gets the same result.
template <class C>
__device__ C warp_sum(C sum, int least_distance = 1) {
  for (int distance = kWarp / 2; distance >= least_distance; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  return sum;
}

// Calls f with a number of each of a sparse matrix's types.
template <class F>
__device__ void with_types(const SparseMatrix& m, const F& f) {
  if (m.wide) {
    m.dtype == DType::float64 ? f(int64_t{}, double{}) : f(int64_t{}, float{});
  } else {
    m.dtype == DType::float64 ? f(int32_t{}, double{}) : f(int32_t{}, float{});
  }
}

// One block of threads for kWarp numbers, kAdders threads for each number.
template <class C>
__global__ void __launch_bounds__(kWarp* kAdders)
    add_up_pieces(const C* pieces, int64_t count, int64_t numbers, C* out) {
  __shared__ double sums[kAdders][kWarp];
  const int lane = threadIdx.x % kWarp, adder = threadIdx.x / kWarp;
  const int64_t number = int64_t(blockIdx.x) * kWarp + lane;
  if (number < numbers) sums[adder][lane] = thread_add_up(pieces, count, numbers, number, adder);
  __syncthreads();
  if (adder > 0 || number >= numbers) return;
  double sum = 0.0;
  for (int i = 0; i < kAdders; ++i) sum += sums[i][lane];
  out[number] = static_cast<C>(sum);
}

template <class C>
void launch_add_up(const C* pieces, int64_t count, int64_t numbers, C* out, cudaStream_t stream) {
  if (numbers == 0) return;
  launch(add_up_pieces<C>, parts_of(numbers, kWarp), kWarp * kAdders, 0, stream, pieces, count, numbers, out);
}

}  // namespace
}  // namespace modfast
