// What follows, up to end_level.inl, is compiled for AVX2 (with FMA and F16C, as on every processor that has
// AVX2). Standard headers come before: read under these options, their functions would be compiled for them.
#include <immintrin.h>
#include <cstring>

// The compiler warns that wide vectors would be passed differently under other options; none leaves the file.
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
