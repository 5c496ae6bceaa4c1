// The inner loops of the optimiser's step, compiled once for each instruction set.
//
// Every level computes the same bits: sums have eight lanes at every level, and products are rounded before
// they are added (no contraction to fused multiply-add).
#pragma once

#include "optim/adamw.h"
#include "optim/digits.h"

#include <cstdint>
#include <type_traits>

namespace modfast {

// Sums of squares inside clusters and across them, in eight lanes each: an addition waits for the one before.
struct SplitLanes {
  alignas(64) double inside[8] = {}, across[8] = {};
};

inline Split sum_of(const SplitLanes& lanes) {
  Split sum{0.0, 0.0};
  for (int lane = 0; lane < 8; ++lane) {
    sum.inside += lanes.inside[lane];
    sum.across += lanes.across[lane];
  }
  return sum;
}

// Room for what a line's sieve writes out, 16 more than the line has numbers, and how many there were.
template <class T>
struct Sifted {
  uint32_t* places;
  T* numbers;
  int64_t found;
  int64_t above;  // how many were at least `high`
};

// Operations on weights as they are stored.
template <class T>
struct OptimLinesOf {
  void (*widen)(const T* from, Compute<T>* to, int64_t n);
  void (*narrow)(const Compute<T>* from, T* to, int64_t n);
  // sums.inside[j % 8] += w[j]^2 where labels[j] == label, else sums.across[j % 8] += w[j]^2
  void (*add_split)(const T* w, const int32_t* labels, int32_t label, int64_t n, SplitLanes* sums);
  // ++counts[first digit of w[j]]
  void (*count_digits)(const T* w, int64_t n, uint32_t* counts);
  // w[j] = made[j] where its magnitude is at least `high`, else 0. Of the latter, those that are at least
  // `low` or whose w[j] was not 0 are written out: place + j, and the number.
  void (*sift)(const T* made, T* w, int64_t n, BitsOf<T> low, BitsOf<T> high, uint32_t place, Sifted<T>* out);
};

// The update, in the type of the computations.
template <class F>
struct AdamWLines {
  // made[j] = w[j] after one step of AdamW; made may be w. If `loss` is set, the enmeshment's gradient is
  // added to grad, which stays as it is. Unless it is nullptr, the squares of made are added to sums, as by
  // add_split.
  void (*step)(const F* w, const F* grad, F* mean, F* square, const int32_t* labels, int32_t label,
               const AdamWFactors<F>& factors, bool loss, int64_t n, F* made, SplitLanes* sums);
};

struct OptimLines {
  OptimLinesOf<float> of_float;
  OptimLinesOf<double> of_double;
  OptimLinesOf<Half> of_half;
  OptimLinesOf<BFloat> of_bfloat;
  AdamWLines<float> in_float;
  AdamWLines<double> in_double;

  template <class T>
  const OptimLinesOf<T>& of() const {
    if constexpr (std::is_same_v<T, float>) return of_float;
    if constexpr (std::is_same_v<T, double>) return of_double;
    if constexpr (std::is_same_v<T, Half>) return of_half;
    if constexpr (std::is_same_v<T, BFloat>) return of_bfloat;
  }
  template <class F>
  const AdamWLines<F>& in() const {
    if constexpr (std::is_same_v<F, float>) return in_float;
    if constexpr (std::is_same_v<F, double>) return in_double;
  }
};

extern const OptimLines optim_lines_baseline;
#if defined(__x86_64__)
extern const OptimLines optim_lines_avx2;
extern const OptimLines optim_lines_avx512;
#endif

// The loops for the instruction set in use.
const OptimLines& optim_lines_in_use();

}  // namespace modfast
