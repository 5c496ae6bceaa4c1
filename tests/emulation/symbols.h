// What this library's own table of symbols says: the names of kernels, and where shared variables lie.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace emulation {

struct SharedVariable {
  uintptr_t begin, end;
  std::string name;
};

// All shared variables of the kernels, by address. Where the table is missing the result is empty.
const std::vector<SharedVariable>& shared_variables();

// "modfast::block_sums" for the address of such a function, without arguments and anonymous namespaces.
std::string kernel_name(const void* function);

}  // namespace emulation
