// The walk's inner loops in AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)

#include "circuits_lines.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

namespace modfast {
namespace {
#define MODFAST_LINES_AVX2
#define MODFAST_LINES_AVX512
#include "circuits_lines.inl"
}  // namespace
const CircuitLines circuit_lines_avx512 = circuit_lines_of_this_level;
}  // namespace modfast

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
