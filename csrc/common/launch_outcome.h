// The outcome of the last launches and calls: nullptr, or CUDA's error message.
#pragma once

#include <cuda_runtime_api.h>

namespace modfast {

inline const char* outcome() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace modfast
