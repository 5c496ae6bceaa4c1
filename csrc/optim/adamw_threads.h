// The work of one thread of the CUDA kernels of a step of AdamW, as plain functions of the thread's number:
// no shared memory, no CUDA header. So a test on the CPU can call them for every thread in turn (tests/cpp).
//
// A weight is cut into items, one for each block of kThreads threads. The threads of an item form rows of
// `across` threads; each takes up to `steps` rows of `vector` neighbouring columns.
#pragma once

#include "common/numbers.h"
#include "optim/adamw.h"
#include "optim/digits.h"

#include <cstddef>
#include <cstdint>
#include <type_traits>

// The energy family has structures of the same purpose and of other contents: a namespace tells them apart.
namespace modfast::optim {

constexpr int kThreads = 256;
constexpr int kKernelDims = 3;  // dimensions beside rows and columns, at most

// Loops over a thread's own arrays, which lie in registers only if every index is known.
#if defined(__NVCC__) && defined(__CUDA_ARCH__)
#define MODFAST_UNROLLED _Pragma("unroll")
#else
#define MODFAST_UNROLLED
#endif

// How many neighbouring numbers a thread takes at once: 16 bytes of moments.
template <class T>
constexpr int kPackOf = sizeof(T) == 8 ? 2 : 4;

// The layout of a matrix: strides in elements.
struct Place {
  void* data;
  int64_t row, col;
  int64_t kernel[kKernelDims];
};

// The labels of rows or columns, on the device.
struct LabelSource {
  const int32_t* labels;
  LabelIndex index;

  MODFAST_HD int32_t at(int64_t line) const {
    // The division, which takes longer than the rest, is only for kernels whose positions share a label.
    return labels[index.divide == 1 && line < index.modulo ? line : index(line)];
  }
};

// A weight as an argument of a kernel.
struct Matrix {
  Place weight, grad, mean, square;
  float* step;                         // the number of steps before this one, or nullptr
  LabelSource row_labels, col_labels;  // of a weight of the loss
  int64_t rows, cols;
  int64_t last_cols;  // of the last row, which is shorter where one long row was cut into rows
  int64_t kernel_size[kKernelDims];
  int64_t col_tiles, tiles;  // in a row of tiles, and in all rows for one position of the kernel
  int64_t items, first_item;
  int64_t keep;         // how many elements stay, if `kept` is not -1
  int32_t kept;         // the weight's index among those of which not all elements stay, or -1
  int32_t slot;         // its place in the energies, or -1 outside of the loss
  int32_t place;        // its place among the weights of the call
  int32_t offset_bits;  // how many bits the offset of an element takes
  int32_t across, vector, steps;
  DType dtype, grad_dtype;
  bool leads;  // whether it is the first of those that share a step
  bool sums;   // whether the pass sums the weight's energies
};

// A weight with what the device itself knows of the step.
struct Weight {
  Matrix matrix;
  AdamWFactors<double> factors;
  float number;  // of the step, from 1
  uint32_t key;  // of the random bits
  bool wide;     // the enmeshment's gradient is added in double
  bool skip;     // nothing may change: the gradients are not finite
};

// The tensors of one number that the device reads.
struct Scalars {
  const void* lr;  // in place of the options' learning rate, or nullptr
  bool lr_is_double;
  const float *grad_scale, *found_inf;  // or nullptr
};

// What the device finds out for a weight before the step.
MODFAST_HD inline Weight weight_of(const Matrix& matrix, AdamWOptions options, const Scalars& scalars,
                                   const Split* energies) {
  if (scalars.lr != nullptr) {
    options.lr = scalars.lr_is_double ? *static_cast<const double*>(scalars.lr)
                                      : double{*static_cast<const float*>(scalars.lr)};
  }
  Split slopes{0.0, 0.0};
  if (matrix.slot >= 0 && energies != nullptr) {
    slopes = enmeshment_factors(energies[matrix.slot], options.slope);
  }
  Weight weight{};
  weight.matrix = matrix;
  weight.number = matrix.step == nullptr ? 1.0f : *matrix.step + 1.0f;
  weight.factors = adamw_factors<double>(options, weight.number, slopes);
  weight.key = rounding_key(static_cast<uint32_t>(matrix.place), step_bits(weight.number));
  weight.wide = matrix.dtype != DType::float64 && !fits_in_float(slopes);
  weight.skip = scalars.found_inf != nullptr && *scalars.found_inf != 0.0f;
  return weight;
}

template <class F>
MODFAST_HD inline AdamWFactors<F> rounded(const AdamWFactors<double>& f) {
  return {static_cast<F>(f.inside), static_cast<F>(f.across), static_cast<F>(f.decay),
          static_cast<F>(f.beta1),  static_cast<F>(f.beta2),  static_cast<F>(f.rest1),
          static_cast<F>(f.rest2),  static_cast<F>(f.root),   static_cast<F>(f.eps),
          static_cast<F>(f.size)};
}

// The numbers that a thread loads or stores at once, aligned so that one instruction suffices.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T numbers[V];
};

