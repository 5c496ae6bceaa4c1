// The interface of the walk's CUDA kernels; see energy/cuda.h. Some of these functions wait for the stream.
#pragma once

#include "circuits/plan.h"

namespace modfast {

// Computes pre and held of rows first to before last of a layer.
const char* cuda_forward(const TailLayer& layer, const double* inputs, int64_t stride, int64_t first,
                         int64_t last, void* stream);

// Makes all trials of a row in one launch of one block; returns when they are over. tables: memory for a copy
// of plan.tables(); numbers: memory for plan.numbers() numbers.
const char* cuda_walk(const WalkPlan& plan, int64_t* tables, double* numbers, void* stream);

// Copies numbers from the device to the host; returns when the copy is over.
const char* cuda_read(const double* from, int64_t count, double* to, void* stream);

// Sets numbers of the device to zero.
const char* cuda_clear(double* numbers, int64_t count, void* stream);

}  // namespace modfast
