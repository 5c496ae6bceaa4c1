// The body of the inner loops. It is included like energy/lines.inl, and includes nothing itself.

#if defined(MODFAST_LINES_AVX512)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// Vectors of L numbers. Loads and stores are copies, which the compiler turns into unaligned moves.
template <class C, int L>
struct Vec {
  typedef C Type __attribute__((vector_size(L * sizeof(C))));
};
template <class V, class C>
inline V load_vec(const C* from) {
  V to;
  __builtin_memcpy(&to, from, sizeof to);
  return to;
}
template <class V, class C>
inline void store_vec(const V& from, C* to) {
  __builtin_memcpy(to, &from, sizeof from);
}

// A vector with s in every lane.
template <class V, class C>
inline V spread(C s) {
#if defined(MODFAST_LINES_AVX512)
  if constexpr (sizeof(V) == 64 && std::is_same_v<C, float>) return (V)_mm512_set1_ps(s);
  if constexpr (sizeof(V) == 64 && std::is_same_v<C, double>) return (V)_mm512_set1_pd(s);
#endif
#if defined(MODFAST_LINES_AVX2)
  if constexpr (sizeof(V) == 32 && std::is_same_v<C, float>) return (V)_mm256_set1_ps(s);
  if constexpr (sizeof(V) == 32 && std::is_same_v<C, double>) return (V)_mm256_set1_pd(s);
#endif
  V to{};
  for (size_t i = 0; i < sizeof(V) / sizeof(C); ++i) to[i] = s;
  return to;
}

// a * b + c, rounded once if the level has fused multiply-add.
template <class C, class V>
inline V fused(const V& a, const V& b, const V& c) {
#if defined(MODFAST_LINES_AVX512)
  if constexpr (sizeof(V) == 64 && sizeof(C) == 4) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  if constexpr (sizeof(V) == 64 && sizeof(C) == 8)
    return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#endif
#if defined(MODFAST_LINES_AVX2)
  if constexpr (sizeof(V) == 32 && sizeof(C) == 4) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  if constexpr (sizeof(V) == 32 && sizeof(C) == 8)
    return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#endif
  return a * b + c;
}

// Splits a width into parts of V vectors of L numbers, as wide as possible but small enough for the
// registers, and calls f(Shape<L, V>{}, offset) for each part.
template <int L, int V>
struct Shape {
  static constexpr int lanes = L, vectors = V, width = L * V;
};
template <class C>
constexpr int lanes_at_most() {
#if defined(MODFAST_LINES_AVX512)
  return 64 / sizeof(C);
#elif defined(MODFAST_LINES_AVX2)
  return 32 / sizeof(C);
#else
  return 16 / sizeof(C);
#endif
}
template <class C, class F>
inline void for_parts(int64_t width, const F& f) {
  constexpr int L = lanes_at_most<C>();
  int64_t part = 0;
  while (part < width) {
    const int64_t left = width - part;
    if (left >= 32 && 32 / L <= 4) {
      f(Shape<L, (32 / L <= 4 ? 32 / L : 1)>{}, part);
      part += 32;
    } else if (left >= 16 && 16 / L <= 4) {
      f(Shape<L, (16 / L <= 4 ? 16 / L : 1)>{}, part);
      part += 16;
    } else {
      constexpr int M = L > 8 ? 8 : L;
      f(Shape<M, 8 / M>{}, part);
      part += 8;
    }
  }
}

inline float magnitude_of(float w) { return __builtin_fabsf(w); }
inline double magnitude_of(double w) { return __builtin_fabs(w); }

template <class C, class T, class Read>
inline void similarities_by(const T* w, int64_t n, Similarity similarity, C* __restrict out,
                            const Read& read) {
  const C scale = static_cast<C>(similarity.scale);
  switch (similarity.affinity) {
    case Affinity::abs:
      for (int64_t j = 0; j < n; ++j) out[j] = magnitude_of(read(w[j]) * scale);
      break;
    case Affinity::square:
      for (int64_t j = 0; j < n; ++j) out[j] = (read(w[j]) * scale) * (read(w[j]) * scale);
      break;
    case Affinity::given:
      for (int64_t j = 0; j < n; ++j) out[j] = read(w[j]) * scale;
      break;
  }
}

