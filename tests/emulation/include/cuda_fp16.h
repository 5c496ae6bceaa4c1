// The conversions of half precision that modfast uses on a device, by the compiler's own type; see
// emulation.h.
#pragma once

#include <cstring>

struct __half {
  _Float16 number;
};

inline __half __ushort_as_half(unsigned short bits) {
  __half half;
  std::memcpy(&half, &bits, sizeof half);
  return half;
}
inline unsigned short __half_as_ushort(__half half) {
  unsigned short bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}
inline float __half2float(__half half) { return static_cast<float>(half.number); }
// Every NaN becomes the one that a device makes of it.
inline __half __float2half_rn(float number) {
  return number != number ? __ushort_as_half(0x7fff) : __half{static_cast<_Float16>(number)};
}
