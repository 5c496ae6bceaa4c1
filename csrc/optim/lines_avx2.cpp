#if defined(__x86_64__)
#include "optim/lines.h"

#include "common/begin_avx2.inl"

namespace modfast {
namespace {
#include "optim/lines.inl"
}  // namespace
const OptimLines optim_lines_avx2 = optim_lines_of_this_level;
}  // namespace modfast

#include "common/end_level.inl"

#endif
