#if defined(__x86_64__)
#include "energy/lines.h"

#include "common/begin_avx2.inl"

namespace modfast {
namespace {
#include "energy/lines.inl"
}  // namespace
const Lines lines_avx2 = lines_of_this_level;
}  // namespace modfast

#include "common/end_level.inl"

#endif
