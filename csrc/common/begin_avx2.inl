// The code from here to end_level.inl is compiled for AVX2 (with FMA and F16C, which every processor with
// AVX2 has). Standard headers are included before the options below, so that their functions are not compiled
// for AVX2.
#include <immintrin.h>
#include <cstring>

// The compiler warns that other options pass wide vectors differently. None is passed between files.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define MODFAST_LINES_AVX2
