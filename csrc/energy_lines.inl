// The body of the inner loops. Included by one .cpp file for each instruction set, inside namespace
// modfast and an unnamed namespace, after the compiler was told which instructions it may use and
// MODFAST_LINES_NAME was defined. Includes nothing itself: a standard header read under those options
// could leave its inline functions compiled for a processor that the machine does not have.

// IEEE half to single. Exact, also where the processor is told to take subnormal singles for zero.
inline float half_to_float_one(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  const uint32_t exponent = half & 0x7c00u;
  // A subnormal half counts units of 2^-24, which as a single is normal.
  const float subnormal = static_cast<float>(static_cast<int32_t>(half & 0x03ffu)) * 0x1p-24f;
  uint32_t bits;
  std::memcpy(&bits, &subnormal, sizeof bits);
  if (exponent != 0) bits = magnitude + 0x38000000u;  // from an exponent's bias of 15 to one of 127
  // Infinity or NaN; a NaN comes out quiet, as the hardware does it.
  if (exponent == 0x7c00u) bits = 0x7f800000u | magnitude | ((half & 0x03ffu) ? 0x00400000u : 0u);
  bits |= sign;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// Single to IEEE half, to nearest, ties to even: what the F16C instructions do.
inline uint16_t float_to_half_one(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((bits >> 13) & 0x03ffu));
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or beyond
  if (bits < 0x38800000u) {  // below 2^-14: a subnormal half counts units of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    // Adding 0.5 puts that unit on the last bit of the single, so that the addition rounds as wanted.
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u) >> 13));
}

void half_to_float(const uint16_t* __restrict in, float* __restrict out, int64_t n) {
  int64_t i = 0;
#if defined(MODFAST_LINES_F16C)
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
  }
#endif
  for (; i < n; ++i) out[i] = half_to_float_one(in[i]);
}

void float_to_half(const float* __restrict in, uint16_t* __restrict out, int64_t n) {
  int64_t i = 0;
#if defined(MODFAST_LINES_F16C)
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), halves);
  }
#endif
  for (; i < n; ++i) out[i] = float_to_half_one(in[i]);
}

void bfloat_to_float(const uint16_t* __restrict in, float* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(in[i]) << 16;
    std::memcpy(out + i, &bits, sizeof bits);
  }
}

// To nearest, ties to even; every NaN becomes the one quiet NaN 0x7fc0, as in PyTorch.
void float_to_bfloat(const float* __restrict in, uint16_t* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, in + i, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    out[i] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
}

// Vectors of 64 and 32 bytes, which the compiler makes of the widest registers it may use. Loaded from and
// stored to any address that the elements may have.
typedef double Double8 __attribute__((vector_size(64), aligned(8), may_alias));
typedef float Float8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef float Float16 __attribute__((vector_size(64), aligned(4), may_alias));

// A template argument would lose the alignment that these types are declared with; a member does not.
template <class T>
struct CacheLine;
template <>
struct CacheLine<float> {
  typedef Float16 Vector;
};
template <>
struct CacheLine<double> {
  typedef Double8 Vector;
};

inline void load(const double* from, Double8& to) { to = *reinterpret_cast<const Double8*>(from); }
inline void load(const float* from, Double8& to) {
  to = __builtin_convertvector(*reinterpret_cast<const Float8*>(from), Double8);
}

// Rows of one cluster lie anywhere in the matrix, so the processor does not foresee the next one by itself.
inline void fetch_ahead(const void* at) { __builtin_prefetch(at, 0, 3); }
inline void fetch_ahead_to_write(const void* at) { __builtin_prefetch(at, 1, 3); }