// The part of a thread: the rows from the first to before the end, the first column, and the position of the
// kernel.
struct Spot {
  int64_t row, end, row_step, col, kernel[kKernelDims];
};

MODFAST_HD inline Spot spot_of(const Matrix& m, int64_t item, int thread) {
  // No launch has more blocks than 31 bits can count, and divisions by 32 bits are much faster.
  const auto own = static_cast<uint32_t>(item), tiles = static_cast<uint32_t>(m.tiles);
  const auto of_row = static_cast<uint32_t>(m.col_tiles);
  const uint32_t position = own / tiles, tile = own % tiles;
  const int64_t down = kThreads / m.across;
  Spot spot{};
  spot.row = int64_t{tile / of_row} * down * m.steps + thread / m.across;
  spot.col = (int64_t{tile % of_row} * m.across + thread % m.across) * m.vector;
  spot.row_step = down;
  const int64_t rows = spot.col < m.last_cols ? m.rows : m.rows - 1, end = spot.row + down * m.steps;
  spot.end = end < rows ? end : rows;
  if (spot.col >= m.cols) spot.end = spot.row;
  if (position != 0) {
    const auto outer = static_cast<uint32_t>(m.kernel_size[1]),
               inner = static_cast<uint32_t>(m.kernel_size[2]);
    spot.kernel[0] = position / inner / outer;
    spot.kernel[1] = position / inner % outer;
    spot.kernel[2] = position % inner;
  }
  return spot;
}

// Where the numbers of a thread begin.
template <class T>
MODFAST_HD inline T* begin_of(const Place& place, const Spot& spot) {
  int64_t offset = spot.row * place.row + spot.col * place.col;
  for (int d = 0; d < kKernelDims; ++d) offset += spot.kernel[d] * place.kernel[d];
  return static_cast<T*>(place.data) + offset;
}

// One more of a kind; of the device's memory several threads count at once.
MODFAST_HD inline void count_one(uint32_t* count) {
#if defined(__CUDA_ARCH__)
  atomicAdd(count, 1u);
#else
  ++*count;
#endif
}

// The digits of magnitudes, the first bits first; bins count them.
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;

template <class T>
MODFAST_HD inline uint32_t leading_digit(T number) {
  return static_cast<uint32_t>(magnitude_bits(number) >> (8 * sizeof(T) - 1 - kDigitBits));
}

template <class T>
MODFAST_HD inline void store_new(float value, bool, uint32_t, uint32_t, T& to) {
  narrow(value, to);
}
MODFAST_HD inline void store_new(double value, bool, uint32_t, uint32_t, double& to) { to = value; }
MODFAST_HD inline void store_new(float value, bool stochastic, uint32_t offset, uint32_t key, BFloat& to) {
  if (stochastic) {
    to = round_stochastically(value, offset, key);
  } else {
    narrow(value, to);
  }
}

