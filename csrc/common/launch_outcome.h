// What became of the kernels just launched: nullptr, or the runtime's words for what went wrong.
#pragma once

#include <cuda_runtime_api.h>

namespace modfast {

inline const char* outcome() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace modfast
