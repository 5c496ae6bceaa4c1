// Tests of the work of the walk's CUDA kernels' threads, called on the CPU for every thread in turn, as the
// kernels call them: weights and states must be those of the CPU's walk, bit for bit. Only synchronisation
// and exchange of numbers within a warp are not tested here; test_circuits_races.cpp tests synchronisation.
// `make sanitize` builds and runs it.
#include "circuits/plan.h"
#include "random_tail.h"

#include <memory>

namespace {

using namespace modfast;

void in_turn(int64_t count, int64_t grain, LoopBody body, void* context) {
  for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(begin + grain, count), context);
}

// Runs threads one after the other, from the first or from the last.
struct BlockInTurn {
  int64_t count;
  bool backward;

  int64_t threads() const { return count; }
  template <class F>
  void each(const F& f) const {
    for (int64_t t = 0; t < count; ++t) f(backward ? count - 1 - t : t);
  }
  template <class F>
  bool any(const F& f) const {
    bool holds = false;
    each([&](int64_t thread) { holds |= f(thread); });
    return holds;
  }
  template <class F>
  void add_lanes(int64_t chunks, const F& f, double* sums) const {
    for (int64_t c = 0; c < chunks; ++c) {
      double sum = f(c, 0);
      for (int64_t lane = 1; lane < kInputs; ++lane) sum = sum + f(c, lane);
      sums[c] = sum;
    }
  }
  void wait() const {}
  void fetch(const double* pointer) const {
    const volatile double* read = pointer;
    static_cast<void>(*read);
  }
};

void forward_rows(const Tail& tail, int64_t layer, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    for (int64_t m = 0; m < tail.stride; ++m) {
      thread_forward(tail.layers[layer], inputs_of(tail, layer), tail.stride, row, m);
    }
  }
}

void forward_layers(const Tail& tail, int64_t first) {
  for (size_t l = first; l < tail.layers.size(); ++l) forward_rows(tail, l, 0, tail.layers[l].rows);
}

// As the binding does.
void walk_row_by_threads(const Tail& tail, int64_t layer, int64_t row, int64_t begin, int64_t end,
                         const Bounds& bounds) {
  const Moves moves(tail, layer, row);
  if (moves.after.reaches()) {
    const WalkPlan plan(tail, moves, layer, row, begin, end, bounds);
    const auto tables = plan.tables();
    const std::unique_ptr<double[]> numbers(new double[plan.numbers()]);
    const Walk walk = plan.walk(tables.data(), numbers.get());
    // All, half or none of the memory is shared memory.
    const int64_t threads = walk_threads(walk.stride), near_numbers = room_of(walk, threads) * draw(0, 2) / 2;
    const std::unique_ptr<double[]> near_memory(new double[near_numbers]);
    walk_block(walk, BlockInTurn{threads, draw(0, 1) == 1}, {near_memory.get(), near_numbers, walk.room});
  } else {
    double* weights = tail.layers[layer].weights + row * tail.layers[layer].cols;
    std::fill(weights + begin, weights + end, 0.0);
  }
  forward_rows(tail, layer, row, row + 1);
  forward_layers(tail, layer + 1);
}

int64_t kept = 0, zeroed = 0, bounds_found = 0;

void try_walk(int64_t depth, int64_t inputs) {
  RandomTail expected(depth, inputs, draw(0, 1));
  tail_forward(expected.tail(), in_turn);
  RandomTail found = expected;
  forward_layers(found.tail(), 0);
  check_same(found, expected);
  Bounds bounds{static_cast<double>(inputs) * 0.1 * static_cast<double>(draw(1, 20)), 0.0, draw(0, 2) == 0};
  bounds.right = static_cast<double>(draw(0, inputs));
  for (int64_t layer = depth; layer-- > 0;) {
    for (int64_t row = 0; row < expected.layers[layer].rows; ++row) {
      const int64_t cols = expected.layers[layer].cols, begin = draw(0, 3) ? 0 : draw(0, cols);
      const int64_t end = draw(0, 3) ? cols : draw(begin, cols);
      walk_row(expected.tail(), layer, row, begin, end, bounds, in_turn);
      walk_row_by_threads(found.tail(), layer, row, begin, end, bounds);
      check_same(found, expected);
    }
    for (const double weight : expected.layers[layer].weights) ++(weight == 0.0 ? zeroed : kept);
  }
}

// Decisions seldom depend on the last bit of the sum of losses. This test makes them: it finds the lowest
// bound under which the CPU's walk zeroes a weight, which must be the lowest of the threads' walk too.
void try_lowest_bound(int64_t inputs) {
  RandomTail given(draw(1, 3), inputs, draw(0, 1));
  tail_forward(given.tail(), in_turn);
  const int64_t layer = draw(0, static_cast<int64_t>(given.layers.size()) - 1);
  const int64_t row = draw(0, given.layers[layer].rows - 1), col = draw(0, given.layers[layer].cols - 1);
  if (given.layers[layer].weights[row * given.layers[layer].cols + col] == 0.0) return;
  const auto zeroes = [&](double bound, bool by_threads) {
    RandomTail tail = given;
    if (by_threads) {
      walk_row_by_threads(tail.tail(), layer, row, col, col + 1, {bound, 0.0, false});
    } else {
      walk_row(tail.tail(), layer, row, col, col + 1, {bound, 0.0, false}, in_turn);
    }
    return tail.layers[layer].weights[row * tail.layers[layer].cols + col] == 0.0;
  };
  if (zeroes(-1.0, false)) return;  // the weight has no effect
  double low = -1.0, high = 1e6;
  for (double middle = 0.0; low < middle || middle == 0.0;) {
    (zeroes(middle, false) ? high : low) = middle;
    middle = low + (high - low) / 2;
    if (middle == high) break;
  }
  check(zeroes(high, true), "zeroed under", 0.0, high);
  check(!zeroes(low, true), "kept under", 0.0, low);
  ++bounds_found;
}

}  // namespace

int main() {
  constexpr int kTrials = 120;
  for (int trial = 0; trial < kTrials; ++trial) try_walk(draw(1, 4), draw(1, draw(0, 4) ? 40 : 400));
  try_walk(3, 2100);  // several inputs for each thread
  for (int trial = 0; trial < kTrials; ++trial) try_lowest_bound(draw(1, 700));
  check(bounds_found > kTrials / 4, "lowest bounds", static_cast<double>(bounds_found), kTrials);
  check(kept > 500 && zeroed > 500, "weights kept", static_cast<double>(kept), 501);
  std::printf("circuit threads: %d walks passed, 0 failed\n", 2 * kTrials + 1);
}
