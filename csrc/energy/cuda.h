// What the CUDA kernels offer their binding. No CUDA type here: the host compiler needs no CUDA header, and a
// stream is the pointer that it is. Every function only puts work on the stream, never waits for the device,
// and returns nullptr or what went wrong.
#pragma once

#include "energy/loss_threads.h"

namespace modfast {

// partial: room for a Split for each item of all matrices; energies and losses: one for each matrix.
const char* cuda_energies(const Matrix* matrices, int64_t count, Split* partial, Split* energies,
                          double* losses, void* stream);

// grad = weight times the factors of slope * dE/dW, or that added to it. slopes: one for each matrix on the
// device, or nullptr where all are `slope`.
const char* cuda_scale(const Matrix* matrices, int64_t count, const Split* energies, const double* slopes,
                       double slope, Into into, void* stream);

// How much of what the block sums need beside the matrix.
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
