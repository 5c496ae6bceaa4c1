// What the bindings to PyTorch share, on every device: checks of arguments, and tensors as labelled matrices.
//
// Only LibTorch's stable ABI is used, so that one binary serves every PyTorch from 2.11 on. The Python layer
// names bad arguments in the caller's words; the checks here keep a direct caller of torch.ops.modfast from
// reading or writing where it must not.
#pragma once

#include "energy.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace modfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message << "modfast: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// A macro, so that the parts of the message are made only when they are needed.
#define REQUIRE(condition, ...)                   \
  do {                                            \
    if (!(condition)) modfast::fail(__VA_ARGS__); \
  } while (false)

std::string shape_of(const Tensor& tensor);
DType dtype_of(const Tensor& tensor, const char* name);
void check_dense(const Tensor& tensor, const char* name);
void check_num_clusters(int64_t num_clusters);
// One-dimensional int64, with a label for each of so many rows or columns.
void check_labels(const Tensor& labels, int64_t expected, const char* name);
// Contiguous, of this type, and of this shape, in which -1 stands for any size.
inline const Tensor& check_shaped(const Tensor& tensor, ScalarType type, std::initializer_list<int64_t> shape,
                                  const char* name) {
  check_dense(tensor, name);
  REQUIRE(tensor.scalar_type() == type, name, " must be ", torch::headeronly::toString(type), ", got ",
          torch::headeronly::toString(tensor.scalar_type()));
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size()) && tensor.is_contiguous();
  for (int64_t d = 0; fits && d < tensor.dim(); ++d) {
    const int64_t size = shape.begin()[d];
    fits = size == -1 || tensor.size(d) == size;
  }
  REQUIRE(fits, name, " must be contiguous, of another shape than ", shape_of(tensor));
  return tensor;
}

template <class T>
const T* const_data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// The lists of an operator over a model, whose first two may be one and the same.
void check_lists(const std::vector<Tensor>& weights, const std::vector<Tensor>& others,
                 const std::vector<Tensor>& row_labels, const std::vector<Tensor>& col_labels,
                 const std::vector<int64_t>& num_clusters);
// A float64 tensor of exactly this shape, contiguous.
void check_numbers(const Tensor& tensor, int64_t rows, int64_t cols, const char* name);
// A float64 square with a row for each cluster and one more.
void check_factors(const Tensor& factors);
// Each gradient is written by several threads, so none may share memory with itself, another or a weight.
void check_writable(const std::vector<Tensor>& weights, const std::vector<Tensor>& grads);

// Where the numbers of a matrix lie: strides in elements, and the sizes and strides of what remains of a
// convolution's kernel, last dimension first.
struct Strides {
  int64_t row = 0, col = 0;
  std::vector<std::pair<int64_t, int64_t>> kernel;
};

// Tensors of one shape (out, in, *kernel) as labelled matrices. Kernel positions are merged with the columns
// where the memory of every tensor allows it, in either order; what cannot be stays a kernel. The matrix is
// turned so that its lines run along the first tensor's memory.
struct Layout {
  int64_t rows = 0, cols = 0;
  LabelIndex row_index, col_index;
  std::vector<Strides> tensors;
  bool transposed = false;  // then the rows carry the labels of columns, and the other way round
};

Layout layout_of(const Tensor* const* tensors, size_t count);

}  // namespace modfast
