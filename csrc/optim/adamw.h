// The arithmetic of one step of AdamW (arXiv 1711.05101, as torch.optim.AdamW has it) for one weight, with
// the gradient of the enmeshment loss. The CPU and the CUDA kernels share it; see modfast/reference/optim.py.
//
// The operations and their order are those of torch.optim.AdamW after EnmeshmentLoss.accumulate_grad_, so
// that the weights agree for as long as rounding allows. Every level of instructions rounds alike: no
// contraction.
#pragma once

#include "common/enmeshment.h"

#include <math.h>
#include <cstdint>
#include <cstring>

namespace modfast {

// What a caller chooses for all weights of a call.
struct AdamWOptions {
  double lr, beta1, beta2, eps, weight_decay;
  double slope;  // of the enmeshment of each weight of the loss
  bool stochastic_rounding;
};

// What one step multiplies by, for all elements of a weight. F: float or double.
template <class F>
struct AdamWFactors {
  F inside, across;  // the enmeshment's gradient is the weight times one of these
  F decay;           // of the weight
  F beta1, beta2;
  F rest1, rest2;  // 1 - beta1 and 1 - beta2
  F root;          // of the inverse of the second moment's bias correction
  F eps;
  F size;  // the learning rate over the first moment's bias correction
};

MODFAST_HD inline float root_of(float number) { return sqrtf(number); }
MODFAST_HD inline double root_of(double number) { return sqrt(number); }

// step: the number of this step, from 1. slopes: the factors of weights inside clusters and across them.
template <class F>
MODFAST_HD inline AdamWFactors<F> adamw_factors(const AdamWOptions& options, double step, Split slopes) {
  const double correction1 = 1.0 - pow(options.beta1, step), correction2 = 1.0 - pow(options.beta2, step);
  return {static_cast<F>(slopes.inside),
          static_cast<F>(slopes.across),
          static_cast<F>(1.0 - options.lr * options.weight_decay),
          static_cast<F>(options.beta1),
          static_cast<F>(options.beta2),
          static_cast<F>(1.0 - options.beta1),
          static_cast<F>(1.0 - options.beta2),
          static_cast<F>(1.0 / root_of(correction2)),
          static_cast<F>(options.eps),
          static_cast<F>(options.lr / correction1)};
}

// The gradient of the loss at one weight, added to the gradient at hand. Where F cannot hold the factors (for
// very small or very large weights), the caller takes the sum in double; see fits_in_float.
template <class F>
MODFAST_HD inline F enmeshed(F weight, F grad, F factor) {
  return grad + weight * factor;
}

// The new weight, given its new moments.
template <class F>
MODFAST_HD inline F moved(const AdamWFactors<F>& f, F weight, F mean, F square) {
  return weight * f.decay - mean * f.size / (root_of(square) * f.root + f.eps);
}

// One step for one weight; mean and square are its moments.
template <class F>
MODFAST_HD inline F adamw_step(const AdamWFactors<F>& f, F weight, F grad, F* mean, F* square) {
  *mean = *mean + (grad - *mean) * f.rest1;
  *square = *square * f.beta2 + grad * grad * f.rest2;
  return moved(f, weight, *mean, *square);
}

// A hash of 32 bits; constants from https://github.com/skeeto/hash-prospector.
MODFAST_HD inline uint32_t hash32(uint32_t number) {
  number ^= number >> 16;
  number *= 0x21f0aaadu;
  number ^= number >> 15;
  number *= 0x735a2d97u;
  return number ^ number >> 15;
}

// The number of a step as an integer, if it fits into one.
MODFAST_HD inline uint32_t step_bits(double number) {
  return number >= 0.0 && number < 4294967296.0 ? static_cast<uint32_t>(number) : 0u;
}

// The key of the random bits for a weight's place in its call and the number of the step.
MODFAST_HD inline uint32_t rounding_key(uint32_t place, uint32_t step) {
  return hash32(hash32(place) ^ step);
}

// Rounds to one of the two neighbours, with the probabilities that keep the mean. offset: of the element from
// the weight's first, in elements. Infinities and NaN stay what they are.
MODFAST_HD inline BFloat round_stochastically(float value, uint32_t offset, uint32_t key) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  BFloat result;
  if ((bits & 0x7f800000u) == 0x7f800000u) {
    narrow(value, result);
  } else {
    result.bits = static_cast<uint16_t>((bits + (hash32(offset ^ key) >> 16)) >> 16);
  }
  return result;
}

}  // namespace modfast
