// What is compiled into the library of CUDA kernels; see facts.cpp.
#include "common/exported.h"

// The architectures, as in "9.0,12.0+PTX".
MODFAST_EXPORTED const char* modfast_cuda_architectures() noexcept { return MODFAST_CUDA_ARCHITECTURES; }
