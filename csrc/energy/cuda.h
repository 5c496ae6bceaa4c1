// The interface of the CUDA kernels. It has no CUDA type, so that the host compiler needs no CUDA header; a
// stream is passed as a pointer. Every function only puts work on the stream, never waits for the device, and
// returns nullptr or an error message.
#pragma once

#include "energy/loss_threads.h"

namespace modfast {

// partial: memory for a Split for each item of all matrices; energies and losses: one for each matrix.
const char* cuda_energies(const Matrix* matrices, int64_t count, Split* partial, Split* energies,
                          double* losses, void* stream);

// grad = slope * dE/dW, or grad += that. slopes: one for each matrix, on the device; or nullptr, if all are
// `slope`.
const char* cuda_scale(const Matrix* matrices, int64_t count, const Split* energies, const double* slopes,
                       double slope, Into into, void* stream);

// The sizes of the scratch memory for block sums.
struct BlockRoom {
  int64_t orders;   // int32 numbers
  int64_t starts;   // int32 numbers
  int64_t partial;  // float64 numbers
};
BlockRoom block_room(const Matrix& matrix);

// blocks[a, b] = the sum of weight * weight, or weight * grad if product is set, over the block (a, b).
const char* cuda_block_inner(const Matrix& matrix, bool product, int32_t* orders, int32_t* starts,
                             double* partial, double* blocks, void* stream);

// grad = weight * factors[label of the row, label of the column].
const char* cuda_block_scale(const Matrix& matrix, const double* factors, void* stream);

}  // namespace modfast
