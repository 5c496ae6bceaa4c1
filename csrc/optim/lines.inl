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

inline void as_doubles(const Double8& from, Double8& to) { to = from; }
inline void as_doubles(const Float8& from, Double8& to) {
#if defined(MODFAST_LINES_AVX512)
  to = (Double8)_mm512_cvtps_pd((__m256)from);
#else
  to = __builtin_convertvector(from, Double8);
#endif
}

// Sums of squares by kind, in registers while a line is read.
struct Split8 {
  Double8 inside, across;

  explicit Split8(const SplitLanes& sums) {
    load(sums.inside, inside);
    load(sums.across, across);
  }
  template <class Vector>
  inline void add(const Vector& numbers, const Label8& same) {
    Double8 wide;
    as_doubles(numbers, wide);
    wide = wide * wide;
#if defined(MODFAST_LINES_AVX512)
    const __mmask8 lanes = _mm256_movepi32_mask((__m256i)same);
    inside = (Double8)_mm512_mask_add_pd((__m512d)inside, lanes, (__m512d)inside, (__m512d)wide);
    across = (Double8)_mm512_mask_add_pd((__m512d)across, static_cast<__mmask8>(~lanes), (__m512d)across,
                                         (__m512d)wide);
#else
    Double8 kept;
    select(same, wide, Double8{}, kept);
    inside += kept;
    select(same, Double8{}, wide, kept);
    across += kept;
#endif
  }
  inline void end(SplitLanes* sums) const {
    store(inside, sums->inside);
    store(across, sums->across);
  }
};

inline void add_one(double number, bool same, int64_t lane, SplitLanes* sums) {
  (same ? sums->inside : sums->across)[lane] += number * number;
}

template <class F, bool kLoss, bool kSums>
inline void step_by(const F* w, const F* grad, F* __restrict mean, F* __restrict square,
                    const int32_t* labels, int32_t label, const AdamWFactors<F>& factors, int64_t n, F* made,
                    SplitLanes* sums) {
  typedef typename Eight<F>::Vector Vector;
  const AdamWFactors<F> f = factors;
  const Vector inside = Vector{} + f.inside, across = Vector{} + f.across;
  Split8 split(*sums);
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    Vector weight, g, m, v;
    Label8 same{};
    load(w + j, weight);
    load(grad + j, g);
    load(mean + j, m);
    load(square + j, v);
    if constexpr (kLoss || kSums) same = *reinterpret_cast<const Label8Memory*>(labels + j) == label;
    if constexpr (kLoss) {
      Vector factor;
      select(same, inside, across, factor);
      g = g + weight * factor;
    }
    m = m + (g - m) * f.rest1;
    v = v * f.beta2 + g * g * f.rest2;
    store(m, mean + j);
    store(v, square + j);
    weight = weight * f.decay - m * f.size / (root_of_all(v) * f.root + f.eps);
    store(weight, made + j);
    if constexpr (kSums) split.add(weight, same);
  }
  split.end(sums);
  for (int64_t lane = 0; j < n; ++j, ++lane) {
    F g = grad[j];
    if constexpr (kLoss) g = enmeshed(w[j], g, labels[j] == label ? f.inside : f.across);
    made[j] = adamw_step(f, w[j], g, mean + j, square + j);
    if constexpr (kSums) add_one(made[j], labels[j] == label, lane, sums);
  }
}

template <class F>
void step(const F* w, const F* grad, F* mean, F* square, const int32_t* labels, int32_t label,
          const AdamWFactors<F>& factors, bool loss, int64_t n, F* made, SplitLanes* sums) {
  SplitLanes none;
  if (sums == nullptr) {
    (loss ? step_by<F, true, false> : step_by<F, false, false>)(w, grad, mean, square, labels, label, factors,
                                                                n, made, &none);
  } else {
    (loss ? step_by<F, true, true> : step_by<F, false, true>)(w, grad, mean, square, labels, label, factors,
                                                              n, made, sums);
  }
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

template <class T>
void add_split(const T* w, const int32_t* labels, int32_t label, int64_t n, SplitLanes* sums) {
  Split8 split(*sums);
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    typename Eight<Compute<T>>::Vector numbers;
    __builtin_prefetch(w + j +
                       1024 / sizeof(T));  // a kilobyte ahead: a line is too short for the processor's own
    load(w + j, numbers);
    split.add(numbers, *reinterpret_cast<const Label8Memory*>(labels + j) == label);
  }
  split.end(sums);
  for (int64_t lane = 0; j < n; ++j, ++lane) add_one(widen(w[j]), labels[j] == label, lane, sums);
}

template <class T>
void count_digits(const T* w, int64_t n, uint32_t* counts) {
  for (int64_t j = 0; j < n; ++j) ++counts[first_digit(w[j])];
}

template <class T>
void sift(const T* made, T* w, int64_t n, BitsOf<T> low, BitsOf<T> high, uint32_t place, Sifted<T>* out) {
  int64_t above = 0, found = 0, j = 0;
#if defined(MODFAST_LINES_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    const __m512i lowest = _mm512_set1_epi32(static_cast<int32_t>(low));
    const __m512i highest = _mm512_set1_epi32(static_cast<int32_t>(high));
    const __m512i unsigned_bits = _mm512_set1_epi32(0x7fffffff);
    __m512i at = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(place)),
                                  _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (; j + 16 <= n; j += 16) {
      const __m512i numbers = _mm512_loadu_si512(made + j), old = _mm512_loadu_si512(w + j);
      const __m512i bits = _mm512_and_si512(numbers, unsigned_bits);
      const __mmask16 stay = _mm512_cmpge_epu32_mask(bits, highest);
      const __mmask16 open = static_cast<__mmask16>(
          ~stay & (_mm512_cmpge_epu32_mask(bits, lowest) | _mm512_test_epi32_mask(old, unsigned_bits)));
      _mm512_storeu_si512(w + j, _mm512_maskz_mov_epi32(stay, numbers));
      _mm512_storeu_si512(out->places + found, _mm512_maskz_compress_epi32(open, at));
      _mm512_storeu_si512(out->numbers + found, _mm512_maskz_compress_epi32(open, numbers));
      found += __builtin_popcount(open);
      above += __builtin_popcount(stay);
      at = _mm512_add_epi32(at, _mm512_set1_epi32(16));
    }
  }
#endif
  for (; j < n; ++j) {
    const T number = made[j];
    BitsOf<T> old;
    std::memcpy(&old, w + j, sizeof old);
    const BitsOf<T> bits = magnitude_bits(number);
    const bool stays = bits >= high;
    out->places[found] = place + static_cast<uint32_t>(j);
    out->numbers[found] = number;
    found += (!stays) & ((bits >= low) | (static_cast<BitsOf<T>>(old << 1) != 0));
    above += stays;
    w[j] = stays ? number : T{};
  }
  out->found = found;
  out->above = above;
}

template <class T>
constexpr OptimLinesOf<T> optim_lines_of{widen_all<T>, narrow_all<T>, add_split<T>, count_digits<T>, sift<T>};

constexpr OptimLines optim_lines_of_this_level{optim_lines_of<float>, optim_lines_of<double>,
                                               optim_lines_of<Half>,  optim_lines_of<BFloat>,
                                               {step<float>},         {step<double>}};
