// Helpers of the bindings of all CPU kernels.
#pragma once

#include "common/binding.h"

namespace modfast {

// PyTorch's parallel loop, as a ParallelFor.
inline void parallel_for(int64_t count, int64_t grain, LoopBody body, void* context) {
  torch::stable::parallel_for(0, count, grain,
                              [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

inline void check_cpu(const Tensor& tensor, const char* name) {
  REQUIRE(tensor.is_cpu(), name, " must be on the CPU");
}

}  // namespace modfast
