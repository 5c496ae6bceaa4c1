// Helpers of the bindings of all CUDA kernels.
#pragma once

#include "common/binding.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

namespace modfast {

inline void check_device(const Tensor& tensor, const Tensor& first, const char* name) {
  REQUIRE(tensor.is_cuda() && tensor.get_device_index() == first.get_device_index(), name,
          " must be on the CUDA device of the others");
}

// Returns check_shaped with an additional check: the tensor must be on the device of `first`.
inline auto checked_beside(const Tensor& first) {
  return [&first](const Tensor& tensor, ScalarType type, std::initializer_list<int64_t> shape,
                  const char* name) -> const Tensor& {
    check_device(tensor, first, name);
    return check_shaped(tensor, type, shape, name);
  };
}

// Makes the tensor's device the current one, and holds its current stream.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    REQUIRE(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_) == AOTI_TORCH_SUCCESS,
            "PyTorch reports no current CUDA stream");
  }
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

inline void require_success(const char* error) { REQUIRE(error == nullptr, "CUDA: ", error); }

}  // namespace modfast
