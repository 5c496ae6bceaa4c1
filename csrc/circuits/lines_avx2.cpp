#if defined(__x86_64__)
#include "circuits/lines.h"

#include "common/begin_avx2.inl"

namespace modfast {
namespace {
#include "circuits/lines.inl"
}  // namespace
const CircuitLines circuit_lines_avx2 = circuit_lines_of_this_level;
}  // namespace modfast

#include "common/end_level.inl"

#endif