// Updates the thread's part of a weight, and returns the sums of the squares of the new numbers. With
// bins it counts the leading digits of these instead.
template <class T, class G, int V>
MODFAST_HD inline Split thread_update(const Weight& w, const Scalars& scalars, bool stochastic, int64_t item,
                                      int thread, uint32_t* bins) {
  using F = Compute<T>;
  const Matrix& m = w.matrix;
  const Spot spot = spot_of(m, item, thread);
  Split sum{0.0, 0.0};
  if (spot.row >= spot.end) return sum;
  const AdamWFactors<F> f = rounded<F>(w.factors);
  const bool of_loss = m.slot >= 0;
  int32_t col_labels[V];
  MODFAST_UNROLLED
  for (int v = 0; v < V; ++v) col_labels[v] = of_loss ? m.col_labels.at(spot.col + v) : 0;

  T* weights = begin_of<T>(m.weight, spot);
  G* grads = begin_of<G>(m.grad, spot);
  F* means = begin_of<F>(m.mean, spot);
  F* squares = begin_of<F>(m.square, spot);
  for (int64_t row = spot.row; row < spot.end; row += spot.row_step) {
    Pack<T, V> weight = *reinterpret_cast<const Pack<T, V>*>(weights);
    Pack<G, V> grad = *reinterpret_cast<const Pack<G, V>*>(grads);
    Pack<F, V> mean = *reinterpret_cast<const Pack<F, V>*>(means);
    Pack<F, V> square = *reinterpret_cast<const Pack<F, V>*>(squares);
    if (scalars.grad_scale != nullptr) {
      const Compute<G> scale = *scalars.grad_scale;
      MODFAST_UNROLLED
      for (int v = 0; v < V; ++v) {
        narrow(static_cast<Compute<G>>(widen(grad.numbers[v]) / scale), grad.numbers[v]);
      }
      *reinterpret_cast<Pack<G, V>*>(grads) = grad;
    }
    F slants[V];
    MODFAST_UNROLLED
    for (int v = 0; v < V; ++v) slants[v] = widen(grad.numbers[v]);
    bool same[V] = {};
    if (of_loss) {
      const int32_t row_label = m.row_labels.at(row);
      MODFAST_UNROLLED
      for (int v = 0; v < V; ++v) {
        same[v] = row_label == col_labels[v];
        const F old = widen(weight.numbers[v]);
        if (w.wide) {
          const double factor = same[v] ? w.factors.inside : w.factors.across;
          slants[v] = static_cast<F>(enmeshed<double>(old, slants[v], factor));
        } else {
          slants[v] = enmeshed(old, slants[v], same[v] ? f.inside : f.across);
        }
      }
    }
    const auto offset = static_cast<uint32_t>(weights - static_cast<const T*>(m.weight.data));
    MODFAST_UNROLLED
    for (int v = 0; v < V; ++v) {
      const F old = widen(weight.numbers[v]);
      const F value = adamw_step(f, old, slants[v], &mean.numbers[v], &square.numbers[v]);
      store_new(value, stochastic, offset + v * static_cast<uint32_t>(m.weight.col), w.key,
                weight.numbers[v]);
    }
    *reinterpret_cast<Pack<T, V>*>(weights) = weight;
    *reinterpret_cast<Pack<F, V>*>(means) = mean;
    *reinterpret_cast<Pack<F, V>*>(squares) = square;
    if (bins != nullptr) {
      MODFAST_UNROLLED
      for (int v = 0; v < V; ++v) count_one(bins + leading_digit(weight.numbers[v]));
    } else if (m.sums) {
      MODFAST_UNROLLED
      for (int v = 0; v < V; ++v) {
        const double number = widen(weight.numbers[v]);
        sum.inside += same[v] ? number * number : 0.0;
        sum.across += same[v] ? 0.0 : number * number;
      }
    }
    weights += spot.row_step * m.weight.row;
    grads += spot.row_step * m.grad.row;
    means += spot.row_step * m.mean.row;
    squares += spot.row_step * m.square.row;
  }
  return sum;
}

template <class T, class G>
MODFAST_HD inline Split thread_update(const Weight& w, const Scalars& scalars, bool stochastic, int64_t item,
                                      int thread, uint32_t* bins) {
  return w.matrix.vector > 1 ? thread_update<T, G, kPackOf<T>>(w, scalars, stochastic, item, thread, bins)
                             : thread_update<T, G, 1>(w, scalars, stochastic, item, thread, bins);
}

}  // namespace modfast::optim
