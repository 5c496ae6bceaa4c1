#include "block.h"

#include "fibre.h"
#include "memory.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

namespace emulation {

Here here;

namespace {

enum class State { fresh, running, at_barrier, in_exchange, finished };

struct Thread {
  State state = State::fresh;
  int number = 0;  // what it gives to the others, and what it gets
  uint64_t bits = 0;
  const char* kind = "";
  Exchange exchange = Exchange::sync;
  unsigned mask = 0;
  int source = 0;
  Site site{"", 0};
  Fibre* fibre = nullptr;
};

std::vector<Thread> threads;                 // of the present block
std::vector<int> runnable;                   // those that may run
std::vector<std::unique_ptr<Fibre>> fibres;  // all that were ever made
std::vector<Fibre*> spare;                   // those that no thread uses
const Launch* launched = nullptr;
int current = -1;
std::string failure;
constexpr size_t kGuardWords = kDynamicGuardBytes / 8;
std::vector<uint64_t> dynamic;  // shared memory, between guards

std::string text_of(dim3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) +
         ")";
}

dim3 index_of(int64_t number, dim3 size) {
  return {unsigned(number % size.x), unsigned(number / size.x % size.y), unsigned(number / size.x / size.y)};
}

std::string text_of(Site site) {
  const std::string file = site.file;
  const size_t folder = file.rfind('/');
  return (folder == std::string::npos ? file : file.substr(folder + 1)) + ":" + std::to_string(site.line);
}

void note_failure(int thread, const std::string& what) {
  if (!failure.empty()) return;
  failure = "kernel " + launched->kernel + ", block " + text_of(here.block) + ", thread " +
            text_of(index_of(thread, here.block_size)) + ": " + what;
}

bool same(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

// Where a thread is that has not come to where others wait for it.
std::string whereabouts(const Thread& thread) {
  switch (thread.state) {
    case State::finished: return "has returned";
    case State::at_barrier:
    case State::in_exchange:
      return std::string("waits at the ") + thread.kind + " of " + text_of(thread.site);
    default: return "has not come";
  }
}

void wait(State state) {
  Thread& thread = threads[current];
  thread.state = state;
  thread.fibre->leave();
}

void run_fibre() {
  launched->run_thread();
  threads[current].state = State::finished;
  threads[current].fibre->leave();
}

void step(int number) {
  Thread& thread = threads[number];
  if (thread.state == State::fresh) {
    if (spare.empty()) {
      fibres.push_back(std::make_unique<Fibre>());
      spare.push_back(fibres.back().get());
    }
    thread.fibre = spare.back();
    spare.pop_back();
    thread.fibre->begin(run_fibre);
  }
  thread.state = State::running;
  current = number;
  here.thread = index_of(number, here.block_size);
  thread.fibre->enter();
  current = -1;
  if (thread.state != State::finished) return;
  spare.push_back(thread.fibre);
  thread.fibre = nullptr;
}

void complete_barrier() {
  const Thread& first = threads[0];
  int total = 0;
  for (size_t t = 0; t < threads.size(); ++t) {
    const Thread& thread = threads[t];
    if (!same(thread.site, first.site) || std::strcmp(thread.kind, first.kind) != 0) {
      return note_failure(int(t), std::string("waits at the ") + thread.kind + " of " + text_of(thread.site) +
                                      ", but thread " + text_of(index_of(0, here.block_size)) + " at the " +
                                      first.kind + " of " + text_of(first.site));
    }
    total += thread.number != 0;
  }
  all_have_waited();
  for (size_t t = 0; t < threads.size(); ++t) {
    threads[t].number = total;
    threads[t].state = State::running;
    runnable.push_back(int(t));
  }
}

// Called when no thread may run.
void go_on() {
  int finished = 0, at_barrier = 0;
  for (const Thread& thread : threads) {
    finished += thread.state == State::finished;
    at_barrier += thread.state == State::at_barrier;
  }
  const int all = int(threads.size());
  if (at_barrier == all) return complete_barrier();
  // Somebody waits for somebody who does not come: the message names both.
  for (int t = 0; t < all; ++t) {
    const Thread& thread = threads[t];
    if (thread.state != State::in_exchange) continue;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int other = t / kWarpSize * kWarpSize + lane;
      if (!(thread.mask >> lane & 1u) || threads[other].state == State::in_exchange) continue;
      return note_failure(t, std::string("waits at the ") + thread.kind + " of " + text_of(thread.site) +
                                 ", whose mask names lane " + std::to_string(lane) + ", which " +
                                 whereabouts(threads[other]));
    }
  }
  for (int t = 0; t < all; ++t) {
    if (threads[t].state == State::at_barrier) continue;
    const auto waits = std::find_if(threads.begin(), threads.end(),
                                    [](const Thread& thread) { return thread.state == State::at_barrier; });
    return note_failure(t, whereabouts(threads[t]) + " without the " + waits->kind + " of " +
                               text_of(waits->site) + ", where " + std::to_string(at_barrier) +
                               " threads of the block wait");
  }
}

template <class Random>
void run_block(int64_t number, bool shuffled, Random& random) {
  here.block = index_of(number, here.grid_size);
  const int64_t count = int64_t(here.block_size.x) * here.block_size.y * here.block_size.z;
  for (Thread& thread : threads) {
    if (thread.fibre == nullptr) continue;  // only after a kernel that failed
    thread.fibre->drop();
    spare.push_back(thread.fibre);
  }
  threads.assign(count, Thread{});
  begin_shared(dynamic_shared(), launched->shared);
  runnable.resize(count);
  std::iota(runnable.rbegin(), runnable.rend(), 0);
  while (failure.empty()) {
    if (runnable.empty()) {
      if (std::all_of(threads.begin(), threads.end(),
                      [](const Thread& thread) { return thread.state == State::finished; }))
        return;
      go_on();
      if (!shuffled) std::reverse(runnable.begin(), runnable.end());
      continue;
    }
    if (shuffled) std::swap(runnable.back(), runnable[random() % runnable.size()]);
    const int next = runnable.back();
    runnable.pop_back();
    step(next);
  }
}

// Gives each lane of a mask what it gets, and lets all of them run.
void complete_exchange(int warp, unsigned mask) {
  unsigned votes = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (mask >> lane & 1u && threads[warp * kWarpSize + lane].bits != 0) votes |= 1u << lane;
  }
  std::array<uint64_t, kWarpSize> results{};
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(mask >> lane & 1u)) continue;
    const Thread& thread = threads[warp * kWarpSize + lane];
    switch (thread.exchange) {
      case Exchange::from_lane: results[lane] = threads[warp * kWarpSize + thread.source].bits; break;
      case Exchange::ballot: results[lane] = votes; break;
      case Exchange::match:
        for (int other = 0; other < kWarpSize; ++other) {
          if (mask >> other & 1u && threads[warp * kWarpSize + other].bits == thread.bits)
            results[lane] |= 1u << other;
        }
        break;
      case Exchange::sync: break;
    }
  }
  if (threads[current].exchange == Exchange::sync) warp_has_waited(warp);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(mask >> lane & 1u)) continue;
    const int number = warp * kWarpSize + lane;
    threads[number].bits = results[lane];
    threads[number].state = State::running;
    if (number != current) runnable.push_back(number);
  }
}

