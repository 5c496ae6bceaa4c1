// The kernels that draw the sample and the first centres of k-means on a GPU; see cuda_kmeans_parts.h.
#include "spectral/cuda_kmeans_parts.h"

namespace modfast {
namespace {

constexpr int kDrawThreads = 256;
constexpr int kRowsOfBlock = kDrawPoints / kWarpLanes;
constexpr int kDrawBlocks = kSample / kDrawPoints;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One thread for each point of the sample.
__global__ void __launch_bounds__(kDrawThreads) take_sample(const __grid_constant__ Draws draws) {
  const int64_t i = int64_t(blockIdx.x) * kDrawThreads + threadIdx.x;
  if (i >= draws.count) return;
  const int64_t point = sampled(draws.seed, draws.points, draws.count, i);
  float square = 0;
  for (int64_t d = 0; d < draws.dims; ++d) {
    const float place = draws.given[point * draws.dims + d];
    draws.turned[d * draws.count + i] = place;
    if (draws.places) draws.places[i * draws.dims + d] = place;
    square += place * place;
  }
  draws.least[i] = square * draws.same_place;
  if (draws.weights) draws.weights[i] = draws.given_weights[point];
}

__device__ double share_at(const Draws& draws, int64_t start, int64_t point) {
  if (point >= draws.count) return 0.0;
  return share_of(draws.mass()[point], draws.squares[start * draws.count + point], draws.least[point]);
}

// Takes centre `number` into account. One block of threads for each start and block of points.
__global__ void __launch_bounds__(kDrawThreads) measure(const __grid_constant__ Draws draws, int64_t number) {
  const int64_t start = blockIdx.x / draws.blocks(), block = blockIdx.x % draws.blocks();
  if (draws.states[start].centres != number + 1) return;
  const float* centre = draws.centres + (start * draws.clusters + number) * draws.dims;
  double shares = 0;
  for (int i = threadIdx.x; i < kDrawPoints; i += kDrawThreads) {
    const int64_t point = block * kDrawPoints + i;
    if (point >= draws.count) break;
    float square = 0;
    for (int64_t d = 0; d < draws.dims; ++d) {
      const float away = draws.turned[d * draws.count + point] - centre[d];
      square = fmaf(away, away, square);
    }
    float* nearest = draws.squares + start * draws.count + point;
    if (number == 0 || square < *nearest) *nearest = square;
    shares += share_at(draws, start, point);
  }
  __shared__ double of_warp[kDrawThreads / kWarpLanes];
  shares = block_sum<kDrawThreads>(shares, of_warp);
  if (threadIdx.x == 0) draws.totals[blockIdx.x] = shares;
}

// The first of some shares at which their running sum exceeds `drawn`, which becomes the rest of it; if
// rounding lets none exceed it, the last share that is not 0. One thread runs this.
__device__ int walk(const double* shares, int count, double* drawn) {
  int chosen = 0;
  for (int i = 0; i < count; ++i) {
    const double share = shares[i];
    if (share == 0) continue;
    chosen = i;
    if (*drawn < share) return chosen;
    *drawn -= share;
  }
  *drawn = kInfinity;  // within the last one, it is the last again
  return chosen;
}

// Draws centre `number` of each start, one block of threads for each: first a block of points, then a row of
// them, then the point. That takes a hundred additions instead of 32,768.
__global__ void __launch_bounds__(kDrawThreads)
    draw_centre(const __grid_constant__ Draws draws, int64_t number) {
  __shared__ double totals[kDrawBlocks];
  __shared__ double rows[kRowsOfBlock];
  __shared__ double shares[kDrawPoints];
  __shared__ double drawn;
  __shared__ int64_t chosen;
  const int64_t start = blockIdx.x;
  Start* state = draws.states + start;
  if (number > 0 && state->centres != number) return;
  Random random = Random::after(seed_of_start(draws.seed, draws.first_start + start), number);
  if (number == 0) {
    if (threadIdx.x == 0) chosen = random.below(draws.count);
  } else {
    const auto blocks = static_cast<unsigned>(draws.blocks());
    if (threadIdx.x < blocks) totals[threadIdx.x] = draws.totals[start * blocks + threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
      double total = 0;
      for (unsigned i = 0; i < blocks; ++i) total += totals[i];
      drawn = random.uniform() * total;
      chosen = total == 0 ? -1 : walk(totals, blocks, &drawn);
    }
    __syncthreads();
    const int64_t block = chosen;
    if (block < 0) return;  // no other point differs from the centres
    for (int i = threadIdx.x; i < kDrawPoints; i += kDrawThreads) {
      double share = share_at(draws, start, block * kDrawPoints + i);
      shares[i] = share;
      for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
        share += __shfl_xor_sync(kAllLanes, share, distance);
      }
      if (i % kWarpLanes == 0) rows[i / kWarpLanes] = share;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      const int row = walk(rows, kRowsOfBlock, &drawn);
      const int64_t point =
          block * kDrawPoints + row * kWarpLanes + walk(shares + row * kWarpLanes, kWarpLanes, &drawn);
      chosen = point < draws.count ? point : draws.count - 1;  // beyond it only if the shares are NaN
    }
  }
  __syncthreads();
  for (int64_t d = threadIdx.x; d < draws.dims; d += kDrawThreads) {
    draws.centres[(start * draws.clusters + number) * draws.dims + d] =
        draws.turned[d * draws.count + chosen];
  }
  if (threadIdx.x == 0) *state = {0.0, 0, number + 1, 0};
}

}  // namespace

void launch_sample(const Draws& draws, cudaStream_t stream) {
  launch(take_sample, pieces_of(draws.count, kDrawThreads), kDrawThreads, 0, stream, draws);
}

void launch_first_centres(const Draws& draws, cudaStream_t stream) {
  for (int64_t number = 0; number < draws.clusters; ++number) {
    launch(draw_centre, draws.starts, kDrawThreads, 0, stream, draws, number);
    if (number + 1 == draws.clusters) break;
    launch(measure, draws.starts * draws.blocks(), kDrawThreads, 0, stream, draws, number);
  }
}

}  // namespace modfast
