// The walk on a GPU. walk_threads.h holds the work of the threads.
//
// The trials of a row run one after the other, so one walk is one block, on one of the GPU's multiprocessors.
// Walks of other labels and models, on streams of their own, use the others.
#include "circuits/cuda.h"
#include "common/launch.h"

#include <algorithm>

namespace modfast {
namespace {

constexpr int kWarp = 32, kForwardThreads = 128;
static_assert(kWarp % kInputs == 0, "the lanes of a chunk are added up inside a warp");

struct WalkBlock {
  __device__ int64_t threads() const { return blockDim.x; }
  template <class F>
  __device__ void each(const F& f) const {
    f(int64_t(threadIdx.x));
  }
  template <class F>
  __device__ bool any(const F& f) const {
    return __syncthreads_or(f(int64_t(threadIdx.x)));
  }
  // One thread for each lane of a chunk. The loop runs in whole warps, since shuffles need all their threads.
  template <class F>
  __device__ void add_lanes(int64_t chunks, const F& f, double* sums) const {
    const int64_t lane = threadIdx.x % kInputs, in_warp = threadIdx.x % kWarp;
    for (int64_t i = threadIdx.x; i - in_warp < chunks * kInputs; i += blockDim.x) {
      const int64_t chunk = i / kInputs;
      const double part = chunk < chunks ? f(chunk, lane) : 0.0;
      double sum = __shfl_sync(0xffffffffu, part, 0, kInputs);
      for (int l = 1; l < kInputs; ++l) sum = sum + __shfl_sync(0xffffffffu, part, l, kInputs);
      if (lane == 0 && chunk < chunks) sums[chunk] = sum;
    }
  }
  __device__ void wait() const { __syncthreads(); }
  __device__ void fetch(const double* pointer) const { prefetch(pointer); }
};

__global__ void __launch_bounds__(kWalkThreads)
    walk_one_row(const __grid_constant__ Walk walk, int64_t near_numbers) {
  walk_block(walk, WalkBlock{}, Room{dynamic_shared<double>(), near_numbers, walk.room});
}

// One thread for each input of each row.
__global__ void __launch_bounds__(kForwardThreads)
    forward_rows(const __grid_constant__ TailLayer layer, const double* inputs, int64_t stride, int64_t first,
                 int64_t parts) {
  const int64_t m = blockIdx.x % parts * kForwardThreads + threadIdx.x;
  if (m < stride) thread_forward(layer, inputs, stride, first + blockIdx.x / parts, m);
}

// Waits for a stream without using the CPU: as many threads wait as there are walks, perhaps more than cores.
// outcome() reports errors of this function and of the work on the stream.
void wait_for(cudaStream_t stream) {
  cudaEvent_t event;
  if (cudaEventCreateWithFlags(&event, cudaEventBlockingSync | cudaEventDisableTiming) != cudaSuccess) return;
  if (cudaEventRecord(event, stream) == cudaSuccess) cudaEventSynchronize(event);
  cudaEventDestroy(event);
}

// Lets the kernel use as much shared memory as the GPU has; returns how many numbers it holds.
int64_t near_room() {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaFuncSetAttribute(walk_one_row, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  return bytes / static_cast<int64_t>(sizeof(double));
}

}  // namespace

const char* cuda_forward(const TailLayer& layer, const double* inputs, int64_t stride, int64_t first,
                         int64_t last, void* stream) {
  const int64_t parts = (stride + kForwardThreads - 1) / kForwardThreads;
  launch(forward_rows, (last - first) * parts, kForwardThreads, 0, static_cast<cudaStream_t>(stream), layer,
         inputs, stride, first, parts);
  return outcome();
}

const char* cuda_walk(const WalkPlan& plan, int64_t* tables, double* numbers, void* given_stream) {
  const auto stream = static_cast<cudaStream_t>(given_stream);
  const Walk walk = plan.walk(tables, numbers);
  const int64_t threads = walk_threads(walk.stride),
                near_numbers = std::min(room_of(walk, threads), near_room());
  const auto& host = plan.tables();
  cudaMemcpyAsync(tables, host.data(), host.size() * sizeof(int64_t), cudaMemcpyHostToDevice, stream);
  if (const char* error = outcome()) return error;
  launch(walk_one_row, 1, threads, near_numbers * sizeof(double), stream, walk, near_numbers);
  // Waits here, since streams share a few queues of the device: work queued behind a walk would block others.
  wait_for(stream);
  return outcome();
}

const char* cuda_read(const double* from, int64_t count, double* to, void* given_stream) {
  const auto stream = static_cast<cudaStream_t>(given_stream);
  // Waits for earlier work before the copy begins: during a copy the driver may block other threads.
  wait_for(stream);
  cudaMemcpyAsync(to, from, count * sizeof(double), cudaMemcpyDeviceToHost, stream);
  wait_for(stream);
  return outcome();
}

const char* cuda_clear(double* numbers, int64_t count, void* stream) {
  cudaMemsetAsync(numbers, 0, count * sizeof(double), static_cast<cudaStream_t>(stream));
  return outcome();
}

}  // namespace modfast
