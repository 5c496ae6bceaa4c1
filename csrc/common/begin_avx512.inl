// The code from here to end_level.inl is compiled for AVX-512 (F, BW, DQ, VL); see begin_avx2.inl.
#include <immintrin.h>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

#define MODFAST_LINES_AVX2
#define MODFAST_LINES_AVX512
