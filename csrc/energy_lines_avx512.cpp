// The inner loops in AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)

#include "energy_lines.h"

#include <immintrin.h>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

namespace modfast {
namespace {
#define MODFAST_LINES_NAME "avx512"
#define MODFAST_LINES_AVX2
#define MODFAST_LINES_AVX512
#include "energy_lines.inl"
}  // namespace
const Lines lines_avx512 = lines_of_this_level;
}  // namespace modfast

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
