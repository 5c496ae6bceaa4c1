// What the bindings of the spectral family's CPU kernels share.
#pragma once

#include "common/binding_cpu.h"
#include "spectral/binding.h"

namespace modfast {

inline const Tensor& checked(const Tensor& tensor, ScalarType type, std::initializer_list<int64_t> shape,
                             const char* name) {
  check_cpu(tensor, name);
  return check_shaped(tensor, type, shape, name);
}

inline DenseMatrix dense_on_cpu(const Tensor& weight) {
  check_cpu(weight, "weight");
  return dense_of(weight);
}

inline void check_node_labels(const Tensor& labels, int64_t nodes, int64_t num_clusters) {
  check_num_clusters(num_clusters);
  checked(labels, ScalarType::Long, {nodes}, "labels");
  const auto* label = const_data_of<int64_t>(labels);
  for (int64_t i = 0; i < nodes; ++i) {
    REQUIRE(-1 <= label[i] && label[i] < num_clusters, "labels[", i, "] is ", label[i], ", allowed is -1 to ",
            num_clusters - 1);
  }
}

template <class T>
Tensor copy_of(const Tensor& tensor) {
  Tensor copy = torch::stable::empty_like(tensor);
  std::copy_n(const_data_of<T>(tensor), tensor.numel(), mutable_data_of<T>(copy));
  return copy;
}

}  // namespace modfast
