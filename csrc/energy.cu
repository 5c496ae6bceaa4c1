// A placeholder that proves build, link and load.
#include "energy_cuda.h"

namespace modfast {
namespace {

__global__ void set(double* value) { *value = 1.0; }

}  // namespace

int launch_placeholder(double* value, void* stream) {
  set<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(value);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace modfast