// From double to float, scales before the conversion, since the number may be too large for a float.
template <class C, class T>
inline C widened(T w) {
  return static_cast<C>(widen(w));
}

template <class C>
void similarities(const void* weights, DType dtype, int64_t n, Similarity similarity, C* out) {
  switch (dtype) {
    case DType::float32:
      return similarities_by(static_cast<const float*>(weights), n, similarity, out, widened<C, float>);
    case DType::float64: {
      const auto* w = static_cast<const double*>(weights);
      if constexpr (sizeof(C) == 8) {
        return similarities_by(w, n, similarity, out, widened<C, double>);
      } else {
        const double scale = similarity.scale;
        return similarities_by(w, n, Similarity{similarity.affinity, 1.0}, out,
                               [scale](double v) { return static_cast<C>(v * scale); });
      }
    }
    case DType::float16: {
      const auto* w = static_cast<const Half*>(weights);
#if defined(MODFAST_LINES_AVX2)
      float eight[8];
      for (int64_t j = 0; j < n; j += 8) {
        const int64_t count = n - j < 8 ? n - j : 8;
        Half last[8] = {};
        const Half* from = w + j;
        if (count < 8) {
          for (int64_t i = 0; i < count; ++i) last[i] = from[i];
          from = last;
        }
        _mm256_storeu_ps(eight, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
        similarities_by(eight, count, similarity, out + j, widened<C, float>);
      }
      return;
#else
      return similarities_by(w, n, similarity, out, widened<C, Half>);
#endif
    }
    case DType::bfloat16:
      return similarities_by(static_cast<const BFloat*>(weights), n, similarity, out, widened<C, BFloat>);
  }
}

template <class C, class S, int R>
inline void forward_rows(const C* a, int64_t n, const C* x, int64_t width, C* z) {
  typedef typename Vec<C, S::lanes>::Type V;
  V sums[R][S::vectors] = {};
  for (int64_t j = 0; j < n; ++j) {
    V xs[S::vectors];
    for (int v = 0; v < S::vectors; ++v) xs[v] = load_vec<V>(x + j * width + v * S::lanes);
    for (int r = 0; r < R; ++r) {
      const V as = spread<V>(a[r * kPanelStride + j]);
      for (int v = 0; v < S::vectors; ++v) sums[r][v] = fused<C>(as, xs[v], sums[r][v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < S::vectors; ++v) {
      C* to = z + r * width + v * S::lanes;
      store_vec(load_vec<V>(to) + sums[r][v], to);
    }
  }
}

template <class C, class S, int R>
inline void backward_rows(const C* a, int64_t n, const C* z, int64_t width, C* y) {
  typedef typename Vec<C, S::lanes>::Type V;
  V zs[R][S::vectors];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < S::vectors; ++v) zs[r][v] = load_vec<V>(z + r * width + v * S::lanes);
  }
  for (int64_t j = 0; j < n; ++j) {
    V ys[S::vectors];
    for (int v = 0; v < S::vectors; ++v) ys[v] = load_vec<V>(y + j * width + v * S::lanes);
    for (int r = 0; r < R; ++r) {
      const V as = spread<V>(a[r * kPanelStride + j]);
      for (int v = 0; v < S::vectors; ++v) ys[v] = fused<C>(as, zs[r][v], ys[v]);
    }
    for (int v = 0; v < S::vectors; ++v) store_vec(ys[v], y + j * width + v * S::lanes);
  }
}

// How many rows to take at once, so that registers are left for the vectors that they are multiplied by.
template <class S>
constexpr int rows_at_once() {
  constexpr int fit = (kRegisters - 4 - S::vectors) / S::vectors;
  return fit >= 8 ? 8 : fit >= 4 ? 4 : 2;
}

template <class C>
void forward(const C* a, int64_t rows, int64_t n, const C* x, int64_t width, C* z) {
  for_parts<C>(width, [&](auto shape, int64_t part) {
    using S = decltype(shape);
    constexpr int R = rows_at_once<S>();
    int64_t r = 0;
    for (; r + R <= rows; r += R) {
      forward_rows<C, S, R>(a + r * kPanelStride, n, x + part, width, z + r * width + part);
    }
    for (; r < rows; ++r) {
      forward_rows<C, S, 1>(a + r * kPanelStride, n, x + part, width, z + r * width + part);
    }
  });
}

template <class C>
void backward(const C* a, int64_t rows, int64_t n, const C* z, int64_t width, C* y) {
  for_parts<C>(width, [&](auto shape, int64_t part) {
    using S = decltype(shape);
    constexpr int R = rows_at_once<S>();
    int64_t r = 0;
    for (; r + R <= rows; r += R) {
      backward_rows<C, S, R>(a + r * kPanelStride, n, z + r * width + part, width, y + part);
    }
    for (; r < rows; ++r) {
      backward_rows<C, S, 1>(a + r * kPanelStride, n, z + r * width + part, width, y + part);
    }
  });
}

// The vectors of entries this far ahead are prefetched, since they may be anywhere in memory.
constexpr int64_t kAhead = 24;

template <class C, class T>
inline C similarity_of(T value, Affinity affinity, T scale) {
  const C w = static_cast<C>(value * scale);
  return affinity == Affinity::abs ? magnitude_of(w) : affinity == Affinity::square ? w * w : w;
}

template <class C, class I, class T, class S>
inline bool sparse_forward_part(const SparseMatrix& a, Similarity similarity, int64_t begin, int64_t end,
                                const C* x, int64_t width, C* z) {
  typedef typename Vec<C, S::lanes>::Type V;
  const I *starts = static_cast<const I*>(a.starts), *indices = static_cast<const I*>(a.indices);
  const T* values = static_cast<const T*>(a.values);
  const T scale = static_cast<T>(similarity.scale);
  const int64_t last = starts[end];
  const uint64_t cols = a.cols;
  for (int64_t i = begin; i < end; ++i) {
    V sums[S::vectors] = {};
    for (int64_t e = starts[i]; e < starts[i + 1]; ++e) {
      if (e + kAhead < last) __builtin_prefetch(address_of(x, indices[e + kAhead], width));
      if (static_cast<uint64_t>(indices[e]) >= cols) return false;
      const V as = spread<V>(similarity_of<C>(values[e], similarity.affinity, scale));
      const C* from = x + indices[e] * width;
      for (int v = 0; v < S::vectors; ++v) sums[v] = fused<C>(as, load_vec<V>(from + v * S::lanes), sums[v]);
    }
    for (int v = 0; v < S::vectors; ++v) store_vec(sums[v], z + (i - begin) * width + v * S::lanes);
  }
  return true;
}

template <class C, class I, class T, class S>
inline bool sparse_backward_part(const SparseMatrix& a, Similarity similarity, int64_t begin, int64_t end,
                                 const C* z, int64_t width, C* y) {
  typedef typename Vec<C, S::lanes>::Type V;
  const I *starts = static_cast<const I*>(a.starts), *indices = static_cast<const I*>(a.indices);
  const T* values = static_cast<const T*>(a.values);
  const T scale = static_cast<T>(similarity.scale);
  const int64_t last = starts[end];
  const uint64_t cols = a.cols;
  for (int64_t i = begin; i < end; ++i) {
    V zs[S::vectors];
    for (int v = 0; v < S::vectors; ++v) zs[v] = load_vec<V>(z + (i - begin) * width + v * S::lanes);
    for (int64_t e = starts[i]; e < starts[i + 1]; ++e) {
      if (e + kAhead < last) __builtin_prefetch(address_of(y, indices[e + kAhead], width), 1);
      if (static_cast<uint64_t>(indices[e]) >= cols) return false;
      const V as = spread<V>(similarity_of<C>(values[e], similarity.affinity, scale));
      C* to = y + indices[e] * width;
      for (int v = 0; v < S::vectors; ++v) {
        store_vec(fused<C>(as, zs[v], load_vec<V>(to + v * S::lanes)), to + v * S::lanes);
      }
    }
  }
  return true;
}

// Calls f(index, value) with a number of each of the matrix's types.
template <class F>
inline void with_sparse_types(const SparseMatrix& a, const F& f) {
  if (a.wide) {
    a.dtype == DType::float64 ? f(int64_t{}, double{}) : f(int64_t{}, float{});
  } else {
    a.dtype == DType::float64 ? f(int32_t{}, double{}) : f(int32_t{}, float{});
  }
}

template <class C>
bool sparse_forward(const SparseMatrix& a, Similarity similarity, int64_t begin, int64_t end, const C* x,
                    int64_t width, C* z) {
  bool good = true;
  with_sparse_types(a, [&](auto index, auto value) {
    for_parts<C>(width, [&](auto shape, int64_t part) {
      good = good && sparse_forward_part<C, decltype(index), decltype(value), decltype(shape)>(
                         a, similarity, begin, end, x + part, width, z + part);
    });
  });
  return good;
}

template <class C>
bool sparse_backward(const SparseMatrix& a, Similarity similarity, int64_t begin, int64_t end, const C* z,
                     int64_t width, C* y) {
  bool good = true;
  with_sparse_types(a, [&](auto index, auto value) {
    for_parts<C>(width, [&](auto shape, int64_t part) {
      good = good && sparse_backward_part<C, decltype(index), decltype(value), decltype(shape)>(
                         a, similarity, begin, end, z + part, width, y + part);
    });
  });
  return good;
}

// Sums over this many rows are in C, before they are added up in float64.
constexpr int64_t kRowsOfSum = 64;
constexpr int kGroup = 4;  // columns of v at once

template <class C>
void inner(const C* v, int64_t v_width, const C* w, const C* weights, int64_t width, int64_t n,
           double* products) {
  for_parts<C>(width, [&](auto shape, int64_t part) {
    using S = decltype(shape);
    typedef typename Vec<C, S::lanes>::Type V;
    for (int64_t a = 0; a < v_width; a += kGroup) {
      for (int64_t first = 0; first < n; first += kRowsOfSum) {
        const int64_t last = first + kRowsOfSum < n ? first + kRowsOfSum : n;
        V sums[kGroup][S::vectors] = {};
        for (int64_t i = first; i < last; ++i) {
          V ws[S::vectors];
          for (int k = 0; k < S::vectors; ++k) ws[k] = load_vec<V>(w + i * width + part + k * S::lanes);
          if (weights) {
            const V each = spread<V>(weights[i]);
            for (int k = 0; k < S::vectors; ++k) ws[k] *= each;
          }
          for (int r = 0; r < kGroup; ++r) {
            const V vs = spread<V>(v[i * v_width + a + r]);
            for (int k = 0; k < S::vectors; ++k) sums[r][k] = fused<C>(vs, ws[k], sums[r][k]);
          }
        }
        for (int r = 0; r < kGroup; ++r) {
          for (int k = 0; k < S::width; ++k) {
            products[(a + r) * width + part + k] += sums[r][k / S::lanes][k % S::lanes];
          }
        }
      }
    }
  });
}

template <class C>
void add(const C* v, int64_t v_width, const C* factors, int64_t width, int64_t n, C* out) {
  for_parts<C>(width, [&](auto shape, int64_t part) {
    using S = decltype(shape);
    typedef typename Vec<C, S::lanes>::Type V;
    for (int64_t a = 0; a < v_width; a += kGroup) {
      V fs[kGroup][S::vectors];
      for (int r = 0; r < kGroup; ++r) {
        for (int k = 0; k < S::vectors; ++k) {
          fs[r][k] = load_vec<V>(factors + (a + r) * width + part + k * S::lanes);
        }
      }
      for (int64_t i = 0; i < n; ++i) {
        V sums[S::vectors];
        for (int k = 0; k < S::vectors; ++k) sums[k] = load_vec<V>(out + i * width + part + k * S::lanes);
        for (int r = 0; r < kGroup; ++r) {
          const V vs = spread<V>(v[i * v_width + a + r]);
          for (int k = 0; k < S::vectors; ++k) sums[k] = fused<C>(vs, fs[r][k], sums[k]);
        }
        for (int k = 0; k < S::vectors; ++k) store_vec(sums[k], out + i * width + part + k * S::lanes);
      }
    }
  });
}

inline double sums(const double* a, int64_t n, double left, const double* right, double* __restrict cols) {
  typedef typename Vec<double, 8>::Type V;
  const V lefts = spread<V>(left);
  V rows{};
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    const V as = load_vec<V>(a + j);
    rows = right ? fused<double>(as, load_vec<V>(right + j), rows) : rows + as;
    store_vec(fused<double>(as, lefts, load_vec<V>(cols + j)), cols + j);
  }
  double row = 0;
  for (int lane = 0; lane < 8; ++lane) row += rows[lane];
  for (; j < n; ++j) {
    row += right ? a[j] * right[j] : a[j];
    cols[j] += a[j] * left;
  }
  return row;
}

