// The Python module, for what is no operator: the instruction sets of this build. No PyTorch header is
// included here, so that the library depends on nothing but PyTorch's stable ABI.
#include "common/instruction_set.h"

// PyTorch's own copy of pybind11, used if there is no other, does not compile with this macro.
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

namespace {

std::vector<std::string> names_of(const std::vector<modfast::InstructionSet>& levels) {
  std::vector<std::string> names;
  for (const auto level : levels) names.emplace_back(modfast::name_of(level));
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What is compiled into modfast. The operators are registered with PyTorch on import.";
  m.attr("version") = MODFAST_VERSION;
  m.def(
      "compiled_instruction_sets", [] { return names_of(modfast::compiled_instruction_sets()); },
      "Instruction sets in this build, slowest first.");
  m.def(
      "available_instruction_sets", [] { return names_of(modfast::available_instruction_sets()); },
      "Those that this processor can run.");
  m.def(
      "instruction_set_in_use", [] { return modfast::name_of(modfast::instruction_set_in_use()); },
      "The fastest of them, or the one that MODFAST_CPU names.");
}
