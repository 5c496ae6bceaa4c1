// The body of the inner loops. One .cpp file for each instruction set includes it, inside namespace modfast
// and an unnamed namespace, after setting the compiler's options for that instruction set. It includes
// nothing itself: inline functions of a standard header would be compiled with those options, and the linker
// could use them on processors without these instructions.

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

// Writes past the cache, to an address that is a multiple of kStreamed.
constexpr int64_t kStreamed = 32;  // bytes
inline void stream(const Float8& from, float* to) { _mm256_stream_ps(to, (__m256)from); }
inline void stream(const Double8& from, double* to) {
  double numbers[8];
  store(from, numbers);
  _mm256_stream_pd(to, _mm256_loadu_pd(numbers));
  _mm256_stream_pd(to + 4, _mm256_loadu_pd(numbers + 4));
}
template <class T>
inline void stream(const Float8& from, T* to) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), packed(from, to));
}
inline void end_stream() { _mm_sfence(); }
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

// Conversion to float64 for the sums. It is written out, since the compiler converts halves and puts them
// together again. AVX-512 also converts four at a time, since eight are slower on AMD's processors.
#if defined(MODFAST_LINES_AVX2)
typedef double Sums __attribute__((vector_size(32)));
constexpr int64_t kSums = 4;
inline __m128i load_four_shorts(const void* from) {
  return _mm_loadl_epi64(static_cast<const __m128i*>(from));
}
inline void load_wide(const double* from, Sums& to) { to = (Sums)_mm256_loadu_pd(from); }
inline void load_wide(const float* from, Sums& to) { to = (Sums)_mm256_cvtps_pd(_mm_loadu_ps(from)); }
inline void load_wide(const Half* from, Sums& to) {
  to = (Sums)_mm256_cvtps_pd(_mm_cvtph_ps(load_four_shorts(from)));
}
inline void load_wide(const BFloat* from, Sums& to) {
  const __m128i words = _mm_slli_epi32(_mm_cvtepu16_epi32(load_four_shorts(from)), 16);
  to = (Sums)_mm256_cvtps_pd(_mm_castsi128_ps(words));
}
inline void store_wide(const Sums& from, double* to) { _mm256_storeu_pd(to, (__m256d)from); }
#else
typedef double Sums __attribute__((vector_size(16)));
typedef double SumsMemory __attribute__((vector_size(16), aligned(8), may_alias));
constexpr int64_t kSums = 2;
inline void load_wide(const double* from, Sums& to) { to = *reinterpret_cast<const SumsMemory*>(from); }
template <class T>
inline void load_wide(const T* from, Sums& to) {
  to = Sums{static_cast<double>(widen(from[0])), static_cast<double>(widen(from[1]))};
}
inline void store_wide(const Sums& from, double* to) { *reinterpret_cast<SumsMemory*>(to) = from; }
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

template <class T>
void add_products(const T* w, const T* v, double* __restrict sum, int64_t n) {
  int64_t j = 0;
  for (; j + kSums <= n; j += kSums) {
    Sums ws, vs, s;
    load_wide(w + j, ws);
    load_wide(v + j, vs);
    load_wide(sum + j, s);
    store_wide(s + ws * vs, sum + j);
  }
  for (; j < n; ++j) {
    sum[j] += static_cast<double>(widen(w[j])) * static_cast<double>(widen(v[j]));
  }
}

