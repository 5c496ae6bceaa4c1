// The work of one thread of a CUDA kernel, as plain functions of the thread's number: no intrinsic, no shared
// memory, no CUDA header. So a test on the CPU can call them for every thread in turn (tests/cpp), and the
// kernels in loss.cu only add up what the threads return.
//
// A matrix is cut into items, one for each block of kThreads threads. The threads of an item form rows of
// `across` threads; each takes kSteps rows of `vector` neighbouring columns.
#pragma once

#include "energy/energy.h"

#include <cstddef>
#include <cstdint>

namespace modfast {

constexpr int kThreads = 256;
constexpr int kSteps = 16;
constexpr int kKernelDims = 3;  // kernel dimensions that are not merged with the columns, at most

// The layout of a matrix: strides in elements.
struct Place {
  void* data;
  int64_t row, col;
  int64_t kernel[kKernelDims];
};

// The labels of the rows or of the columns, on the device, as PyTorch keeps them: int64, -1 for none.
struct LabelSource {
  const int64_t* labels;
  int64_t stride;
  LabelIndex index;

  MODFAST_HD int32_t at(int64_t line, int32_t none) const {
    const int64_t label = labels[index(line) * stride];
    // Labels cannot be rejected here; a label out of range must not be used as an index.
    return label < 0 || label >= none ? none : static_cast<int32_t>(label);
  }
};

// A matrix and its gradient, or another matrix that is read or written beside it, as arguments of a kernel.
struct Matrix {
  Place weight, grad;
  LabelSource row_labels, col_labels;
  int64_t rows, cols;
  int64_t kernel_size[kKernelDims];  // 1 where there is no kernel
  int64_t col_tiles, items, first_item;
  int32_t none;  // the label of rows and columns in no cluster: the number of clusters
  DType dtype;
  int32_t across;
  int32_t vector;  // how many numbers fit into 16 bytes, or 1
};

// The place at which a thread begins.
struct Spot {
  int64_t row, col, row_step;
};

MODFAST_HD inline Spot spot_of(const Matrix& m, int64_t item, int thread) {
  const int64_t down = kThreads / m.across;
  return {item / m.col_tiles * down * kSteps + thread / m.across,
          (item % m.col_tiles * m.across + thread % m.across) * m.vector, down};
}

// The numbers that a thread loads or stores at once, aligned so that one instruction suffices.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T numbers[V];
};

template <class T, int V>
MODFAST_HD inline Pack<T, V>* pack_at(const Place& place, int64_t offset, int64_t row, int64_t col) {
  return reinterpret_cast<Pack<T, V>*>(static_cast<T*>(place.data) + offset + row * place.row +
                                       col * place.col);
}

// Calls f(offset in the weight, offset in the gradient) for each position of the kernel.
template <class F>
MODFAST_HD inline void for_each_position(const Matrix& m, const F& f) {
  for (int64_t a = 0; a < m.kernel_size[0]; ++a) {
    for (int64_t b = 0; b < m.kernel_size[1]; ++b) {
      for (int64_t c = 0; c < m.kernel_size[2]; ++c) {
        f(a * m.weight.kernel[0] + b * m.weight.kernel[1] + c * m.weight.kernel[2],
          a * m.grad.kernel[0] + b * m.grad.kernel[1] + c * m.grad.kernel[2]);
      }
    }
  }
}

// Takes several rows at a time, so that as many loads are issued before the thread waits for the first.
constexpr int kAtOnce = 4;

