#include "circuits/lines.h"

#include "common/begin_baseline.inl"

namespace modfast {
namespace {
#include "circuits/lines.inl"
}  // namespace
const CircuitLines circuit_lines_baseline = circuit_lines_of_this_level;
}  // namespace modfast
