// The work of one thread of the walk's CUDA kernels, and how the threads of a block make the trials of a row
// together; see energy/loss_threads.h. Only synchronisation and exchange of numbers within a warp are in
// walk.cu.
//
// Each thread computes on its own inputs, so threads wait for each other only where the losses are added up.
// They are added up as on the CPU, by lanes of chunks of inputs: this gives the same bits, hence the same
// decisions.
#pragma once

#include "circuits/downstream.h"

#include <cstdint>

namespace modfast {

#if defined(__CUDACC__)
#define MODFAST_EACH __device__ inline
#else
#define MODFAST_EACH inline
#endif

template <class V>
struct Bits;
template <>
struct Bits<double> {
  using Type = uint64_t;
};
#include "circuits/math.inl"

// A row's walk, the argument of the kernel. All pointers are to the device's memory.
struct Walk {
  Downstream after;
  const double* pre = nullptr;     // the walked neuron's pre-activations before the row
  double* weights = nullptr;       // the weights of the row
  const double* inputs = nullptr;  // the inputs that they multiply
  int64_t begin = 0, end = 0;      // columns
  int64_t stride = 0;
  const double* logits = nullptr;             // of all classes
  const int64_t* still = nullptr;             // the other classes whose logits do not change
  int64_t still_count = 0, still_before = 0;  // how many there are, and how many come before the label
  // `after` points to these: largest, sum, logsumexp; for accuracy also largest before and after the label.
  double* still_sums = nullptr;
  Bounds bounds;
  double* room = nullptr;  // memory for room_of numbers
};

MODFAST_HD inline int64_t chunks_of(int64_t stride) { return (stride + kChunk - 1) / kChunk; }
MODFAST_HD inline int64_t places_of(const Downstream& after) {
  return after.entries + after.hidden_count + after.others_count;
}
MODFAST_HD inline int64_t numbers_of_outcome(const Walk& walk) {
  return (walk.bounds.accuracy ? 4 : 3) * walk.stride;
}
// How many numbers the trials need memory for: the present outcome and that of a trial, sums of losses and of
// correct answers by chunk, and each thread's column of changes and logits.
inline int64_t room_of(const Walk& walk, int64_t threads) {
  return 2 * numbers_of_outcome(walk) + 2 * chunks_of(walk.stride) + places_of(walk.after) * threads;
}

// Allocates from shared memory while there is enough, then from the device's memory.
struct Room {
  double* near;
  int64_t near_left;
  double* far;

