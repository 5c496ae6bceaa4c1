// What the bindings of the emulated device need of its runtime.
#pragma once

#include "emulation.h"

#include <cstdint>

namespace emulation {

// Each host thread has a stream of its own.
cudaStream_t current_stream();

// The order of blocks and threads: 0 is their own, another number shuffles them.
void set_seed(uint64_t seed);
uint64_t number_of_launches();

}  // namespace emulation
