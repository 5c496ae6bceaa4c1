// The walk's inner loops in AVX2 (with FMA and F16C, as on every processor that has AVX2).
#if defined(__x86_64__)

#include "circuits_lines.h"

// The compiler warns that wide vectors would be passed differently under other options; none leaves this
// file.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace modfast {
namespace {
#define MODFAST_LINES_AVX2
#include "circuits_lines.inl"
}  // namespace
const CircuitLines circuit_lines_avx2 = circuit_lines_of_this_level;
}  // namespace modfast

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