// Takes four rows at a time, so that the sums are loaded and stored once for four. The square of a float is
// exact in float64, so only the sum rounds.
template <class T>
void add_squares(const T* const* rows, int64_t count, double* __restrict sum, int64_t n) {
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    const T *a = rows[r], *b = rows[r + 1], *c = rows[r + 2], *d = rows[r + 3];
    int64_t j = 0;
    for (; j + kSums <= n; j += kSums) {
      Sums wa, wb, wc, wd, s;
      load_wide(a + j, wa);
      load_wide(b + j, wb);
      load_wide(c + j, wc);
      load_wide(d + j, wd);
      load_wide(sum + j, s);
      s += wa * wa;
      s += wb * wb;
      s += wc * wc;
      s += wd * wd;
      store_wide(s, sum + j);
    }
    for (; j < n; ++j) {
      const double wa = widen(a[j]), wb = widen(b[j]), wc = widen(c[j]), wd = widen(d[j]);
      sum[j] = (((sum[j] + wa * wa) + wb * wb) + wc * wc) + wd * wd;
    }
  }
  for (; r < count; ++r) add_products(rows[r], rows[r], sum, n);
}

template <class T>
void scale(const T* w, const Compute<T>* factor, T* __restrict out, int64_t n) {
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    typename Eight<T>::Vector numbers, factors;
    load(w + j, numbers);
    load(factor + j, factors);
    store(numbers * factors, out + j);
  }
  for (; j < n; ++j) put_scaled(w[j], factor[j], false, out[j]);
}

// Selects a in the lanes that are equal, else b.
inline void select(const Label8& equal, const Float8& a, const Float8& b, Float8& to) { to = equal ? a : b; }
inline void select(const Label8& equal, const Double8& a, const Double8& b, Double8& to) {
  to = __builtin_convertvector(equal, Long8) ? a : b;
}

#if !defined(MODFAST_LINES_AVX2)
// Not worth its own instructions at this level.
constexpr int64_t kStreamed = 1;
template <class Vector, class T>
inline void stream(const Vector& from, T* to) {
  store(from, to);
}
inline void end_stream() {}
#endif

enum class Put { store, add, stream };

template <class T, Put kPut>
void put_split(const T* w, const int32_t* labels, int32_t label, Compute<T> inside, Compute<T> across,
               T* __restrict out, int64_t n) {
  typedef typename Eight<T>::Vector Vector;
  const Vector all_inside = Vector{} + inside, all_across = Vector{} + across;
  const auto put_one = [&](int64_t j) {
    put_scaled(w[j], labels[j] == label ? inside : across, kPut == Put::add, out[j]);
  };
  int64_t j = 0;
  if (kPut == Put::stream) {
    while (j < n && reinterpret_cast<uintptr_t>(out + j) % kStreamed != 0) put_one(j++);
  }
  for (; j + 8 <= n; j += 8) {
    const Label8 here = *reinterpret_cast<const Label8Memory*>(labels + j);
    Vector numbers, factors, sums;
    load(w + j, numbers);
    select(here == label, all_inside, all_across, factors);
    numbers *= factors;
    if (kPut == Put::add) {
      load(out + j, sums);
      numbers += sums;
    }
    kPut == Put::stream ? stream(numbers, out + j) : store(numbers, out + j);
  }
  for (; j < n; ++j) put_one(j);
  if (kPut == Put::stream) end_stream();
}

inline void add_by_kind(const double* sums, const int32_t* labels, int32_t label, int64_t n, double* inside,
                        double* across) {
  Double8 in, out;
  load(inside, in);
  load(across, out);
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    const Label8 here = *reinterpret_cast<const Label8Memory*>(labels + j);
    Double8 numbers, kept;
    load(sums + j, numbers);
    select(here == label, numbers, Double8{}, kept);
    in += kept;
    select(here == label, Double8{}, numbers, kept);
    out += kept;
  }
  store(in, inside);
  store(out, across);
  for (int64_t lane = 0; j < n; ++j, ++lane) {
    if (labels[j] == label) {
      inside[lane] += sums[j];
    } else {
      across[lane] += sums[j];
    }
  }
}

template <class T>
constexpr LinesOf<T> lines_of{add_squares<T>,           add_products<T>,        scale<T>,
                              put_split<T, Put::store>, put_split<T, Put::add>, put_split<T, Put::stream>};

constexpr Lines lines_of_this_level{lines_of<float>, lines_of<double>, lines_of<Half>, lines_of<BFloat>,
                                    add_by_kind};