  MODFAST_EACH double* take(int64_t numbers) {
    double*& from = numbers <= near_left ? near : far;
    if (numbers <= near_left) near_left -= numbers;
    double* taken = from;
    from += numbers;
    return taken;
  }
};

// Sums over the logits that do not change, for input m.
struct StillSum {
  double largest, sum;
};
MODFAST_EACH StillSum sum_still(const Walk& walk, int64_t begin, int64_t end, int64_t m) {
  StillSum of{-__builtin_inf(), 0.0};
  for (int64_t c = begin; c < end; ++c) {
    of.largest = larger(of.largest, walk.logits[walk.still[c] * walk.stride + m]);
  }
  for (int64_t c = begin; c < end; ++c) {
    of.sum = of.sum + exp_of(walk.logits[walk.still[c] * walk.stride + m] - of.largest);
  }
  return of;
}
MODFAST_EACH void thread_sum_still(const Walk& walk, int64_t m) {
  const StillSum all = sum_still(walk, 0, walk.still_count, m);
  double* to = walk.still_sums + m;
  to[0] = all.largest;
  to[walk.stride] = all.sum;
  if (walk.still_count > 0) to[2 * walk.stride] = all.largest + log_of(all.sum);
  if (!walk.bounds.accuracy) return;
  to[3 * walk.stride] = sum_still(walk, 0, walk.still_before, m).largest;
  to[4 * walk.stride] = sum_still(walk, walk.still_before, walk.still_count, m).largest;
}

// A thread's memory for the changes and the logits of its present input.
struct Places {
  double *changes, *logits;
  int64_t step;
};

MODFAST_EACH void thread_begin(const Walk& walk, const Outcome& to, const Places& places, int64_t m) {
  thread_sum_still(walk, m);
  to.pre[m] = walk.pre[m];
  to.held[m] = walk.after.held[m];
  to.losses[m] = loss_of<double>(walk.after, m, to.held[m], places.changes, places.logits, places.step,
                                 to.right ? to.right + m : nullptr);
}

// Sets a weight to zero on input m: computes the outcome, and returns whether the neuron's activation
// changes.
MODFAST_EACH bool thread_try(const Walk& walk, double weight, double input, const Outcome& from,
                             const Outcome& to, const Places& places, int64_t m) {
  const double held = from.held[m], pre = from.pre[m] - input * weight;
  const double now = activate(pre, walk.after.activation, walk.after.slope);
  to.pre[m] = pre;
  to.held[m] = now;
  if (now != held) {
    to.losses[m] = loss_of<double>(walk.after, m, now, places.changes, places.logits, places.step,
                                   to.right ? to.right + m : nullptr);
    return true;
  }
  to.losses[m] = from.losses[m];
  if (to.right) to.right[m] = from.right[m];
  return false;
}

// The sum over one lane of a chunk.
MODFAST_EACH double thread_lane_sum(const double* numbers, int64_t stride, int64_t chunk, int64_t lane) {
  const int64_t begin = chunk * kChunk, end = begin + kChunk < stride ? begin + kChunk : stride;
  double sum = 0.0;
  for (int64_t m = begin + lane; m < end; m += kInputs) sum = sum + numbers[m];
  return sum;
}

// Returns the first column from j on whose weight is not zero.
MODFAST_EACH int64_t next_live(const Walk& walk, int64_t j) {
  while (j < walk.end && walk.weights[j] == 0.0) ++j;
  return j;
}

// Makes all trials of a row. Every thread of the block runs this function, with the same values in all
// variables. Block defines how the threads work together:
//   threads()                         the number of threads
//   each(f)                           calls f(thread)
//   any(f)                            waits for all threads; returns whether f(thread) is true for any
//   add_lanes(chunks, f, sums)        sums[chunk] = f(chunk, lane), added up over the lanes in order
//   wait()                            waits for all threads
//   fetch(pointer)                    prefetches what is read soon
// Each trial needs two waits. The first, any(), waits for the losses: add_lanes reads them, and they are not
// written again before the second wait. The second waits for the sums of chunks, which every thread then adds
// up for itself; they are not written again before the next any(). A weight is read before any(), and written
// after it.
template <class Block>
MODFAST_EACH void walk_block(const Walk& walk, const Block& block, Room room) {
  const int64_t stride = walk.stride, threads = block.threads(), chunks = chunks_of(stride);
  const bool accuracy = walk.bounds.accuracy;
  double *loss_sums = room.take(chunks), *right_sums = room.take(chunks);
  const auto outcome_at = [&](double* first) {
    return Outcome{first, first + stride, first + 2 * stride, accuracy ? first + 3 * stride : nullptr};
  };
  const int64_t numbers = numbers_of_outcome(walk);
  double *present = room.take(numbers), *trial = room.take(numbers);
  double* columns = room.take(places_of(walk.after) * threads);
  const auto places_for = [&](int64_t thread) {
    const int64_t logits = walk.after.entries + walk.after.hidden_count;
    return Places{columns + thread, columns + logits * threads + thread, threads};
  };

  block.each([&](int64_t thread) {
    for (int64_t m = thread; m < stride; m += threads) {
      thread_begin(walk, outcome_at(present), places_for(thread), m);
    }
  });
  for (int64_t j = next_live(walk, walk.begin), next; j < walk.end; j = next) {
    next = next_live(walk, j + 1);
    const double weight = walk.weights[j];
    const bool moved = block.any([&](int64_t thread) {
      const Places places = places_for(thread);
      bool any = false;
      for (int64_t m = thread; m < stride; m += threads) {
        if (next < walk.end) block.fetch(walk.inputs + next * stride + m);
        any |= thread_try(walk, weight, walk.inputs[j * stride + m], outcome_at(present), outcome_at(trial),
                          places, m);
      }
      return any;
    });
    bool stays = true;  // if no activation changes, without a comparison, which rounding might decide
    if (moved) {
      const auto add_lanes = [&](const double* numbers, double* sums) {
        block.add_lanes(
            chunks,
            [&](int64_t chunk, int64_t lane) { return thread_lane_sum(numbers, stride, chunk, lane); }, sums);
      };
      add_lanes(outcome_at(trial).losses, loss_sums);
      if (accuracy) add_lanes(outcome_at(trial).right, right_sums);
      block.wait();
      double loss = 0.0, right = 0.0;
      for (int64_t c = 0; c < chunks; ++c) {
        loss = loss + loss_sums[c];
        if (accuracy) right = right + right_sums[c];
      }
      stays = loss <= walk.bounds.loss && (!accuracy || right >= walk.bounds.right);
    }
    if (!stays) continue;
    block.each([&](int64_t thread) {
      if (thread == 0) walk.weights[j] = 0.0;
    });
    double* const before = present;
    present = trial;
    trial = before;
  }
}

// Computes one row of a layer on input m, from the weights that are not zero.
MODFAST_EACH void thread_forward(const TailLayer& layer, const double* inputs, int64_t stride, int64_t row,
                                 int64_t m) {
  const double* weights = layer.weights + row * layer.cols;
  double x = 0.0 + layer.bias[row];
  for (int64_t j = 0; j < layer.cols; ++j) {
    if (weights[j] != 0.0) x = x + inputs[j * stride + m] * weights[j];
  }
  layer.pre[row * stride + m] = x;
  layer.held[row * stride + m] = activate(x, layer.activation, layer.slope);
}

#undef MODFAST_EACH

}  // namespace modfast
