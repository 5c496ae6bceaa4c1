// Which instruction set the CPU kernels use: chosen once, at the first call.
#pragma once

#include "circuits_lines.h"
#include "energy_lines.h"
#include "spectral_lines.h"

#include <string>
#include <vector>

namespace modfast {

// The levels compiled in that this processor can run, slowest first.
std::vector<const Lines*> available_lines();

// The fastest of them, or the one named by the environment variable MODFAST_CPU.
// Throws std::runtime_error when that variable names no available level.
const Lines& lines_in_use();
// The same level's loops of the other families.
const SpectralLines& spectral_lines_in_use();
const CircuitLines& circuit_lines_in_use();

}  // namespace modfast
