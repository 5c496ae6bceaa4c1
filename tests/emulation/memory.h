// Checks of what threads do with shared memory. The compiler calls them at each access to memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulation {

// Called when a block of threads begins, with its dynamic shared memory.
void begin_shared(const void* dynamic, size_t bytes);
// Called when all threads of a block, or some lanes of a warp, have waited for each other.
void all_have_waited();
void warp_has_waited(int warp);

}  // namespace emulation
