// What the files of k-means on a GPU share: kmeans.cu has the order of launches, kmeans_starts.cu the kernels
// that draw, kmeans_lloyd.cu those of Lloyd's iterations.
//
// The sizes alone determine the order of every sum: there are no atomics, and the bits are always the same.
// Squared distances are rounded as on the CPU with AVX-512; sums in float64 have another order.
#pragma once

#include "common/launch.h"
#include "spectral/kmeans.h"

#include <cmath>
#include <limits>

namespace modfast {

constexpr int kWarpLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

MODFAST_HD constexpr int64_t pieces_of(int64_t number, int64_t each) { return (number + each - 1) / each; }

// The sum over all threads of a block, for each of them: a tree within each warp, then the warps in order.
template <int Threads>
__device__ double block_sum(double sum, double (&of_warp)[Threads / kWarpLanes]) {
  for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  }
  if (threadIdx.x % kWarpLanes == 0) of_warp[threadIdx.x / kWarpLanes] = sum;
  __syncthreads();
  sum = 0.0;
  for (int warp = 0; warp < Threads / kWarpLanes; ++warp) sum += of_warp[warp];
  __syncthreads();
  return sum;
}

// How far a start has come.
struct Start {
  double cost;
  int64_t iterations;
  int64_t centres;  // may be fewer than clusters, if fewer points differ
  int64_t ended;
};

// --- The sample, and k-means++ on it

constexpr int kDrawPoints = 1024;  // of a block of threads

struct Draws {
  int64_t points, count, dims, clusters;  // count: of the sample
  int64_t starts, first_start;            // those that run side by side
  uint64_t seed;
  float same_place;  // squared
  const float *given, *given_weights;
  float *places, *weights;  // of the sample; null where it is all points
  float* turned;            // turned[d * count + i] = coordinate d of point i of the sample
  float* least;             // see share_of
  Start* states;            // of each start
  float* centres;           // (starts, clusters, dims)
  float* squares;           // (starts, count), from the nearest centre
  double* totals;           // (starts, blocks of points), the sums of shares

  MODFAST_HD int64_t blocks() const { return pieces_of(count, kDrawPoints); }
  MODFAST_HD const float* mass() const { return weights ? weights : given_weights; }
};

void launch_sample(const Draws& draws, cudaStream_t stream);
// Draws the centres of all starts side by side. Each centre takes two launches.
void launch_first_centres(const Draws& draws, cudaStream_t stream);

// --- Lloyd's iterations

constexpr int kTilePoints = 128;

struct Lloyd {
  int64_t count, dims, clusters, starts, max_iterations;
  int64_t pieces, tiles_of_piece;
  const float *places, *weights;  // places: one point after the other
  Start* states;
  float* centres;   // (starts, clusters, dims)
  int32_t* labels;  // (starts, count)
  float* squares;   // (starts, count), from the nearest centre
  double* records;  // (starts, pieces, numbers())
  double* totals;   // (starts, numbers()), the sums of all records

  // A record holds for each cluster the weighted sum of its points, their total weight and their number, then
  // the cost and the number of points that changed their cluster.
  MODFAST_HD int64_t width() const { return dims + 2; }
  MODFAST_HD int64_t numbers() const { return clusters * width() + 2; }
};

// One iteration of all starts that have not ended, in three launches.
void launch_iteration(const Lloyd& l, cudaStream_t stream);

}  // namespace modfast
