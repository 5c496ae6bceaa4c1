// Helpers of the bindings of all CPU kernels.
#pragma once

#include "common/binding.h"

#include <exception>
#include <mutex>

namespace modfast {

// PyTorch's parallel loop, as a ParallelFor. An exception of the body ends there and is thrown again by the
// caller, so that none comes into PyTorch's frames; see common/binding_boxed.h.
inline void parallel_for(int64_t count, int64_t grain, LoopBody body, void* context) {
  std::mutex mutex;
  std::exception_ptr first;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    try {
      body(begin, end, context);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!first) first = std::current_exception();
    }
  });
  if (first) std::rethrow_exception(first);
}

inline void check_cpu(const Tensor& tensor, const char* name) {
  REQUIRE(tensor.is_cpu(), name, " must be on the CPU");
}

}  // namespace modfast
