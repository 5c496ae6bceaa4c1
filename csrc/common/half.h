// Conversions of single 16-bit floating-point numbers, and the types in which numbers are multiplied.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

// Marks functions that CUDA kernels call too.
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define MODFAST_HD __host__ __device__
#else
#define MODFAST_HD
#endif

namespace modfast {

struct Half {  // IEEE 754 binary16
  uint16_t bits;
};
struct BFloat {  // the upper half of a binary32
  uint16_t bits;
};

// The type in which a T is multiplied by a factor. Sums are float64 for every T.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// IEEE half to single. Exact, even if the processor is set to treat subnormal singles as zero.
MODFAST_HD inline float half_to_float(uint16_t half) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(half));
#else
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  const uint32_t exponent = half & 0x7c00u;
  // A subnormal half is a multiple of 2^-24, which is a normal single.
  const float subnormal = static_cast<float>(static_cast<int32_t>(half & 0x03ffu)) * 0x1p-24f;
  uint32_t bits;
  std::memcpy(&bits, &subnormal, sizeof bits);
  if (exponent != 0) bits = magnitude + 0x38000000u;  // from an exponent's bias of 15 to one of 127
  // Infinity or NaN; a NaN becomes quiet, as in hardware.
  if (exponent == 0x7c00u) bits = 0x7f800000u | magnitude | ((half & 0x03ffu) ? 0x00400000u : 0u);
  bits |= sign;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
#endif
}

// Single to IEEE half, rounded to nearest, ties to even, as by the F16C instructions.
MODFAST_HD inline uint16_t float_to_half(float value) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(value));
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((bits >> 13) & 0x03ffu));
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or beyond
  if (bits < 0x38800000u) {  // below 2^-14: a subnormal half, a multiple of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    // After adding 0.5, the last bit of the single counts 2^-24, so the addition rounds as it should.
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u) >> 13));
#endif
}

// Rounded to nearest, ties to even; every NaN becomes the quiet NaN 0x7fc0, as in PyTorch.
MODFAST_HD inline uint16_t float_to_bfloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// Conversions of any number to its Compute type, and back.
MODFAST_HD inline float widen(float number) { return number; }
MODFAST_HD inline double widen(double number) { return number; }
MODFAST_HD inline float widen(Half number) { return half_to_float(number.bits); }
MODFAST_HD inline float widen(BFloat number) {
  const uint32_t bits = static_cast<uint32_t>(number.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
MODFAST_HD inline void narrow(float number, float& to) { to = number; }
MODFAST_HD inline void narrow(double number, double& to) { to = number; }
MODFAST_HD inline void narrow(float number, Half& to) { to.bits = float_to_half(number); }
MODFAST_HD inline void narrow(float number, BFloat& to) { to.bits = float_to_bfloat(number); }

}  // namespace modfast
