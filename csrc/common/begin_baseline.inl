// The code after this is compiled for every processor of the architecture; see begin_avx2.inl.
#include <cstring>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif
