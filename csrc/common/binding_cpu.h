// What the bindings of all CPU kernels share.
#pragma once

#include "common/binding.h"

namespace modfast {

// PyTorch's threads, as the kernels want them.
inline void parallel_for(int64_t count, int64_t grain, LoopBody body, void* context) {
  torch::stable::parallel_for(0, count, grain,
                              [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

inline void check_cpu(const Tensor& tensor, const char* name) {
  REQUIRE(tensor.is_cpu(), name, " must be on the CPU");
}

}  // namespace modfast
