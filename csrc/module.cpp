// What is not an operator: which instruction sets this build serves. No PyTorch header here,
// so that nothing but the stable ABI ties the library to a version of PyTorch.
#include "cpu_dispatch.h"

// The copy of pybind11 that PyTorch brings, used where there is no other, wants to know of no stable ABI.
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace {

std::vector<std::string> compiled_instruction_sets() {
#if defined(__x86_64__)
  return {modfast::lines_baseline.name, modfast::lines_avx2.name, modfast::lines_avx512.name};
#else
  return {modfast::lines_baseline.name};
#endif
}

std::vector<std::string> available_instruction_sets() {
  std::vector<std::string> names;
  for (const auto* level : modfast::available_lines()) names.emplace_back(level->name);
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What is compiled into modfast. The operators are registered with PyTorch on import.";
  m.attr("version") = MODFAST_VERSION;
  m.def("compiled_instruction_sets", &compiled_instruction_sets,
        "Instruction sets in this build, slowest first.");
  m.def("available_instruction_sets", &available_instruction_sets, "Those that this processor can run.");
  m.def(
      "instruction_set_in_use", [] { return modfast::lines_in_use().name; },
      "The fastest of them, or the one that MODFAST_CPU names.");
}
