// The inner loops in the instructions that every processor of this architecture has (NEON on arm64).
#include "energy_lines.h"

#include <cstring>

namespace modfast {
namespace {
#if defined(__aarch64__)
#define MODFAST_LINES_NAME "neon"
#else
#define MODFAST_LINES_NAME "baseline"
#endif
#include "energy_lines.inl"
}  // namespace
const Lines lines_baseline = lines_of_this_level;
}  // namespace modfast
