// The CUDA library's binding: a placeholder that proves build, link and load.
#include "energy_cuda.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

// As in module.cpp, and after all headers of PyTorch.
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace {

int placeholder(std::uintptr_t value, int device) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(device, &stream) != AOTI_TORCH_SUCCESS) return -1;
  return modfast::launch_placeholder(reinterpret_cast<double*>(value), stream);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA kernels of modfast. The operators are registered with PyTorch on import.";
  m.attr("architectures") = std::vector<std::string>{MODFAST_CUDA_ARCHITECTURES};
  m.def("placeholder", &placeholder);
}
