#include "spectral/lines.h"

#include "common/begin_baseline.inl"

namespace modfast {
namespace {
#include "spectral/lines.inl"
}  // namespace
const SpectralLines spectral_lines_baseline = spectral_lines_of_this_level;
}  // namespace modfast
