// What kernels need of CUDA beside its language: launches, dynamic shared memory, prefetches, errors.
//
// With nvcc these are CUDA's own. The tests also compile the kernels for the CPU, where tests/emulation gives
// all of CUDA's words a meaning.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace modfast {

// Launches a kernel on a stream, in a row of `grid` blocks of `block` threads, with `shared` bytes of dynamic
// shared memory. A grid that is too large for the device becomes an empty one, which is an error as well:
// conversion to 32 bits would run another one.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t grid, int64_t block, size_t shared, cudaStream_t stream,
            const Arguments&... arguments) {
  const auto blocks = static_cast<unsigned>(grid <= INT32_MAX ? grid : 0);
  const auto threads = static_cast<unsigned>(block);
#if defined(__NVCC__)
  kernel<<<blocks, threads, shared, stream>>>(arguments...);
#else
  emulation::launch(kernel, blocks, threads, shared, stream, arguments...);
#endif
}

// The outcome of the launches and calls before: nullptr, or CUDA's error message.
inline const char* outcome() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// A block's dynamic shared memory.
template <class T>
__device__ T* dynamic_shared() {
#if defined(__NVCC__)
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
#else
  return static_cast<T*>(emulation::dynamic_shared());
#endif
}

// Asks for what will be read soon.
__device__ inline void prefetch(const void* pointer) {
#if defined(__CUDA_ARCH__) && defined(__NVCC__)
  asm volatile("prefetch.global.L1 [%0];" ::"l"(pointer));
#else
  static_cast<void>(pointer);
#endif
}

}  // namespace modfast
