#include "energy/lines.h"

#include "common/begin_baseline.inl"

namespace modfast {
namespace {
#include "energy/lines.inl"
}  // namespace
const Lines lines_baseline = lines_of_this_level;
}  // namespace modfast
