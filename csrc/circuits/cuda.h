// What the walk's CUDA kernels offer their binding; see energy/cuda.h. Unlike there, some functions wait for
// the stream.
#pragma once

#include "circuits/plan.h"

namespace modfast {

// pre and held of rows first to last of a layer.
const char* cuda_forward(const TailLayer& layer, const double* inputs, int64_t stride, int64_t first,
                         int64_t last, void* stream);

// All trials of a row, in one launch of one block; returns when they are over. plan's tables are copied to
// `tables`; numbers: room for as many as it says.
const char* cuda_walk(const WalkPlan& plan, int64_t* tables, double* numbers, void* stream);

// Copies numbers of the device to the host; returns when they are there.
const char* cuda_read(const double* from, int64_t count, double* to, void* stream);

// Sets numbers of the device to zero.
const char* cuda_clear(double* numbers, int64_t count, void* stream);

}  // namespace modfast
