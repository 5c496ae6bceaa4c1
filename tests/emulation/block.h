// Runs kernels: blocks of threads, one thread at a time.
#pragma once

#include "emulation.h"

#include <cstdint>
#include <functional>
#include <string>

namespace emulation {

struct Launch {
  std::string kernel;
  dim3 grid, block;
  size_t shared;
  std::function<void()> run_thread;
};

// Runs all threads of all blocks. A seed of 0 takes blocks and threads in their own order, another one
// shuffles them. Returns an empty text, or what is wrong, with kernel, block and thread.
std::string run(const Launch& launch, uint64_t seed);

// Whether a thread of a kernel runs now, and its number in its block.
bool runs_thread();
int current_thread();

// Called in a thread: ends the kernel with an error.
[[noreturn]] void fail(const std::string& what);

}  // namespace emulation