const char* name_of(Exchange kind) {
  switch (kind) {
    case Exchange::from_lane: return "shuffle";
    case Exchange::ballot: return "vote";
    case Exchange::match: return "match";
    case Exchange::sync: return "__syncwarp";
  }
  return "";
}

}  // namespace

bool runs_thread() { return current >= 0; }
int current_thread() { return current; }

void fail(const std::string& what) {
  note_failure(current, what);
  threads[current].state = State::at_barrier;  // it waits for ever
  threads[current].fibre->leave();
  __builtin_trap();  // a fibre that failed is never entered again
}

// Behind a guard.
void* dynamic_shared() { return dynamic.data() + kGuardWords; }

std::string run(const Launch& launch, uint64_t seed) {
  std::mt19937_64 random(seed);
  failure.clear();
  launched = &launch;
  here.block_size = launch.block;
  here.grid_size = launch.grid;
  dynamic.assign(launch.shared / 8 + 1 + 2 * kGuardWords,
                 0xfff7babababababa);  // numbers that are not numbers
  const int64_t blocks = int64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  std::vector<int64_t> order;
  if (seed != 0) {
    order.resize(blocks);
    std::iota(order.begin(), order.end(), int64_t{0});
    std::shuffle(order.begin(), order.end(), random);
  }
  for (int64_t i = 0; i < blocks && failure.empty(); ++i)
    run_block(seed != 0 ? order[i] : i, seed != 0, random);
  return failure;
}

int barrier(const char* kind, int number, Site site) {
  if (current < 0) return 0;
  Thread& thread = threads[current];
  thread.kind = kind;
  thread.number = number;
  thread.site = site;
  wait(State::at_barrier);
  return thread.number;
}

uint64_t exchange(Exchange kind, unsigned mask, uint64_t bits, int source, Site site) {
  const int number = current, warp = number / kWarpSize, lane = number % kWarpSize;
  Thread& thread = threads[number];
  thread.kind = name_of(kind);
  thread.exchange = kind;
  thread.mask = mask;
  thread.bits = bits;
  thread.source = source;
  thread.site = site;
  const auto fail_by_mask = [&](const std::string& why) {
    fail(std::string("the mask of the ") + thread.kind + " of " + text_of(site) + why);
  };
  const auto fail_by_lane = [&](int other, const std::string& why) {
    fail_by_mask(" names lane " + std::to_string(other) + ", which " + why);
  };
  if (!(mask >> lane & 1u)) fail_by_mask(" does not name its own lane " + std::to_string(lane));
  bool all = true;
  for (unsigned rest = mask & ~(1u << lane); rest != 0; rest &= rest - 1) {
    const int other = __builtin_ctz(rest), with_number = warp * kWarpSize + other;
    if (with_number >= int(threads.size())) fail_by_lane(other, "the block does not have");
    const Thread& with = threads[with_number];
    if (with.state == State::finished || with.state == State::at_barrier) {
      fail_by_lane(other, whereabouts(with));
    }
    if (with.state != State::in_exchange) {
      all = false;
    } else if (with.mask != mask || with.exchange != kind || !same(with.site, site)) {
      fail_by_lane(other, whereabouts(with) + (with.mask != mask ? " with another mask" : ""));
    }
  }
  if (kind == Exchange::from_lane && !(mask >> source & 1u)) {
    fail("the shuffle of " + text_of(site) + " reads from lane " + std::to_string(source) +
         ", which its mask does not name");
  }
  if (all) {
    complete_exchange(warp, mask);
  } else {
    wait(State::in_exchange);
  }
  return thread.bits;
}

int source_lane(Shuffle kind, int distance, int width) {
  const int lane = current % kWarpSize, first = lane / width * width, within = lane % width;
  int source = within;
  switch (kind) {
    case Shuffle::to: source = ((distance % width) + width) % width; break;
    case Shuffle::up: source = within - distance; break;
    case Shuffle::down: source = within + distance; break;
    case Shuffle::across: source = within ^ distance; break;
  }
  return source < 0 || source >= width ? lane : first + source;
}

}  // namespace emulation
