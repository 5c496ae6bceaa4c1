#if defined(__x86_64__)
#include "spectral/lines.h"

#include "common/begin_avx512.inl"

namespace modfast {
namespace {
#include "spectral/lines.inl"
}  // namespace
const SpectralLines spectral_lines_avx512 = spectral_lines_of_this_level;
}  // namespace modfast

#include "common/end_level.inl"

#endif
