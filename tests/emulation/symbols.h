// What this library's own table of symbols says: the names of kernels, and where shared variables lie.
#pragma once

#include <cstddef>
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

// The bytes of a kernel's own shared variables; those of functions that it calls are not counted.
size_t own_shared_bytes(const void* function);

}  // namespace emulation
