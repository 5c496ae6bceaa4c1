// The threads of the walk's CUDA kernel run as threads of the CPU that wait for each other where the kernel's
// do. The thread sanitizer reports an error if one thread writes and another reads without a wait between
// them. `make sanitize` builds and runs it.
#include "circuits/plan.h"
#include "random_tail.h"

#include <condition_variable>
#include <mutex>
#include <thread>

namespace {

using namespace modfast;

class Barrier {
 public:
  explicit Barrier(int64_t threads) : threads_(threads) {}

  // Waits for all threads; returns whether `holds` is true for any.
  bool any(bool holds) {
    std::unique_lock<std::mutex> lock(mutex_);
    holds_ |= holds;
    const int64_t round = round_;
    if (++waiting_ == threads_) {
      result_ = holds_;
      holds_ = false;
      waiting_ = 0;
      ++round_;
      over_.notify_all();
    } else {
      over_.wait(lock, [&] { return round != round_; });
    }
    return result_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable over_;
  int64_t threads_, waiting_ = 0, round_ = 0;
  bool holds_ = false, result_ = false;
};

// One thread's view of its block.
struct RunningBlock {
  int64_t thread, count;
  Barrier* barrier;

  int64_t threads() const { return count; }
  template <class F>
  void each(const F& f) const {
    f(thread);
  }
  template <class F>
  bool any(const F& f) const {
    return barrier->any(f(thread));
  }
  template <class F>
  void add_lanes(int64_t chunks, const F& f, double* sums) const {
    for (int64_t c = thread; c < chunks; c += count) {
      double sum = f(c, 0);
      for (int64_t lane = 1; lane < kInputs; ++lane) sum = sum + f(c, lane);
      sums[c] = sum;
    }
  }
  void wait() const { barrier->any(false); }
  void fetch(const double*) const {}
};

void forward(const Tail& tail) {
  for (size_t l = 0; l < tail.layers.size(); ++l) {
    for (int64_t row = 0; row < tail.layers[l].rows; ++row) {
      for (int64_t m = 0; m < tail.stride; ++m) {
        thread_forward(tail.layers[l], inputs_of(tail, l), tail.stride, row, m);
      }
    }
  }
}

void walk_all(const Tail& tail, const Bounds& bounds, int64_t threads) {
  for (size_t layer = tail.layers.size(); layer-- > 0;) {
    for (int64_t row = 0; row < tail.layers[layer].rows; ++row) {
      const Moves moves(tail, layer, row);
      if (!moves.after.reaches()) continue;
      const WalkPlan plan(tail, moves, layer, row, 0, tail.layers[layer].cols, bounds);
      std::vector<double> numbers(plan.numbers());
      const Walk walk = plan.walk(plan.tables().data(), numbers.data());
      Barrier barrier(threads);
      std::vector<std::thread> running;
      for (int64_t t = 0; t < threads; ++t) {
        running.emplace_back(
            [&, t] { walk_block(walk, RunningBlock{t, threads, &barrier}, {nullptr, 0, walk.room}); });
      }
      for (std::thread& each : running) each.join();
      forward(tail);
    }
  }
}

}  // namespace

int main() {
  constexpr int kTrials = 12;
  int64_t kept = 0, zeroed = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    const int64_t inputs = draw(1, 600);
    RandomTail one(draw(1, 3), inputs, draw(0, 1));
    forward(one.tail());
    RandomTail several = one;
    const Bounds bounds{static_cast<double>(inputs) * 0.1 * static_cast<double>(draw(1, 20)), 0.0,
                        trial % 2 == 0};
    walk_all(one.tail(), bounds, 1);
    walk_all(several.tail(), bounds, 4);
    check_same(several, one);
    for (const LayerNumbers& layer : one.layers) {
      for (const double weight : layer.weights) ++(weight == 0.0 ? zeroed : kept);
    }
  }
  check(kept > 50 && zeroed > 50, "weights kept", static_cast<double>(kept), 51);
  std::printf("circuit races: %d walks passed, 0 failed\n", kTrials);
}
