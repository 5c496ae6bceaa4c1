// The instruction set of the CPU kernels, chosen once, at the first call. Each family has its own loops for
// each level, and uses those of the chosen level (its lines_in_use.cpp).
#pragma once

#include <vector>

namespace modfast {

// Slowest first. Every processor of an architecture has the baseline.
enum class InstructionSet { baseline, avx2, avx512 };

// "avx2" and so on; the baseline of arm64 is called "neon".
const char* name_of(InstructionSet level);

// The levels of this build, slowest first.
std::vector<InstructionSet> compiled_instruction_sets();

// The levels of this build that this processor can run, slowest first.
std::vector<InstructionSet> available_instruction_sets();

// The fastest available level, or the one that the environment variable MODFAST_CPU names. Throws
// std::runtime_error if that variable names no available level.
InstructionSet instruction_set_in_use();

}  // namespace modfast
