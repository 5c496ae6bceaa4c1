// What the CUDA kernels of the optimiser share; only .cu files include it.
#pragma once

#include "common/launch.h"
#include "optim/cuda.h"

namespace modfast {
namespace {  // each file has kernels of its own

using namespace optim;

constexpr unsigned kAllLanes = 0xffffffffu;

// The sum over all threads of a block, for thread 0: a tree within each warp, then the warps in order.
__device__ Split block_sum(Split sum) {
  __shared__ Split of_warp[kThreads / 32];
  for (int distance = 16; distance > 0; distance /= 2) {
    sum.inside += __shfl_down_sync(kAllLanes, sum.inside, distance);
    sum.across += __shfl_down_sync(kAllLanes, sum.across, distance);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kThreads / 32; ++warp) {
      sum.inside += of_warp[warp].inside;
      sum.across += of_warp[warp].across;
    }
  }
  return sum;
}

__device__ void clear_bins(uint32_t* bins) {
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) bins[bin] = 0;
  __syncthreads();
}

// Adds a block's counts to those of the weight. Whole numbers: the order does not matter.
__device__ void add_bins(const uint32_t* bins, unsigned long long* counts) {
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
    const unsigned long long count = bins[bin];
    if (count != 0) atomicAdd(counts + bin, count);
  }
}

}  // namespace
}  // namespace modfast
