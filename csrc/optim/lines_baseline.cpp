#include "optim/lines.h"

#include "common/begin_baseline.inl"

namespace modfast {
namespace {
#include "optim/lines.inl"
}  // namespace
const OptimLines optim_lines_baseline = optim_lines_of_this_level;
}  // namespace modfast