template <class T, int V>
MODFAST_HD inline Split thread_energies(const Matrix& m, int64_t item, int thread) {
  const Spot spot = spot_of(m, item, thread);
  Split sum{0.0, 0.0};
  if (spot.col >= m.cols) return sum;
  int32_t col_labels[V];
  for (int v = 0; v < V; ++v) col_labels[v] = m.col_labels.at(spot.col + v, m.none);
  for_each_position(m, [&](int64_t offset, int64_t) {
    for (int step = 0; step < kSteps; step += kAtOnce) {
      Pack<T, V> packs[kAtOnce];
      int32_t row_labels[kAtOnce];
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t row = spot.row + (step + i) * spot.row_step;
        if (row >= m.rows) break;
        packs[i] = *pack_at<T, V>(m.weight, offset, row, spot.col);
        row_labels[i] = m.row_labels.at(row, m.none);
      }
      for (int i = 0; i < kAtOnce; ++i) {
        if (spot.row + (step + i) * spot.row_step >= m.rows) break;
        for (int v = 0; v < V; ++v) {
          const double w = widen(packs[i].numbers[v]);
          const bool same = same_cluster(row_labels[i], col_labels[v], m.none);
          sum.inside += same ? w * w : 0.0;
          sum.across += same ? 0.0 : w * w;
        }
      }
    }
  });
  return sum;
}

// grad = w * factor of its kind, or grad += that; F is the type of the products.
template <class F, class T, int V>
MODFAST_HD inline void thread_scale(const Matrix& m, int64_t item, int thread, Split factors, bool add) {
  const Spot spot = spot_of(m, item, thread);
  if (spot.col >= m.cols) return;
  int32_t col_labels[V];
  for (int v = 0; v < V; ++v) col_labels[v] = m.col_labels.at(spot.col + v, m.none);
  const F inside = static_cast<F>(factors.inside), across = static_cast<F>(factors.across);
  for_each_position(m, [&](int64_t weight_offset, int64_t grad_offset) {
    for (int step = 0; step < kSteps; step += kAtOnce) {
      Pack<T, V> weights[kAtOnce], grads[kAtOnce];
      int32_t row_labels[kAtOnce];
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t row = spot.row + (step + i) * spot.row_step;
        if (row >= m.rows) break;
        weights[i] = *pack_at<T, V>(m.weight, weight_offset, row, spot.col);
        if (add) grads[i] = *pack_at<T, V>(m.grad, grad_offset, row, spot.col);
        row_labels[i] = m.row_labels.at(row, m.none);
      }
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t row = spot.row + (step + i) * spot.row_step;
        if (row >= m.rows) break;
        for (int v = 0; v < V; ++v) {
          const bool same = same_cluster(row_labels[i], col_labels[v], m.none);
          put_scaled(weights[i].numbers[v], same ? inside : across, add, grads[i].numbers[v]);
        }
        *pack_at<T, V>(m.grad, grad_offset, row, spot.col) = grads[i];
      }
    }
  });
}

// Calls f<T, V> with the numbers' type T and how many are taken at once, V.
#define MODFAST_BY_KIND(matrix, call)                                                     \
  switch ((matrix).dtype) {                                                               \
    case DType::float32: return (matrix).vector > 1 ? call(float, 4) : call(float, 1);    \
    case DType::float64: return (matrix).vector > 1 ? call(double, 2) : call(double, 1);  \
    case DType::float16: return (matrix).vector > 1 ? call(Half, 8) : call(Half, 1);      \
    case DType::bfloat16: return (matrix).vector > 1 ? call(BFloat, 8) : call(BFloat, 1); \
  }

MODFAST_HD inline Split thread_energies(const Matrix& m, int64_t item, int thread) {
#define MODFAST_CALL(T, V) thread_energies<T, V>(m, item, thread)
  MODFAST_BY_KIND(m, MODFAST_CALL)
#undef MODFAST_CALL
  return {0.0, 0.0};
}

MODFAST_HD inline void thread_scale(const Matrix& m, int64_t item, int thread, Split factors, bool add) {
#define MODFAST_CALL(T, V)                                                                \
  (fits_in_float(factors) ? thread_scale<Compute<T>, T, V>(m, item, thread, factors, add) \
                          : thread_scale<double, T, V>(m, item, thread, factors, add))
  MODFAST_BY_KIND(m, MODFAST_CALL)
#undef MODFAST_CALL
}

}  // namespace modfast
