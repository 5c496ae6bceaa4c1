// The body of the optimiser's inner loops. It is included like energy/lines.inl, and includes no standard
// header.

#include "common/vectors.inl"

inline Float8 root_of_all(const Float8& from) {
#if defined(MODFAST_LINES_AVX2)
  return (Float8)_mm256_sqrt_ps((__m256)from);
#else
  Float8 to;
  for (int i = 0; i < 8; ++i) to[i] = __builtin_sqrtf(from[i]);
  return to;
#endif
}
inline Double8 root_of_all(const Double8& from) {
#if defined(MODFAST_LINES_AVX512)
  return (Double8)_mm512_sqrt_pd((__m512d)from);
#else
  Double8 to;
  for (int i = 0; i < 8; ++i) to[i] = __builtin_sqrt(from[i]);
  return to;
#endif
}

template <class F, bool kLoss>
inline void step_by(F* __restrict w, const F* __restrict grad, F* __restrict mean, F* __restrict square,
                    const int32_t* __restrict labels, int32_t label, const AdamWFactors<F>& factors,
                    int64_t n) {
  typedef typename Eight<F>::Vector Vector;
  const AdamWFactors<F> f = factors;
  const Vector inside = Vector{} + f.inside, across = Vector{} + f.across;
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    Vector weight, g, m, v;
    load(w + j, weight);
    load(grad + j, g);
    load(mean + j, m);
    load(square + j, v);
    if constexpr (kLoss) {
      const Label8 here = *reinterpret_cast<const Label8Memory*>(labels + j);
      Vector factor;
      select(here == label, inside, across, factor);
      g = g + weight * factor;
    }
    m = m + (g - m) * f.rest1;
    v = v * f.beta2 + g * g * f.rest2;
    store(m, mean + j);
    store(v, square + j);
    store(weight * f.decay - m * f.size / (root_of_all(v) * f.root + f.eps), w + j);
  }
  for (; j < n; ++j) {
    F g = grad[j];
    if constexpr (kLoss) g = enmeshed(w[j], g, labels[j] == label ? f.inside : f.across);
    w[j] = adamw_step(f, w[j], g, mean + j, square + j);
  }
}

template <class F>
void step(F* w, const F* grad, F* mean, F* square, const int32_t* labels, int32_t label,
          const AdamWFactors<F>& factors, int64_t n) {
  labels == nullptr ? step_by<F, false>(w, grad, mean, square, labels, label, factors, n)
                    : step_by<F, true>(w, grad, mean, square, labels, label, factors, n);
}

template <class T>
void widen_all(const T* from, Compute<T>* __restrict to, int64_t n) {
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    typename Eight<Compute<T>>::Vector numbers;
    load(from + j, numbers);
    store(numbers, to + j);
  }
  for (; j < n; ++j) to[j] = widen(from[j]);
}

template <class T>
void narrow_all(const Compute<T>* from, T* __restrict to, int64_t n) {
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    typename Eight<Compute<T>>::Vector numbers;
    load(from + j, numbers);
    store(numbers, to + j);
  }
  for (; j < n; ++j) narrow(from[j], to[j]);
}

inline void as_doubles(const Double8& from, Double8& to) { to = from; }
inline void as_doubles(const Float8& from, Double8& to) { to = __builtin_convertvector(from, Double8); }

template <class T>
void add_split(const T* w, const int32_t* labels, int32_t label, int64_t n, SplitLanes* sums) {
  Double8 inside, across;
  load(sums->inside, inside);
  load(sums->across, across);
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    const Label8 here = *reinterpret_cast<const Label8Memory*>(labels + j);
    typename Eight<Compute<T>>::Vector numbers;
    Double8 wide, kept;
    load(w + j, numbers);
    as_doubles(numbers, wide);
    wide = wide * wide;
    select(here == label, wide, Double8{}, kept);
    inside += kept;
    select(here == label, Double8{}, wide, kept);
    across += kept;
  }
  store(inside, sums->inside);
  store(across, sums->across);
  for (int64_t lane = 0; j < n; ++j, ++lane) {
    const double wide = widen(w[j]);
    if (labels[j] == label) {
      sums->inside[lane] += wide * wide;
    } else {
      sums->across[lane] += wide * wide;
    }
  }
}

