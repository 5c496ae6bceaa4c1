// A strided matrix in memory, and calls by the type of its numbers.
#pragma once

#include "common/half.h"
#include "common/numbers.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace modfast {

// One strided matrix. Strides and offsets count elements, not bytes. A convolution weight whose kernel
// positions cannot be merged with its columns is several planes that share rows, columns and labels.
struct Operand {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t row_stride = 0;
  int64_t col_stride = 0;
  std::vector<int64_t> plane_offsets{0};
};

// Calls f with a number of the type that dtype names.
template <class F>
void with_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float32: return f(float{});
    case DType::float64: return f(double{});
    case DType::float16: return f(Half{});
    case DType::bfloat16: return f(BFloat{});
  }
}

template <class T>
T* line_at(const Operand& operand, int64_t row, int64_t col, size_t plane) {
  return static_cast<T*>(operand.data) + operand.plane_offsets[plane] + row * operand.row_stride +
         col * operand.col_stride;
}

}  // namespace modfast
