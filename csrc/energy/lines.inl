// The body of the inner loops. One .cpp file for each instruction set includes it, inside namespace modfast
// and an unnamed namespace, after setting the compiler's options for that instruction set. It includes
// nothing itself: inline functions of a standard header would be compiled with those options, and the linker
// could use them on processors without these instructions.

#include "common/vectors.inl"

#if defined(MODFAST_LINES_AVX2)
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
// The square of a narrower number is exact in float64, so one instruction for both rounds as two do.
template <class T>
inline void add_square(const T*, const Sums& w, Sums& sum) {
  sum = (Sums)_mm256_fmadd_pd((__m256d)w, (__m256d)w, (__m256d)sum);
}
inline void add_square(const double*, const Sums& w, Sums& sum) { sum += w * w; }
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
template <class T>
inline void add_square(const T*, const Sums& w, Sums& sum) {
  sum += w * w;
}
#endif

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

// Adds the squares of kRows rows, so that the sums are loaded and stored once for all of them.
template <int kRows, class T>
inline void add_squares_of(const T* const* rows, double* __restrict sum, int64_t n) {
  const T *a = rows[0], *b = kRows > 1 ? rows[1] : a, *c = kRows > 2 ? rows[2] : a,
          *d = kRows > 3 ? rows[3] : a;
  int64_t j = 0;
  for (; j + kSums <= n; j += kSums) {
    Sums w, s;
    load_wide(sum + j, s);
    load_wide(a + j, w);
    add_square(a, w, s);
    if (kRows > 1) {
      load_wide(b + j, w);
      add_square(b, w, s);
    }
    if (kRows > 2) {
      load_wide(c + j, w);
      add_square(c, w, s);
    }
    if (kRows > 3) {
      load_wide(d + j, w);
      add_square(d, w, s);
    }
    store_wide(s, sum + j);
  }
  for (; j < n; ++j) {
    for (int r = 0; r < kRows; ++r) {
      const double w = widen(rows[r][j]);
      sum[j] += w * w;
    }
  }
}

template <class T>
void add_squares(const T* const* rows, int64_t count, double* __restrict sum, int64_t n) {
  for (; count >= 4; count -= 4, rows += 4) add_squares_of<4>(rows, sum, n);
  switch (count) {
    case 3: return add_squares_of<3>(rows, sum, n);
    case 2: return add_squares_of<2>(rows, sum, n);
    case 1: return add_squares_of<1>(rows, sum, n);
  }
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

#if !defined(MODFAST_LINES_AVX2)
// Not worth its own instructions at this level.
constexpr int64_t kStreamed = 1;
template <class Vector, class T>
inline void stream(const Vector& from, T* to) {
  store(from, to);
}
inline void end_stream() {}
#endif

#if defined(MODFAST_LINES_AVX512)
// out[j] += w[j] * (labels[j] == label ? inside : across), sixteen at a time; returns how many it took.
inline int64_t add_sixteens(const float* w, const int32_t* labels, int32_t label, float inside, float across,
                            float* __restrict out, int64_t n) {
  const __m512 all_inside = _mm512_set1_ps(inside), all_across = _mm512_set1_ps(across);
  const __m512i here = _mm512_set1_epi32(label);
  int64_t j = 0;
  for (; j + 16 <= n; j += 16) {
    const __mmask16 equal = _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(labels + j), here);
    const __m512 factors = _mm512_mask_blend_ps(equal, all_across, all_inside);
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(w + j), factors);
    _mm512_storeu_ps(out + j, _mm512_add_ps(scaled, _mm512_loadu_ps(out + j)));
  }
  return j;
}
#endif

enum class Put { store, add, stream };

template <class T, Put kPut>
inline void put_line(const T* w, const int32_t* labels, int32_t label, Compute<T> inside, Compute<T> across,
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
#if defined(MODFAST_LINES_AVX512)
  if constexpr (kPut == Put::add && sizeof(T) == sizeof(float)) {
    j = add_sixteens(w, labels, label, inside, across, out, n);
  }
#endif
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
}

template <class T, Put kPut>
void put_split(const T* w, int64_t w_stride, const int32_t* rows, int64_t count, int32_t none,
               const int32_t* cols, int64_t n, Compute<T> inside, Compute<T> across, T* out,
               int64_t out_stride) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t label = rows[i] == none ? -1 : rows[i];  // -1 equals no column's label
    put_line<T, kPut>(w + i * w_stride, cols, label, inside, across, out + i * out_stride, n);
  }
  if (kPut == Put::stream) end_stream();
}

inline void add_by_kind(const double* sums, const int32_t* labels, int32_t label, int64_t n, double* inside,
                        double* across) {
  Double8 in, out;
  load(inside, in);
  load(across, out);
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
#if defined(MODFAST_LINES_AVX512)
    const __m256i here = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(labels + j));
    const __mmask8 equal = _mm256_cmpeq_epi32_mask(here, _mm256_set1_epi32(label));
    const __m512d numbers = _mm512_loadu_pd(sums + j);
    in = (Double8)_mm512_mask_add_pd((__m512d)in, equal, (__m512d)in, numbers);
    out = (Double8)_mm512_mask_add_pd((__m512d)out, static_cast<__mmask8>(~equal), (__m512d)out, numbers);
#else
    const Label8 here = *reinterpret_cast<const Label8Memory*>(labels + j);
    Double8 numbers, kept;
    load(sums + j, numbers);
    select(here == label, numbers, Double8{}, kept);
    in += kept;
    select(here == label, Double8{}, numbers, kept);
    out += kept;
#endif
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
