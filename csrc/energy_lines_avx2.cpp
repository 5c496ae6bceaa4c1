// The inner loops in AVX2 (with FMA and F16C, as on every processor that has AVX2).
#if defined(__x86_64__)

#include "energy_lines.h"

#include <immintrin.h>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace modfast {
namespace {
#define MODFAST_LINES_NAME "avx2"
#define MODFAST_LINES_AVX2
#include "energy_lines.inl"
}  // namespace
const Lines lines_avx2 = lines_of_this_level;
}  // namespace modfast

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
