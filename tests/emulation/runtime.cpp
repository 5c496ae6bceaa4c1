// The runtime of the emulated device: streams, events, attributes, errors, and the limits of a real device.
//
// Work on a stream runs in its order, and no earlier than somebody waits for it or asks for errors: a host
// that reads without waiting reads what was there before. Only one kernel runs at a time.
#include "runtime.h"

#include "block.h"
#include "cuda_runtime_api.h"
#include "symbols.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

struct CUstream_st {
  std::deque<std::function<void()>> work;
  uint64_t queued = 0, done = 0;
};

struct CUevent_st {
  CUstream_st* stream = nullptr;
  uint64_t after = 0;  // the event has happened once so many pieces of the stream's work are done
};

namespace {

// Those of an H100 (CUDA C++ Programming Guide, "Compute Capabilities").
constexpr int64_t kMaxThreads = 1024, kMaxThreadsOfZ = 64;
constexpr int64_t kMaxGridX = 2147483647, kMaxGridYZ = 65535;
constexpr size_t kShared = 48 << 10, kSharedOptIn = 227 << 10;
constexpr size_t kMaxParameters = 32764;
constexpr int kMultiprocessors = 132, kCacheBytes = 50 << 20;

std::mutex device;  // of all that the streams share
std::map<const void*, size_t> allowed_shared;
std::atomic<uint64_t> seed{0}, launches{0};

thread_local CUstream_st own_stream;
thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string last_message, told_message;

CUstream_st* stream_of(cudaStream_t stream) { return stream == nullptr ? &own_stream : stream; }

cudaError_t report(cudaError_t error, const std::string& message) {
  if (last_error == cudaSuccess) {
    last_error = error;
    last_message = message;
  }
  return error;
}

void run_until(CUstream_st* stream, uint64_t done) {
  while (stream->done < done) {
    const auto piece = std::move(stream->work.front());
    stream->work.pop_front();
    ++stream->done;
    // As on a device, nothing runs after a kernel that failed: what it should have written is not there.
    if (last_error != cudaErrorLaunchFailure) piece();
  }
}

void run_all(CUstream_st* stream) { run_until(stream, stream->queued); }

void put(cudaStream_t given, std::function<void()> piece) {
  CUstream_st* stream = stream_of(given);
  stream->work.push_back(std::move(piece));
  ++stream->queued;
}

std::string text_of(dim3 size) {
  return "(" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " + std::to_string(size.z) + ")";
}

// What a device refuses at once; an empty text if nothing.
std::string refused(const void* function, dim3 grid, dim3 block, size_t shared, size_t parameters) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > kMaxGridX || grid.y > kMaxGridYZ ||
      grid.z > kMaxGridYZ) {
    return "grid " + text_of(grid) + " is empty or too large";
  }
  const int64_t threads = int64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.z > kMaxThreadsOfZ) {
    return "block " + text_of(block) + " is empty or too large";
  }
  const auto more = allowed_shared.find(function);
  const size_t own = shared > 0 ? emulation::own_shared_bytes(function) : 0;
  const size_t allowed = more == allowed_shared.end() ? kShared : std::max(kShared, more->second + own);
  if (shared + own > std::min(allowed, kSharedOptIn)) {
    return std::to_string(shared) + " bytes of dynamic shared memory beside " + std::to_string(own) +
           " of shared variables, allowed are " + std::to_string(std::min(allowed, kSharedOptIn));
  }
  if (parameters > kMaxParameters) {
    return std::to_string(parameters) + " bytes of parameters, allowed are " + std::to_string(kMaxParameters);
  }
  return "";
}

}  // namespace

namespace emulation {

void set_seed(uint64_t value) { seed = value; }
uint64_t number_of_launches() { return launches; }

void launch(const void* function, dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
            size_t parameters, std::function<void()> run_thread) {
  std::string kernel = kernel_name(function);
  {
    const std::lock_guard<std::mutex> lock(device);
    const std::string why = refused(function, grid, block, shared, parameters);
    if (!why.empty()) {
      report(cudaErrorInvalidConfiguration, "kernel " + kernel + ": " + why);
      return;
    }
  }
  put(stream, [launch = Launch{std::move(kernel), grid, block, shared, std::move(run_thread)}] {
    const std::lock_guard<std::mutex> lock(device);
    const uint64_t number = launches++;
    // Each launch has an order of its own.
    const std::string failure = run(launch, seed == 0 ? 0 : seed + (number << 20));
    if (!failure.empty()) report(cudaErrorLaunchFailure, failure);
  });
}

cudaStream_t current_stream() { return &own_stream; }

}  // namespace emulation

cudaError_t cudaGetLastError() {
  run_all(&own_stream);
  const cudaError_t error = last_error;
  told_message = last_message;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() {
  run_all(&own_stream);
  told_message = last_message;
  return last_error;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorNotReady: return "not ready";
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorLaunchFailure: return told_message.c_str();
  }
  return "unknown error";
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (bytes > 0 && (to == nullptr || from == nullptr))
    return report(cudaErrorInvalidValue, "copies from or to null");
  put(stream, [=] {
    if (bytes > 0) std::memcpy(to, from, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t stream) {
  if (bytes > 0 && to == nullptr) return report(cudaErrorInvalidValue, "sets memory at null");
  put(stream, [=] {
    if (bytes > 0) std::memset(to, byte, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t given) {
  event->stream = stream_of(given);
  event->after = event->stream->queued;
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return event->stream == nullptr || event->stream->done >= event->after ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->stream != nullptr) run_until(event->stream, event->after);
  return last_error;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t given, cudaEvent_t event, unsigned) {
  put(given, [earlier = *event] {
    if (earlier.stream != nullptr) run_until(earlier.stream, earlier.after);
  });
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t given) {
  run_all(stream_of(given));
  return last_error;
}
cudaError_t cudaDeviceSynchronize() { return cudaStreamSynchronize(nullptr); }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = kMaxThreads; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = kShared; return cudaSuccess;
    case cudaDevAttrWarpSize: *value = warpSize; return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = kMultiprocessors; return cudaSuccess;
    case cudaDevAttrL2CacheSize: *value = kCacheBytes; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = kSharedOptIn; return cudaSuccess;
  }
  return report(cudaErrorInvalidValue, "this attribute is not emulated");
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int value) {
  if (value < 0 || static_cast<size_t>(value) > kSharedOptIn) {
    return report(cudaErrorInvalidValue,
                  std::to_string(value) + " bytes of dynamic shared memory are too many");
  }
  const std::lock_guard<std::mutex> lock(device);
  allowed_shared[function] = static_cast<size_t>(value);
  return cudaSuccess;
}