inline void nearest(const float* points, int64_t stride, int64_t n, const float* centres, int64_t dims,
                    int32_t first, int32_t last, float* squares, int32_t* nearest) {
  constexpr int L = 16;
  typedef typename Vec<float, L>::Type V;
  typedef typename Vec<int32_t, L>::Type I;
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    V least = load_vec<V>(squares + i);
    I which = load_vec<I>(nearest + i);
    for (int32_t c = first; c < last; ++c) {
      V sum{};
      for (int64_t d = 0; d < dims; ++d) {
        const V away = load_vec<V>(points + d * stride + i) - spread<V>(centres[c * dims + d]);
        sum = fused<float>(away, away, sum);
      }
      const I nearer = sum < least;
      least = nearer ? sum : least;
      which = nearer ? spread<I>(c) : which;
    }
    store_vec(least, squares + i);
    store_vec(which, nearest + i);
  }
  for (; i < n; ++i) {
    for (int32_t c = first; c < last; ++c) {
      // The same as above, with the same rounding of each step.
      V sum{};
      for (int64_t d = 0; d < dims; ++d) {
        const V away = spread<V>(points[d * stride + i]) - spread<V>(centres[c * dims + d]);
        sum = fused<float>(away, away, sum);
      }
      if (sum[0] < squares[i]) {
        squares[i] = sum[0];
        nearest[i] = c;
      }
    }
  }
}

inline void edge_gradient(const double* weights, double row_term, const double* col_terms,
                          const double* row_vector, const double* col_vectors, int64_t stride, int64_t width,
                          int64_t n, double* __restrict out) {
  for (int64_t j = 0; j < n; ++j) out[j] = row_term + col_terms[j];
  for (int64_t e = 0; e < width; ++e) {
    const double twice = -2.0 * row_vector[e];
    const double* column = col_vectors + e * stride;
    for (int64_t j = 0; j < n; ++j) out[j] += twice * column[j];
  }
  for (int64_t j = 0; j < n; ++j) out[j] = weights[j] == 0.0 ? 0.0 : weights[j] < 0.0 ? -out[j] : out[j];
}

template <class C>
constexpr SpectralLinesOf<C> spectral_lines_of{similarities<C>,    forward<C>, backward<C>, sparse_forward<C>,
                                               sparse_backward<C>, inner<C>,   add<C>};

constexpr SpectralLines spectral_lines_of_this_level{spectral_lines_of<float>, spectral_lines_of<double>,
                                                     sums, nearest, edge_gradient};
