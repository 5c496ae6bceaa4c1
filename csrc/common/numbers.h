// Types of numbers, and the type of the function that runs loops in parallel, for all families.
#pragma once

#include <cstdint>

namespace modfast {

enum class DType { float32, float64, float16, bfloat16 };

inline int32_t bytes_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// Calls body(begin, end, context) on disjoint ranges that cover [0, count), on any number of threads;
// no range but the last is shorter than grain.
using LoopBody = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = void (*)(int64_t count, int64_t grain, LoopBody body, void* context);

}  // namespace modfast
