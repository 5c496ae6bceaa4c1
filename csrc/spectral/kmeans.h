// What k-means draws, the same on every device.
#pragma once

#include "common/half.h"
#include "spectral/spectral.h"

#include <cstdint>

namespace modfast {

// Starts run on a sample of at most this many points. The last iterations, from the best start, run on all.
constexpr int64_t kSample = 32768;

// Vigna's SplitMix64, which gives independent numbers for any seed.
struct Random {
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;
  uint64_t state;

  // The generator of a seed after so many numbers.
  MODFAST_HD static Random after(uint64_t seed, int64_t numbers) {
    return {seed + kStep * static_cast<uint64_t>(numbers)};
  }
  MODFAST_HD uint64_t next() {
    uint64_t z = (state += kStep);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  MODFAST_HD double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }  // in [0, 1)
  MODFAST_HD int64_t below(int64_t n) {
    const auto drawn = static_cast<int64_t>(uniform() * static_cast<double>(n));
    return drawn < n ? drawn : n - 1;
  }
};

// The seed of a start. Its first number gives the first centre, and each later one the next.
MODFAST_HD inline uint64_t seed_of_start(uint64_t seed, int64_t start) {
  return seed ^ (0xd1342543de82ef95u * static_cast<uint64_t>(start + 1));
}

inline int64_t sample_size(const KMeans& problem) {
  return problem.points < kSample ? problem.points : kSample;
}

// Point i of the sample: one random point from each of `size` ranges of `points` points, or each point.
MODFAST_HD inline int64_t sampled(uint64_t seed, int64_t points, int64_t size, int64_t i) {
  if (size == points) return i;
  const int64_t begin = i * points / size, end = (i + 1) * points / size;
  return begin + Random::after(seed, i).below(end - begin);
}

// The probability of a point, up to a factor, to become the next centre. least: a point whose squared
// distance from a centre is not larger differs only by rounding, and must not become another centre.
MODFAST_HD inline double share_of(float weight, float square, float least) {
  return square > least ? static_cast<double>(weight) * square : 0.0;
}

}  // namespace modfast
