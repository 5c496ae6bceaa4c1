// How a matrix is cut into items for the CUDA kernels, which the host decides from shape and layout alone.
#pragma once

#include "energy/loss_threads.h"

#include <cstddef>
#include <cstdint>

namespace modfast {

// Whether packs of `vector` numbers are aligned in every row of a matrix.
inline bool takes_packs(const Place& place, int64_t vector, int32_t size) {
  bool whole = reinterpret_cast<uintptr_t>(place.data) % static_cast<uintptr_t>(vector * size) == 0 &&
               place.col == 1 && place.row % vector == 0;
  for (int64_t stride : place.kernel) whole = whole && stride % vector == 0;
  return whole;
}

// Sets vector (to at most the argument), across, col_tiles and items.
inline void plan_items(Matrix* matrix, int32_t vector = 16) {
  Matrix& m = *matrix;
  const int32_t size = bytes_of(m.dtype);
  m.vector = vector * size > 16 ? 16 / size : vector;
  if (m.cols % m.vector != 0 || !takes_packs(m.weight, m.vector, size) ||
      !takes_packs(m.grad, m.vector, size)) {
    m.vector = 1;
  }
  // The widest row of threads that leaves no more threads idle than a narrower one would. A row has at least
  // 8 packs, which fill a cache line.
  const int64_t packs = (m.cols + m.vector - 1) / m.vector;
  m.across = 8;
  int64_t least = -1;
  for (int32_t across = kThreads; across >= 8; across /= 2) {
    const int64_t idle = (packs + across - 1) / across * across - packs;
    if (least < 0 || idle < least) {
      least = idle;
      m.across = across;
    }
  }
  m.col_tiles = (packs + m.across - 1) / m.across;
  const int64_t rows = int64_t(kThreads) / m.across * kSteps;
  m.items = m.col_tiles * ((m.rows + rows - 1) / rows);
}

}  // namespace modfast
