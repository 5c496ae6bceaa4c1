// Vectors of eight numbers, for the inner loops of several families. It is included once for each instruction
// set, after common/begin_*.inl, inside namespace modfast and an unnamed namespace, and includes nothing
// itself.

#if !defined(__GNUC__) && !defined(__clang__)
#error \
    "This compiler has no vector types. Use GCC or Clang; on Windows clang-cl, which Visual Studio and LLVM bring."
#endif

// Vectors of eight numbers, which the compiler puts into the widest registers it may use. The types named
// Memory need only the alignment of one element for loads and stores.
typedef double Double8 __attribute__((vector_size(64)));
typedef float Float8 __attribute__((vector_size(32)));
typedef uint32_t Word8 __attribute__((vector_size(32)));
typedef int32_t Label8 __attribute__((vector_size(32)));
typedef int64_t Long8 __attribute__((vector_size(64)));
typedef double Double8Memory __attribute__((vector_size(64), aligned(8), may_alias));
typedef float Float8Memory __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t Label8Memory __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t Short8Memory __attribute__((vector_size(16), aligned(2), may_alias));

inline void load(const double* from, Double8& to) { to = *reinterpret_cast<const Double8Memory*>(from); }
inline void load(const float* from, Float8& to) { to = *reinterpret_cast<const Float8Memory*>(from); }
inline void store(const Double8& from, double* to) { *reinterpret_cast<Double8Memory*>(to) = from; }
inline void store(const Float8& from, float* to) { *reinterpret_cast<Float8Memory*>(to) = from; }
// Rounds to nearest, ties to even; the result is in the upper halves of the words, not yet shifted.
inline void round_to_bfloat(const Float8& from, Word8& to) {
  const Word8 bits = (Word8)from;
  const Word8 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  to = from != from ? Word8{} + 0x7fc00000u : rounded;
}
#if defined(MODFAST_LINES_AVX2)
inline __m128i load_shorts(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
inline void store_shorts(__m128i from, void* to) { _mm_storeu_si128(static_cast<__m128i*>(to), from); }

inline void load(const Half* from, Float8& to) { to = (Float8)_mm256_cvtph_ps(load_shorts(from)); }
inline __m128i packed(const Float8& from, const Half*) {
  return _mm256_cvtps_ph((__m256)from, _MM_FROUND_TO_NEAREST_INT);
}
inline void load(const BFloat* from, Float8& to) {
  to = (Float8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_shorts(from)), 16);
}
inline __m128i packed(const Float8& from, const BFloat*) {
  Word8 words;
  round_to_bfloat(from, words);
#if defined(MODFAST_LINES_AVX512)
  const __m256i upper = _mm256_setr_epi16(1, 3, 5, 7, 9, 11, 13, 15, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm256_castsi256_si128(_mm256_permutexvar_epi16(upper, (__m256i)words));
#else
  words >>= 16;
  const __m256i twice = _mm256_packus_epi32((__m256i)words, (__m256i)words);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(twice, 0x08));
#endif
}
template <class T>
inline void store(const Float8& from, T* to) {
  store_shorts(packed(from, to), to);
}
#else
inline void load(const Half* from, Float8& to) {
  for (int i = 0; i < 8; ++i) to[i] = widen(from[i]);
}
inline void store(const Float8& from, Half* to) {
  for (int i = 0; i < 8; ++i) narrow(from[i], to[i]);
}
inline void load(const BFloat* from, Float8& to) {
  to = (Float8)(__builtin_convertvector(*reinterpret_cast<const Short8Memory*>(from), Word8) << 16);
}
inline void store(const Float8& from, BFloat* to) {
  Word8 words;
  round_to_bfloat(from, words);
  *reinterpret_cast<Short8Memory*>(to) = __builtin_convertvector(words >> 16, Short8Memory);
}
#endif

// A template argument would lose the attributes of these types; a member does not.
template <class T>
struct Eight {
  typedef Float8 Vector;
};
template <>
struct Eight<double> {
  typedef Double8 Vector;
};

// Selects a in the lanes that are equal, else b.
inline void select(const Label8& equal, const Float8& a, const Float8& b, Float8& to) { to = equal ? a : b; }
inline void select(const Label8& equal, const Double8& a, const Double8& b, Double8& to) {
  to = __builtin_convertvector(equal, Long8) ? a : b;
}
