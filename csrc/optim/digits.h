// Magnitudes as numbers that can be counted: the bits of a floating-point number without its sign, read as an
// integer, have the order of the magnitudes. The CPU and the CUDA kernels share this.
#pragma once

#include "common/half.h"

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace modfast {

template <class T>
using BitsOf =
    std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;

// The bits of infinity.
template <class T>
struct InfinityOf;
template <>
struct InfinityOf<float> {
  static constexpr uint32_t bits = 0x7f800000u;
};
template <>
struct InfinityOf<double> {
  static constexpr uint64_t bits = 0x7ff0000000000000u;
};
template <>
struct InfinityOf<Half> {
  static constexpr uint16_t bits = 0x7c00u;
};
template <>
struct InfinityOf<BFloat> {
  static constexpr uint16_t bits = 0x7f80u;
};

constexpr int kSignlessBits(int bytes) { return 8 * bytes - 1; }

// The first digit is the upper 12 bits: the exponent, and what is left of the mantissa.
constexpr int kFirstBits = 12;
constexpr int kDigits = 1 << kFirstBits;
template <class T>
constexpr int kRestBits = kSignlessBits(sizeof(T)) - kFirstBits;

// A number's magnitude as an integer. All NaN are one, larger than infinity.
template <class T>
MODFAST_HD inline BitsOf<T> magnitude_bits(T number) {
  BitsOf<T> bits;
  std::memcpy(&bits, &number, sizeof bits);
  bits &= static_cast<BitsOf<T>>(~BitsOf<T>{0}) >> 1;
  const BitsOf<T> nan = InfinityOf<T>::bits + 1;
  return bits < nan ? bits : nan;
}

template <class T>
MODFAST_HD inline uint32_t first_digit(T number) {
  return static_cast<uint32_t>(magnitude_bits(number) >> kRestBits<T>);
}

}  // namespace modfast
