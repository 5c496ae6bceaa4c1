// CUDA's words and the part of its runtime that modfast uses, on the emulated device. This stands in for the
// header of CUDA when the tests compile kernels for the CPU; see emulation.h.
#pragma once

#include "emulation.h"

// --- The language

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

// Each shared variable lies between two guards, so that what is out of its bounds is in nothing else. The
// guard also tells which variables are shared: those that follow one in the table of symbols.
#define EMULATION_JOINED(a, b) a##b
#define EMULATION_GUARD(number) EMULATION_JOINED(emulation_guard_, number)
#define EMULATION_SHARED(number)                                 \
  static __attribute__((used)) char EMULATION_GUARD(number)[64]; \
  static __attribute__((used))
#define __shared__ EMULATION_SHARED(__COUNTER__)

#define threadIdx (::emulation::here.thread)
#define blockIdx (::emulation::here.block)
#define blockDim (::emulation::here.block_size)
#define gridDim (::emulation::here.grid_size)
constexpr int warpSize = emulation::kWarpSize;

// The place of the call is a default argument, evaluated where the function is called.
#define EMULATION_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATION_SITE \
  emulation::Site { file, line }

inline void __syncthreads(EMULATION_HERE) { emulation::barrier("__syncthreads", 0, EMULATION_SITE); }
inline int __syncthreads_count(int number, EMULATION_HERE) {
  return emulation::barrier("__syncthreads_count", number, EMULATION_SITE);
}
inline int __syncthreads_or(int number, EMULATION_HERE) {
  return emulation::barrier("__syncthreads_or", number, EMULATION_SITE) > 0;
}
inline int __syncthreads_and(int number, EMULATION_HERE) {
  return emulation::barrier("__syncthreads_and", !number, EMULATION_SITE) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_HERE) {
  emulation::exchange(emulation::Exchange::sync, mask, 0, 0, EMULATION_SITE);
}
template <class T>
T __shfl_sync(unsigned mask, T number, int lane, int width = warpSize, EMULATION_HERE) {
  return emulation::shuffle(emulation::Shuffle::to, mask, number, lane, width, EMULATION_SITE);
}
template <class T>
T __shfl_up_sync(unsigned mask, T number, unsigned distance, int width = warpSize, EMULATION_HERE) {
  return emulation::shuffle(emulation::Shuffle::up, mask, number, int(distance), width, EMULATION_SITE);
}
template <class T>
T __shfl_down_sync(unsigned mask, T number, unsigned distance, int width = warpSize, EMULATION_HERE) {
  return emulation::shuffle(emulation::Shuffle::down, mask, number, int(distance), width, EMULATION_SITE);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T number, int distance, int width = warpSize, EMULATION_HERE) {
  return emulation::shuffle(emulation::Shuffle::across, mask, number, distance, width, EMULATION_SITE);
}

inline unsigned __ballot_sync(unsigned mask, int number, EMULATION_HERE) {
  return unsigned(emulation::exchange(emulation::Exchange::ballot, mask, number != 0, 0, EMULATION_SITE));
}
inline int __any_sync(unsigned mask, int number, EMULATION_HERE) {
  return __ballot_sync(mask, number, file, line) != 0;
}
inline int __all_sync(unsigned mask, int number, EMULATION_HERE) {
  return __ballot_sync(mask, !number, file, line) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T number, EMULATION_HERE) {
  uint64_t bits = 0;
  std::memcpy(&bits, &number, sizeof(T));
  return unsigned(emulation::exchange(emulation::Exchange::match, mask, bits, 0, EMULATION_SITE));
}

template <class T>
T atomicAdd(T* address, T number) {
  return emulation::atomically(address, [&](T before) { return T(before + number); });
}
template <class T>
T atomicSub(T* address, T number) {
  return emulation::atomically(address, [&](T before) { return T(before - number); });
}
template <class T>
T atomicMin(T* address, T number) {
  return emulation::atomically(address, [&](T before) { return number < before ? number : before; });
}
template <class T>
T atomicMax(T* address, T number) {
  return emulation::atomically(address, [&](T before) { return before < number ? number : before; });
}
template <class T>
T atomicAnd(T* address, T number) {
  return emulation::atomically(address, [&](T before) { return T(before & number); });
}
template <class T>
T atomicOr(T* address, T number) {
  return emulation::atomically(address, [&](T before) { return T(before | number); });
}
template <class T>
T atomicExch(T* address, T number) {
  return emulation::atomically(address, [&](T) { return number; });
}
template <class T>
T atomicCAS(T* address, T expected, T number) {
  return emulation::atomically(address, [&](T before) { return before == expected ? number : before; });
}

inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T>
T __ldg(const T* address) {
  return *address;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(unsigned(bits)); }
inline int __clzll(long long bits) {
  return bits == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(bits));
}

// --- The runtime

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNotReady = 600,
  cudaErrorLaunchFailure = 719,
};
// The last error, which this forgets; in the order of the streams, all work that waits is done before.
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
// For a kernel that failed, the message says where and why. It is valid until the thread's next error.
const char* cudaGetErrorString(cudaError_t error);

enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t stream);

struct CUevent_st;
using cudaEvent_t = CUevent_st*;
enum { cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaDeviceSynchronize();

cudaError_t cudaGetDevice(int* device);
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value);
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
