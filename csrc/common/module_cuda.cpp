// The Python module of the CUDA kernels; see module.cpp.
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA kernels of modfast. The operators are registered with PyTorch on import.";
  m.attr("architectures") = std::vector<std::string>{MODFAST_CUDA_ARCHITECTURES};
}
