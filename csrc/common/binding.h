// Checks of arguments for the bindings to PyTorch, on every device and in every family.
//
// Only LibTorch's stable ABI is used, so that one binary works with every PyTorch from 2.11 on. The Python
// layer checks arguments first, with messages for its callers; the checks here protect direct callers of
// torch.ops.modfast from reading or writing outside of a tensor.
#pragma once

#include "common/binding_boxed.h"
#include "common/numbers.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace modfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A part of a message as text. No streams: where a compiler links the C++ library statically, as some do for
// portable binaries, its locales clash with PyTorch's copy, and writing a number to a stream crashes.
inline std::string text_of(const char* part) { return part; }
inline std::string text_of(const std::string& part) { return part; }
inline std::string text_of(int64_t part) { return std::to_string(part); }

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw std::runtime_error(("modfast: " + ... + text_of(parts)));
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
// Requires a contiguous tensor of this type and shape, where -1 stands for any size.
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

}  // namespace modfast
