// How weights are cut into items for the CUDA kernels, which the host decides from shapes and layouts alone.
#pragma once

#include "optim/adamw_threads.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace modfast::optim {

constexpr int kTensors = 4;  // of each weight: itself, its gradient, its two moments

// A dimension of a weight, with the strides of the four tensors.
struct Dimension {
  int64_t size;
  int64_t strides[kTensors];
};

// Puts the dimensions in the order of the weight's memory, outermost first, and merges those that follow one
// another in the memory of all four tensors.
inline std::vector<Dimension> merged(std::vector<Dimension> dims) {
  dims.erase(std::remove_if(dims.begin(), dims.end(), [](const Dimension& d) { return d.size == 1; }),
             dims.end());
  std::stable_sort(dims.begin(), dims.end(),
                   [](const Dimension& a, const Dimension& b) { return a.strides[0] > b.strides[0]; });
  std::vector<Dimension> result;
  for (const Dimension& inner : dims) {
    bool follows = !result.empty();
    for (int t = 0; follows && t < kTensors; ++t) {
      follows = result.back().strides[t] == inner.strides[t] * inner.size;
    }
    if (!follows) {
      result.push_back(inner);
      continue;
    }
    const int64_t outer = result.back().size;
    result.back() = inner;
    result.back().size *= outer;
  }
  return result;
}

// Sets sizes and strides for a weight whose rows and columns mean nothing. places: those of the four tensors,
// whose data is set. Returns false if too many dimensions are left.
inline bool lay_out(const std::vector<Dimension>& all, Matrix* matrix) {
  Matrix& m = *matrix;
  Place* places[kTensors] = {&m.weight, &m.grad, &m.mean, &m.square};
  std::vector<Dimension> dims = merged(all);
  while (dims.size() < 2) dims.insert(dims.begin(), {1, {0, 0, 0, 0}});
  m.rows = dims[dims.size() - 2].size;
  m.cols = m.last_cols = dims.back().size;
  const int64_t line = int64_t(kThreads) * (m.dtype == DType::float64 ? 2 : 4);
  if (m.rows == 1 && m.cols > line && dims.size() == 2) {
    // One long row becomes several that follow one another, for blocks of threads that are full.
    m.rows = (m.cols + line - 1) / line;
    m.last_cols = m.cols - (m.rows - 1) * line;
    m.cols = line;
    for (int t = 0; t < kTensors; ++t) dims[0].strides[t] = line * dims[1].strides[t];
  }
  if (dims.size() - 2 > kKernelDims) return false;
  for (int t = 0; t < kTensors; ++t) {
    places[t]->row = dims[dims.size() - 2].strides[t];
    places[t]->col = dims.back().strides[t];
  }
  for (size_t d = 0; d < kKernelDims; ++d) {
    const bool is_there = d + 2 < dims.size();
    m.kernel_size[d] = is_there ? dims[d].size : 1;
    for (int t = 0; t < kTensors; ++t) places[t]->kernel[d] = is_there ? dims[d].strides[t] : 0;
  }
  return true;
}

// Whether packs of `vector` numbers of `size` bytes are aligned in every row.
inline bool takes_packs(const Place& place, int64_t vector, int64_t size) {
  bool whole = reinterpret_cast<uintptr_t>(place.data) % static_cast<uintptr_t>(vector * size) == 0 &&
               place.col == 1 && place.row % vector == 0;
  for (int64_t stride : place.kernel) whole = whole && stride % vector == 0;
  return whole;
}

// Sets vector, across, steps, col_tiles, tiles and items; `alone` for a pass over the weight without its
// gradient and moments.
inline void plan_items(Matrix* matrix, bool alone = false) {
  Matrix& m = *matrix;
  const int64_t vector = m.dtype == DType::float64 ? 2 : 4, moments = m.dtype == DType::float64 ? 8 : 4;
  const bool packs =
      m.cols % vector == 0 && m.last_cols % vector == 0 && takes_packs(m.weight, vector, bytes_of(m.dtype)) &&
      (alone || (takes_packs(m.grad, vector, bytes_of(m.grad_dtype)) &&
                 takes_packs(m.mean, vector, moments) && takes_packs(m.square, vector, moments)));
  m.vector = static_cast<int32_t>(packs ? vector : 1);
  // The widest row of threads that leaves no more threads idle than a narrower one would. A row has at least
  // 8 packs.
  const int64_t of_row = (m.cols + m.vector - 1) / m.vector;
  m.across = 8;
  int64_t least = -1;
  for (int32_t across = kThreads; across >= 8; across /= 2) {
    const int64_t idle = (of_row + across - 1) / across * across - of_row;
    if (least < 0 || idle < least) {
      least = idle;
      m.across = across;
    }
  }
  // Weights that would not fill a GPU otherwise are cut into smaller items.
  constexpr int64_t kLarge = int64_t{1} << 22;
  m.steps = m.rows * m.cols >= kLarge ? 16 : 4;
  m.col_tiles = (of_row + m.across - 1) / m.across;
  const int64_t rows = int64_t(kThreads) / m.across * m.steps;
  m.tiles = m.col_tiles * ((m.rows + rows - 1) / rows);
  m.items = m.tiles;
  for (int64_t size : m.kernel_size) m.items *= size;
}

// Whether two passes over a weight add its squares in the same order.
inline bool have_same_items(const Matrix& a, const Matrix& b) {
  bool same = a.rows == b.rows && a.cols == b.cols && a.weight.row == b.weight.row &&
              a.weight.col == b.weight.col && a.vector == b.vector;
  for (int d = 0; d < kKernelDims; ++d) {
    same = same && a.kernel_size[d] == b.kernel_size[d] && a.weight.kernel[d] == b.weight.kernel[d];
  }
  return same;
}

inline int kind_of(const Matrix& m) { return static_cast<int>(m.dtype) * 4 + static_cast<int>(m.grad_dtype); }

// Puts those weights first of which not all elements stay, and weights of one kind beside each other; numbers
// the former and the items.
inline void arrange(std::vector<Matrix>* matrices) {
  std::stable_sort(matrices->begin(), matrices->end(), [](const Matrix& a, const Matrix& b) {
    return a.keep != b.keep && (a.keep < 0) != (b.keep < 0) ? b.keep < 0 : kind_of(a) < kind_of(b);
  });
  int64_t items = 0;
  int32_t kept = 0;
  for (Matrix& m : *matrices) {
    m.kept = m.keep >= 0 ? kept++ : -1;
    m.first_item = items;
    items += m.items;
  }
}

}  // namespace modfast::optim
