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
