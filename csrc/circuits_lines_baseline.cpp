// The walk's inner loops in the instructions that every processor of this architecture has.
#include "circuits_lines.h"

// The compiler warns that wide vectors would be passed differently under other options; none leaves this
// file.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace modfast {
namespace {
#include "circuits_lines.inl"
}  // namespace
const CircuitLines circuit_lines_baseline = circuit_lines_of_this_level;
}  // namespace modfast