constexpr int64_t kBlock = 512;  // digits that are gathered before they are counted

template <class T>
void count_digits(const T* w, int64_t n, uint32_t floor, uint32_t* counts) {
  // Counting waits for memory, so the digits that count are gathered first, without a branch.
  uint16_t gathered[kBlock + 32];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    int64_t found = 0, j = begin;
#if defined(MODFAST_LINES_AVX512)
    if constexpr (std::is_same_v<T, float>) {
      const __m512i least = _mm512_set1_epi32(static_cast<int32_t>(floor));
      for (; j + 16 <= end; j += 16) {
        __m512i bits = _mm512_and_si512(_mm512_loadu_si512(w + j), _mm512_set1_epi32(0x7fffffff));
        bits = _mm512_min_epu32(bits, _mm512_set1_epi32(InfinityOf<float>::bits + 1));
        const __m512i digits = _mm512_srli_epi32(bits, kRestBits<float>);
        const __mmask16 counted = _mm512_cmpge_epu32_mask(digits, least);
        const __m512i together = _mm512_maskz_compress_epi32(counted, digits);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(gathered + found), _mm512_cvtepi32_epi16(together));
        found += __builtin_popcount(counted);
      }
    }
#endif
    for (; j < end; ++j) {
      const uint32_t digit = first_digit(w[j]);
      gathered[found] = static_cast<uint16_t>(digit);
      found += digit >= floor;
    }
    for (int64_t i = 0; i < found; ++i) ++counts[gathered[i]];
  }
}

template <class T>
int64_t take_out(T* w, int64_t n, uint32_t digit, uint32_t place, uint32_t* places, T* numbers) {
  int64_t found = 0, j = 0;
#if defined(MODFAST_LINES_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    const __m512i limit = _mm512_set1_epi32(static_cast<int32_t>(digit));
    __m512i at = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(place)),
                                  _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (; j + 16 <= n; j += 16) {
      const __m512i all = _mm512_loadu_si512(w + j);
      __m512i bits = _mm512_and_si512(all, _mm512_set1_epi32(0x7fffffff));
      bits = _mm512_min_epu32(bits, _mm512_set1_epi32(InfinityOf<float>::bits + 1));
      const __m512i digits = _mm512_srli_epi32(bits, kRestBits<float>);
      const __mmask16 stay = _mm512_cmpgt_epu32_mask(digits, limit);
      const __mmask16 open = _mm512_cmpeq_epi32_mask(digits, limit);
      _mm512_storeu_si512(w + j, _mm512_maskz_mov_epi32(stay, all));
      if (open) {
        _mm512_storeu_si512(places + found, _mm512_maskz_compress_epi32(open, at));
        _mm512_storeu_si512(numbers + found, _mm512_maskz_compress_epi32(open, all));
        found += __builtin_popcount(open);
      }
      at = _mm512_add_epi32(at, _mm512_set1_epi32(16));
    }
  }
#endif
  for (; j < n; ++j) {
    const T number = w[j];
    const uint32_t own = first_digit(number);
    places[found] = place + static_cast<uint32_t>(j);
    numbers[found] = number;
    found += own == digit;
    if (own <= digit) w[j] = T{};
  }
  return found;
}

template <class T>
constexpr OptimLinesOf<T> optim_lines_of{widen_all<T>, narrow_all<T>, add_split<T>, count_digits<T>,
                                         take_out<T>};

constexpr OptimLines optim_lines_of_this_level{optim_lines_of<float>, optim_lines_of<double>,
                                               optim_lines_of<Half>,  optim_lines_of<BFloat>,
                                               {step<float>},         {step<double>}};