// Four rows at a time, so that the sums are loaded and stored once for four. The square of a float is exact
// in float64, so the only rounding is that of the sum.
template <class T>
inline void add_squares(const T* const* rows, int64_t count, double* __restrict sum, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    const T *a = rows[r], *b = rows[r + 1], *c = rows[r + 2], *d = rows[r + 3];
    const int64_t ahead = r + 8 <= count ? r + 4 : r;
    const T *next_a = rows[ahead], *next_b = rows[ahead + 1], *next_c = rows[ahead + 2],
            *next_d = rows[ahead + 3];
    int64_t j = 0;
    for (; j + kLine <= n; j += kLine) {
      fetch_ahead(next_a + j);
      fetch_ahead(next_b + j);
      fetch_ahead(next_c + j);
      fetch_ahead(next_d + j);
      for (int64_t i = j; i < j + kLine; i += 8) {
        Double8 wa, wb, wc, wd, s;
        load(a + i, wa);
        load(b + i, wb);
        load(c + i, wc);
        load(d + i, wd);
        load(sum + i, s);
        s += wa * wa;
        s += wb * wb;
        s += wc * wc;
        s += wd * wd;
        *reinterpret_cast<Double8*>(sum + i) = s;
      }
    }
    for (; j < n; ++j) {
      const double wa = a[j], wb = b[j], wc = c[j], wd = d[j];
      sum[j] = (((sum[j] + wa * wa) + wb * wb) + wc * wc) + wd * wd;
    }
  }
  for (; r < count; ++r) {
    for (int64_t j = 0; j < n; ++j)
      sum[j] += static_cast<double>(rows[r][j]) * static_cast<double>(rows[r][j]);
  }
}

void add_squares_float(const float* const* rows, int64_t count, double* sum, int64_t n) {
  add_squares(rows, count, sum, n);
}
void add_squares_double(const double* const* rows, int64_t count, double* sum, int64_t n) {
  add_squares(rows, count, sum, n);
}

void add_product_float(const float* w, const float* v, double* __restrict sum, int64_t n) {
  for (int64_t j = 0; j < n; ++j) sum[j] += static_cast<double>(w[j]) * static_cast<double>(v[j]);
}

void add_product_double(const double* w, const double* v, double* __restrict sum, int64_t n) {
  for (int64_t j = 0; j < n; ++j) sum[j] += w[j] * v[j];
}

template <class T>
inline void scale(const T* w, const T* factor, T* __restrict out, int64_t n, const T* next_w) {
  using Vector = typename CacheLine<T>::Vector;
  constexpr int64_t kLine = 64 / sizeof(T);
  int64_t j = 0;
  for (; j + kLine <= n; j += kLine) {
    fetch_ahead(next_w + j);
    *reinterpret_cast<Vector*>(out + j) =
        *reinterpret_cast<const Vector*>(w + j) * *reinterpret_cast<const Vector*>(factor + j);
  }
  for (; j < n; ++j) out[j] = w[j] * factor[j];
}

void scale_float(const float* w, const float* factor, float* out, int64_t n, const float* next_w) {
  scale(w, factor, out, n, next_w);
}
void scale_double(const double* w, const double* factor, double* out, int64_t n, const double* next_w) {
  scale(w, factor, out, n, next_w);
}

template <class T>
inline void add_scaled(const T* w, const T* factor, T* __restrict out, int64_t n, const T* next_w,
                       const T* next_out) {
  using Vector = typename CacheLine<T>::Vector;
  constexpr int64_t kLine = 64 / sizeof(T);
  int64_t j = 0;
  for (; j + kLine <= n; j += kLine) {
    fetch_ahead(next_w + j);
    fetch_ahead_to_write(next_out + j);
    *reinterpret_cast<Vector*>(out + j) +=
        *reinterpret_cast<const Vector*>(w + j) * *reinterpret_cast<const Vector*>(factor + j);
  }
  for (; j < n; ++j) out[j] += w[j] * factor[j];
}

void add_scaled_float(const float* w, const float* factor, float* out, int64_t n, const float* next_w,
                      const float* next_out) {
  add_scaled(w, factor, out, n, next_w, next_out);
}
void add_scaled_double(const double* w, const double* factor, double* out, int64_t n, const double* next_w,
                       const double* next_out) {
  add_scaled(w, factor, out, n, next_w, next_out);
}

constexpr Lines lines_of_this_level{
    MODFAST_LINES_NAME, half_to_float,      bfloat_to_float,   float_to_half,      float_to_bfloat,
    add_squares_float,  add_squares_double, add_product_float, add_product_double, scale_float,
    scale_double,       add_scaled_float,   add_scaled_double};
