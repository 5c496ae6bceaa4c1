#include "common/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>

namespace modfast {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than the work and the wake-up of a thread take, and shorter than a scheduler's slice.
constexpr std::chrono::milliseconds kLate{1};
// As many calls as lose about what one wait has cost.
constexpr int64_t kFewest = 256, kMost = 4096;

// All threads share them, and each reads and writes them as they are: a lost update only makes a loop try
// again sooner or later.
std::atomic<int64_t> to_do_alone{0};
std::atomic<int64_t> next_to_do_alone{kFewest};

}  // namespace

void small_parallel_for(ParallelFor parallel_for, int64_t count, int64_t grain, LoopBody body,
                        void* context) {
  if (count <= grain) return parallel_for(count, grain, body, context);  // by one thread in any case
  const int64_t alone = to_do_alone.load(std::memory_order_relaxed);
  if (alone > 0) {
    to_do_alone.store(alone - 1, std::memory_order_relaxed);
    return body(0, count, context);
  }
  const Clock::time_point begin = Clock::now();
  parallel_for(count, grain, body, context);
  const bool late = Clock::now() - begin > kLate;
  const int64_t next = next_to_do_alone.load(std::memory_order_relaxed);
  if (late) to_do_alone.store(next, std::memory_order_relaxed);
  next_to_do_alone.store(std::clamp(late ? 2 * next : next / 2, kFewest, kMost), std::memory_order_relaxed);
}

int64_t calls_to_do_alone() { return to_do_alone.load(std::memory_order_relaxed); }

}  // namespace modfast
