// The arithmetic of the enmeshment loss for one weight, one label and one matrix. The CPU and the CUDA
// kernels share it, so tests on the CPU cover both.
//
// With I the energy (squared weight) inside clusters and A that across them, enmeshment is E = A / (I + A),
// and its derivative is 2 W (-A) / (I + A)^2 inside and 2 W I / (I + A)^2 across (arXiv 2409.15747, where
// C = 1 - E). Neither subtracts, so that a small E keeps its digits.
#pragma once

#include "common/half.h"

#include <cstdint>

namespace modfast {

// One number for each of the two kinds of weights.
struct Split {
  double inside, across;
};

// Labels are in [0, none]; a row or column of label none is in no cluster, so its weights always cross.
MODFAST_HD inline bool same_cluster(int32_t row_label, int32_t col_label, int32_t none) {
  return row_label == col_label && row_label != none;
}

// Column j of a matrix has label labels[j / divide % modulo]: a kernel's positions share their channel's.
struct LabelIndex {
  int64_t divide = 1, modulo = 1;
  MODFAST_HD int64_t operator()(int64_t j) const { return j / divide % modulo; }
};

MODFAST_HD inline double enmeshment_of(Split energy) {
  double total = energy.inside + energy.across;
  if (total == 0.0) total = 1.0;  // no weight: enmeshment 0 and, times weights of zero, gradient 0
  // Infinity times zero is NaN, so that an infinite weight inside a cluster is not hidden.
  return energy.across / total + 0.0 * energy.inside;
}

// The factor for each kind of weight: the weight times its factor is grad * dE/dW.
MODFAST_HD inline Split enmeshment_factors(Split energy, double grad) {
  double total = energy.inside + energy.across;
  if (total == 0.0) total = 1.0;
  const double step = 2.0 * grad / total;
  // As above, each of the two is NaN if the other energy is infinite.
  const double E = energy.across / total + 0.0 * energy.inside;
  const double C = energy.inside / total + 0.0 * energy.across;
  return {step * -E, step * C};
}

// Whether float can hold a factor to full precision (0, infinities and NaN too); else products are in double.
MODFAST_HD inline bool fits_in_float(double factor) {
  const double size = factor < 0.0 ? -factor : factor;
  // NaN and infinities fail the first comparison; they are the same in float.
  return !(size <= 1.7976931348623157e308) || size == 0.0 ||
         (size >= 1.17549435082228751e-38 && size <= 3.40282346638528860e38);
}
MODFAST_HD inline bool fits_in_float(Split factors) {
  return fits_in_float(factors.inside) && fits_in_float(factors.across);
}

// out + w * factor, or w * factor. Each operation is rounded to F, which is T's Compute type or double.
template <class F, class T>
MODFAST_HD inline void put_scaled(T w, F factor, bool add, T& out) {
  F product = static_cast<F>(widen(w)) * factor;
  if (add) product = static_cast<F>(widen(out)) + product;
  narrow(static_cast<Compute<T>>(product), out);
}

}  // namespace modfast
