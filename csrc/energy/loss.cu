// The enmeshment loss of a whole model on a GPU: one launch for the energies, one to add them up, one for the
// gradient, whatever the number of matrices. loss_threads.h holds the work of a thread.
//
// The shapes alone determine the order of every sum: there are no atomics, and the bits are always the same.
#include "common/launch.h"
#include "energy/cuda.h"

#include <algorithm>

namespace modfast {
namespace {

// The matrices are an argument of the kernel: this needs no copy to the device with a wait, and a CUDA graph
// stores them itself. Small batches have a smaller argument type, which is faster.
template <int N>
struct Batch {
  Matrix matrices[N];
  int64_t items;
  int count;
};
constexpr int kFew = 8, kMany = 120;
static_assert(sizeof(Batch<kMany>) + 64 <= 32764, "beyond what a kernel's arguments may take");

template <int N>
__device__ const Matrix& matrix_of(const Batch<N>& batch, int64_t item, int* index) {
  int low = 0, high = batch.count;  // searches the last matrix that begins at or before the item
  while (low + 1 < high) {
    const int middle = (low + high) / 2;
    if (batch.matrices[middle].first_item <= item) {
      low = middle;
    } else {
      high = middle;
    }
  }
  *index = low;
  return batch.matrices[low];
}

// The sum over all threads of a block, for thread 0: a tree within each warp, then the warps in order.
__device__ Split block_sum(Split sum) {
  __shared__ Split of_warp[kThreads / 32];
  for (int distance = 16; distance > 0; distance /= 2) {
    sum.inside += __shfl_down_sync(0xffffffffu, sum.inside, distance);
    sum.across += __shfl_down_sync(0xffffffffu, sum.across, distance);
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

template <int N>
__global__ void __launch_bounds__(kThreads)
    item_energies(const __grid_constant__ Batch<N> batch, Split* partial) {
  int index;
  const Matrix& matrix = matrix_of(batch, blockIdx.x, &index);
  const Split sum = block_sum(thread_energies(matrix, blockIdx.x - matrix.first_item, threadIdx.x));
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <int N>
__global__ void __launch_bounds__(kThreads)
    add_up(const __grid_constant__ Batch<N> batch, const Split* partial, Split* energies, double* losses) {
  const Matrix& matrix = batch.matrices[blockIdx.x];
  Split sum{0.0, 0.0};
  for (int64_t item = threadIdx.x; item < matrix.items; item += kThreads) {
    sum.inside += partial[matrix.first_item + item].inside;
    sum.across += partial[matrix.first_item + item].across;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    energies[blockIdx.x] = sum;
    losses[blockIdx.x] = enmeshment_of(sum);
  }
}

template <int N>
__global__ void __launch_bounds__(kThreads)
    item_scale(const __grid_constant__ Batch<N> batch, const Split* energies, const double* slopes,
               double slope, bool add) {
  // From the last item to the first: the items that the energies read last are still in the cache.
  const int64_t item = batch.items - 1 - blockIdx.x;
  int index;
  const Matrix& matrix = matrix_of(batch, item, &index);
  __shared__ Split factors;
  if (threadIdx.x == 0) {
    factors = enmeshment_factors(energies[index], slopes == nullptr ? slope : slopes[index]);
  }
  __syncthreads();
  const Split own = factors;
  thread_scale(matrix, item - matrix.first_item, threadIdx.x, own, add);
}

template <int N>
Batch<N> batch_of(const Matrix* matrices, int64_t count) {
  Batch<N> batch;
  batch.count = static_cast<int>(count);
  batch.items = 0;
  for (int64_t t = 0; t < count; ++t) {
    batch.matrices[t] = matrices[t];
    batch.matrices[t].first_item = batch.items;
    batch.items += matrices[t].items;
  }
  return batch;
}

template <int N>
void launch_energies(const Matrix* matrices, int64_t count, Split* partial, Split* energies, double* losses,
                     cudaStream_t stream) {
  const auto batch = batch_of<N>(matrices, count);
  if (batch.items > 0) launch(item_energies<N>, batch.items, kThreads, 0, stream, batch, partial);
  launch(add_up<N>, count, kThreads, 0, stream, batch, partial, energies, losses);
}

template <int N>
void launch_scale(const Matrix* matrices, int64_t count, const Split* energies, const double* slopes,
                  double slope, bool add, cudaStream_t stream) {
  const auto batch = batch_of<N>(matrices, count);
  if (batch.items == 0) return;
  launch(item_scale<N>, batch.items, kThreads, 0, stream, batch, energies, slopes, slope, add);
}

}  // namespace

const char* cuda_energies(const Matrix* matrices, int64_t count, Split* partial, Split* energies,
                          double* losses, void* stream) {
  for (int64_t begin = 0; begin < count; begin += kMany) {
    const int64_t here = std::min<int64_t>(kMany, count - begin);
    const auto run = here <= kFew ? launch_energies<kFew> : launch_energies<kMany>;
    run(matrices + begin, here, partial, energies + begin, losses + begin, static_cast<cudaStream_t>(stream));
    for (int64_t t = begin; t < begin + here; ++t) partial += matrices[t].items;
  }
  return outcome();
}

const char* cuda_scale(const Matrix* matrices, int64_t count, const Split* energies, const double* slopes,
                       double slope, Into into, void* stream) {
  for (int64_t begin = 0; begin < count; begin += kMany) {
    const int64_t here = std::min<int64_t>(kMany, count - begin);
    const auto run = here <= kFew ? launch_scale<kFew> : launch_scale<kMany>;
    run(matrices + begin, here, energies + begin, slopes == nullptr ? nullptr : slopes + begin, slope,
        into == Into::sum, static_cast<cudaStream_t>(stream));
  }
  return outcome();
}

}  // namespace modfast
