// The optimiser's step: AdamW with the gradient of the enmeshment loss, and only the largest weights kept.
//
// The work is one pass over memory: the gradient of the loss is the weight times one of two factors, known
// from the energies of the weights before the step, and the energies of the new weights are summed while
// these are still in the first-level cache. modfast/reference/optim.py is the specification.
//
// Nothing here depends on PyTorch: pointers, sizes, strides, and a function that runs a loop in parallel.
#pragma once

#include "common/numbers.h"
#include "optim/adamw.h"

#include <cstdint>
#include <vector>

namespace modfast {

// A strided matrix; strides and offsets count elements. A convolution's kernel positions that cannot be
// merged with its columns are planes, each at its offset.
struct Placed {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t row_stride = 0, col_stride = 0;
  const int64_t* plane_offsets = nullptr;  // nullptr: one plane, at offset 0
};

template <class T>
T* line_at(const Placed& placed, int64_t row, int64_t col, int64_t plane) {
  const int64_t offset = placed.plane_offsets == nullptr ? 0 : placed.plane_offsets[plane];
  return static_cast<T*>(placed.data) + offset + row * placed.row_stride + col * placed.col_stride;
}

// One weight and its moments as matrices of one shape. The moments' numbers are of the Compute type of the
// weight's, the gradient's of any type (float64 if the weight's are).
struct Stepped {
  Placed weight, grad, exp_avg, exp_avg_sq;
  int64_t rows = 0, cols = 0, planes = 1;
  // For a weight of the loss: a row and a column are in one cluster if their labels are equal.
  const int32_t *row_labels = nullptr, *col_labels = nullptr;
  double number = 1.0;  // of this step, from 1
  int64_t keep = -1;    // how many elements stay; -1: all
  // Memory from one step to the next: the threshold's magnitude as bits, and how far it may have moved. It
  // never changes a result.
  int64_t* threshold = nullptr;

  bool of_loss() const { return row_labels != nullptr; }
};

// Whether the largest weights of a matrix can be kept: its rows must follow one another in memory.
inline bool can_keep(const Stepped& s) {
  return s.planes == 1 && (s.cols <= 1 || s.weight.col_stride == 1) &&
         (s.rows <= 1 || s.weight.row_stride >= s.cols);
}

// Makes one step for all weights. slopes: for each weight the factors of weights inside clusters and across
// them, by which the gradient of the loss is the weight times its factor. energies: for each weight, those of
// the new weight, written for weights of the loss. grad_scale: the gradients are divided by it, in place; 1
// leaves them.
void adamw(const std::vector<Stepped>& weights, const std::vector<Split>& slopes, const AdamWOptions& options,
           float grad_scale, std::vector<Split>* energies, ParallelFor parallel_for);

// The energies of weights of the loss; of each only the weight and the labels are read. The bits are those
// that a step finds of the same weights.
void labelled_energies(const std::vector<Stepped>& weights, std::vector<Split>* energies,
                       ParallelFor parallel_for);

}  // namespace modfast
