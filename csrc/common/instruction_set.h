// Which instruction set the CPU kernels use: chosen once, at the first call. Each family has its own loops
// for each level, and picks those of this one (its lines_in_use.cpp).
#pragma once

#include <vector>

namespace modfast {

// Slowest first. The baseline is what every processor of an architecture has.
enum class InstructionSet { baseline, avx2, avx512 };

// "avx2" and so on; the baseline of arm64 is called "neon".
const char* name_of(InstructionSet level);

// The levels of this build, slowest first.
std::vector<InstructionSet> compiled_instruction_sets();

// Those of them that this processor can run.
std::vector<InstructionSet> available_instruction_sets();

// The fastest of these, or the one named by the environment variable MODFAST_CPU.
// Throws std::runtime_error when that variable names no available level.
InstructionSet instruction_set_in_use();

}  // namespace modfast
