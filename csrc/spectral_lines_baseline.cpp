// The spectral family's inner loops in the instructions that every processor of this architecture has.
#include "spectral_lines.h"

// The compiler warns that wide vectors would be passed differently under other options; none leaves this
// file.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace modfast {
namespace {
#include "spectral_lines.inl"
}  // namespace
const SpectralLines spectral_lines_baseline = spectral_lines_of_this_level;
}  // namespace modfast
