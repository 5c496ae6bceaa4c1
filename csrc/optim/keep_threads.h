// Which elements of a weight stay, as one thread of a CUDA kernel sees it.
//
// Each element has a rank of its own: the bits of its magnitude, and behind them those of its offset in
// memory, of which the first is the largest. The threshold is the rank of the last element that stays. It is
// found digit by digit, the upper ones first: a pass over the weight counts the next digits of those whose
// digits so far are the threshold's, and then the counts tell the threshold's. The search ends as soon as all
// of these stay, so that the digits of offsets are counted only if equal magnitudes lie on the border.
#pragma once

#include "optim/adamw_threads.h"

#include <cstdint>

namespace modfast::optim {

__extension__ typedef unsigned __int128 Rank;

// The search for a weight's threshold.
struct Kept {
  Rank threshold;  // as far as it is known; the other bits are 0
  int64_t wanted;  // how many of the elements with these upper bits stay
  int32_t open;    // how many bits are not known yet
  bool done;       // elements of at least this rank stay
};

MODFAST_HD inline int rank_bits(const Matrix& m) {
  const int bytes = m.dtype == DType::float64 ? 8 : m.dtype == DType::float32 ? 4 : 2;
  return 8 * bytes - 1 + m.offset_bits;
}

MODFAST_HD inline int next_digit_bits(const Kept& kept) {
  return kept.open < kDigitBits ? kept.open : kDigitBits;
}

MODFAST_HD inline Kept begin_search(const Matrix& m) {
  Kept kept{};
  kept.wanted = m.keep;
  kept.open = rank_bits(m);
  if (m.keep == 0) {
    kept.threshold = ~Rank{0};  // no element has this rank
    kept.done = true;
  }
  return kept;
}

// Sets the next digit of the threshold. larger: how many elements with the digits so far have larger ones,
// and equal: how many have this one.
MODFAST_HD inline void set_digit(Kept* kept, uint32_t digit, int64_t larger, int64_t equal) {
  kept->open -= next_digit_bits(*kept);
  kept->threshold |= Rank{digit} << kept->open;
  kept->wanted -= larger;
  kept->done = kept->open == 0 || kept->wanted == equal;
}

MODFAST_HD inline uint64_t last_offset(const Matrix& m) { return (uint64_t{1} << m.offset_bits) - 1; }

// Calls f(pack, row, offset of its first number in elements) for each pack of the thread.
template <class T, int V, class F>
MODFAST_HD inline void for_each_pack(const Matrix& m, const Spot& spot, const F& f) {
  T* numbers = begin_of<T>(m.weight, spot);
  for (int64_t row = spot.row; row < spot.end; row += spot.row_step) {
    f(reinterpret_cast<Pack<T, V>*>(numbers), row, numbers - static_cast<const T*>(m.weight.data));
    numbers += spot.row_step * m.weight.row;
  }
}

// Counts the next digits of the thread's elements, as far as their digits so far are the threshold's.
template <class T, int V>
MODFAST_HD inline void thread_count(const Matrix& m, const Kept& kept, int64_t item, int thread,
                                    uint32_t* bins) {
  const Rank threshold = kept.threshold, open = (Rank{1} << kept.open) - 1;
  // What most elements are told by.
  const auto least = static_cast<uint64_t>(threshold >> m.offset_bits);
  const auto most = static_cast<uint64_t>((threshold | open) >> m.offset_bits);
  const uint64_t last = last_offset(m);
  const int bits = next_digit_bits(kept), shift = kept.open - bits;
  for_each_pack<T, V>(m, spot_of(m, item, thread), [&](const Pack<T, V>* from, int64_t, int64_t offset) {
    const Pack<T, V> pack = *from;
    MODFAST_UNROLLED
    for (int v = 0; v < V; ++v) {
      const uint64_t magnitude = magnitude_bits(pack.numbers[v]);
      if (magnitude < least || magnitude > most) continue;
      const Rank rank =
          Rank{magnitude} << m.offset_bits | (last - static_cast<uint64_t>(offset + v * m.weight.col));
      if (((rank ^ threshold) & ~open) != 0) continue;
      count_one(bins + (static_cast<uint32_t>(rank >> shift) & ((1u << bits) - 1)));
    }
  });
}

// Sets the thread's elements that do not stay to 0, and returns the sums of squares of the others.
template <class T, int V>
MODFAST_HD inline Split thread_set_zeros(const Matrix& m, const Kept& kept, int64_t item, int thread) {
  const auto least = static_cast<uint64_t>(kept.threshold >> m.offset_bits);
  const uint64_t last = last_offset(m), until = last - (static_cast<uint64_t>(kept.threshold) & last);
  const Spot spot = spot_of(m, item, thread);
  Split sum{0.0, 0.0};
  if (spot.row >= spot.end) return sum;
  int32_t col_labels[V];
  MODFAST_UNROLLED
  for (int v = 0; v < V; ++v) col_labels[v] = m.sums ? m.col_labels.at(spot.col + v) : 0;
  for_each_pack<T, V>(m, spot, [&](Pack<T, V>* at, int64_t row, int64_t offset) {
    Pack<T, V> pack = *at;
    const int32_t row_label = m.sums ? m.row_labels.at(row) : 0;
    MODFAST_UNROLLED
    for (int v = 0; v < V; ++v) {
      const uint64_t magnitude = magnitude_bits(pack.numbers[v]);
      const bool stays = magnitude > least ||
                         (magnitude == least && static_cast<uint64_t>(offset + v * m.weight.col) <= until);
      if (!stays) {
        pack.numbers[v] = T{};
      } else if (m.sums) {
        const double number = widen(pack.numbers[v]);
        const bool same = row_label == col_labels[v];
        sum.inside += same ? number * number : 0.0;
        sum.across += same ? 0.0 : number * number;
      }
    }
    *at = pack;
  });
  return sum;
}

// The sums of squares of the thread's elements, in the order in which a step adds them.
template <class T, int V>
MODFAST_HD inline Split thread_squares(const Matrix& m, int64_t item, int thread) {
  const Spot spot = spot_of(m, item, thread);
  Split sum{0.0, 0.0};
  if (spot.row >= spot.end) return sum;
  int32_t col_labels[V];
  MODFAST_UNROLLED
  for (int v = 0; v < V; ++v) col_labels[v] = m.col_labels.at(spot.col + v);
  for_each_pack<T, V>(m, spot, [&](const Pack<T, V>* from, int64_t row, int64_t) {
    const Pack<T, V> pack = *from;
    const int32_t row_label = m.row_labels.at(row);
    MODFAST_UNROLLED
    for (int v = 0; v < V; ++v) {
      const double number = widen(pack.numbers[v]);
      const bool same = row_label == col_labels[v];
      sum.inside += same ? number * number : 0.0;
      sum.across += same ? 0.0 : number * number;
    }
  });
  return sum;
}

// Calls f<T, V> with the numbers' type T and how many are taken at once, V.
#define MODFAST_BY_NUMBERS(matrix, call)                                                                \
  switch ((matrix).dtype) {                                                                             \
    case DType::float32: return (matrix).vector > 1 ? call(float, kPackOf<float>) : call(float, 1);     \
    case DType::float64: return (matrix).vector > 1 ? call(double, kPackOf<double>) : call(double, 1);  \
    case DType::float16: return (matrix).vector > 1 ? call(Half, kPackOf<Half>) : call(Half, 1);        \
    case DType::bfloat16: return (matrix).vector > 1 ? call(BFloat, kPackOf<BFloat>) : call(BFloat, 1); \
  }

MODFAST_HD inline void thread_count(const Matrix& m, const Kept& kept, int64_t item, int thread,
                                    uint32_t* bins){
#define MODFAST_CALL(T, V) thread_count<T, V>(m, kept, item, thread, bins)
    MODFAST_BY_NUMBERS(m, MODFAST_CALL)
#undef MODFAST_CALL
}

MODFAST_HD inline Split thread_set_zeros(const Matrix& m, const Kept& kept, int64_t item, int thread) {
#define MODFAST_CALL(T, V) thread_set_zeros<T, V>(m, kept, item, thread)
  MODFAST_BY_NUMBERS(m, MODFAST_CALL)
#undef MODFAST_CALL
  return {0.0, 0.0};
}

MODFAST_HD inline Split thread_squares(const Matrix& m, int64_t item, int thread) {
#define MODFAST_CALL(T, V) thread_squares<T, V>(m, item, thread)
  MODFAST_BY_NUMBERS(m, MODFAST_CALL)
#undef MODFAST_CALL
  return {0.0, 0.0};
}

}  // namespace modfast::optim
