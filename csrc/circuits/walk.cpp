// The walk on the CPU.
//
// The trials of a row run one after the other, since each starts from the decision of the one before. To use
// several threads nevertheless, each thread takes a share of the inputs and makes a batch of trials before
// the threads synchronise. Each trial of a batch assumes that those before it in the batch are decided as
// most were lately; trials after a wrong guess are made again. A trial's outcome does not depend on its
// batch, so timing may decide whether to use batches: if other programs use the same cores, the threads wait
// long for each other and batches are slower.
#include "circuits/lines.h"
#include "circuits/moves.h"

#include <algorithm>
#include <chrono>
#include <cstddef>

namespace modfast {
namespace {

// Calls f(begin, end) for chunks of the inputs.
template <class F>
void over_chunks(const Tail& tail, int64_t threads, ParallelFor parallel_for, const F& f) {
  struct Context {
    const F& f;
    int64_t stride;
  } context{f, tail.stride};
  const int64_t chunks = (tail.stride + kChunk - 1) / kChunk;
  parallel_for(
      chunks, (chunks - 1) / threads + 1,
      [](int64_t first, int64_t last, void* given) {
        const auto& loop = *static_cast<const Context*>(given);
        for (int64_t c = first; c < last; ++c) {
          loop.f(c * kChunk, std::min(loop.stride, (c + 1) * kChunk));
        }
      },
      &context);
}

// The nonzero weights of some rows, with the inputs that they multiply.
struct Links {
  std::vector<Link> all;
  std::vector<size_t> starts{0};

  void add_row(const TailLayer& layer, int64_t row, const double* inputs, int64_t stride) {
    const double* weights = layer.weights + row * layer.cols;
    for (int64_t j = 0; j < layer.cols; ++j) {
      if (weights[j] != 0.0) all.push_back({weights[j], inputs + j * stride});
    }
    starts.push_back(all.size());
  }
};

void forward_rows(const Tail& tail, int64_t layer, int64_t first, int64_t last, int64_t threads,
                  ParallelFor parallel_for) {
  const TailLayer& at = tail.layers[layer];
  Links links;
  for (int64_t row = first; row < last; ++row) links.add_row(at, row, inputs_of(tail, layer), tail.stride);
  over_chunks(tail, threads, parallel_for, [&](int64_t begin, int64_t end) {
    for (int64_t row = first; row < last; ++row) {
      const size_t start = links.starts[row - first], count = links.starts[row - first + 1] - start;
      circuit_lines_in_use().forward(links.all.data() + start, count, at.bias[row], at.activation, at.slope,
                                     begin, end, at.pre + row * tail.stride, at.held + row * tail.stride);
    }
  });
}

void forward_layers(const Tail& tail, size_t first, int64_t threads, ParallelFor parallel_for) {
  for (size_t l = first; l < tail.layers.size(); ++l) {
    forward_rows(tail, l, 0, tail.layers[l].rows, threads, parallel_for);
  }
}

// Recomputes the state of a row's neuron and of all later layers from the present weights, which removes the
// accumulated rounding errors.
void forward_after(const Tail& tail, int64_t layer, int64_t row, int64_t threads, ParallelFor parallel_for) {
  forward_rows(tail, layer, row, row + 1, threads, parallel_for);
  forward_layers(tail, layer + 1, threads, parallel_for);
}

// Computes the sums over the logits that do not change, and lets `after` point to them.
std::vector<double> sum_still(const Tail& tail, const Moves& moves, bool accuracy, int64_t threads,
                              ParallelFor parallel_for, Downstream* after) {
  const auto stride = static_cast<size_t>(tail.stride);
  std::vector<const double*> still;
  for (const int64_t c : moves.still) still.push_back(tail.layers.back().pre + c * tail.stride);
  std::vector<double> memory((accuracy ? 7 : 3) * stride);
  double* part = memory.data();
  after->largest = part;
  after->sum = part + stride;
  after->logsumexp = part + 2 * stride;
  if (accuracy) {
    after->largest_before = part + 3 * stride;
    after->largest_after = part + 4 * stride;
  }
  const auto count = static_cast<int64_t>(still.size()), first = moves.still_before;
  over_chunks(tail, threads, parallel_for, [&](int64_t begin, int64_t end) {
    const auto& lines = circuit_lines_in_use();
    lines.logsumexp(still.data(), count, begin, end, part, part + stride, part + 2 * stride);
    if (!accuracy) return;
    double *sum = part + 5 * stride, *unused = part + 6 * stride;
    lines.logsumexp(still.data(), first, begin, end, part + 3 * stride, sum, unused);
    lines.logsumexp(still.data() + first, count - first, begin, end, part + 4 * stride, sum, unused);
  });
  return memory;
}

// Memory for the present outcome and for those of the trials of a batch.
class Outcomes {
 public:
  Outcomes(int64_t count, int64_t stride, bool accuracy) : memory_(count * stride * (accuracy ? 4 : 3)) {
    for (int64_t i = 0; i < count; ++i) {
      double* first = memory_.data() + i * stride * (accuracy ? 4 : 3);
      all_.push_back({first, first + stride, first + 2 * stride, accuracy ? first + 3 * stride : nullptr});
    }
  }
  const Outcome& present() const { return all_[present_]; }
  const Outcome& of_trial(int64_t t) const { return all_[slot(t)]; }
  void accept(int64_t t) { present_ = slot(t); }

 private:
  size_t slot(int64_t t) const { return static_cast<size_t>(t) + (static_cast<size_t>(t) >= present_); }

  std::vector<double> memory_;
  std::vector<Outcome> all_;
  size_t present_ = 0;
};

// One thread's scratch memory, reused from call to call.
struct Room {
  double *changes, *logits;
};
Room room_for(const Downstream& after) {
  thread_local std::vector<double> memory;
  const auto changes = static_cast<size_t>(1 + after.hidden_count) * kInputs;
  memory.resize(std::max(memory.size(), changes + static_cast<size_t>(after.others_count) * kInputs));
  return {memory.data(), memory.data() + changes};
}

// Decides by timing whether several threads make trials in batches, or this thread makes them one by one.
// Both ways are timed again now and then, the slower one more and more rarely.
class Pace {
 public:
  bool together() const { return together_; }
  // Whether several threads were faster; then the rest of a row's work uses them too.
  bool better() const { return better_; }

  // Records that some trials took some time.
  void note(int64_t trials, double seconds) {
    trials_ += trials;
    seconds_ += seconds;
    // A measurement of batches that takes far too long ends early.
    const bool hopeless = together_ && alone_ > 0.0 && seconds_ > 4 * kStretch * alone_;
    if (trials_ < kStretch && !hopeless) return;
    const double cost = seconds_ / static_cast<double>(trials_);
    (together_ ? batches_ : alone_) = cost;
    trials_ = 0;
    seconds_ = 0.0;
    if (--stretches_ > 0) return;
    const bool was_trial = together_ != better_;
    const bool better = batches_ > 0.0 && batches_ < alone_;
    wait_ = better != better_ ? 1 : std::min<int64_t>(2 * wait_, kLongest);
    better_ = better;
    // Use the faster way for a while, then measure the other way again.
    together_ = was_trial ? better_ : !better_;
    stretches_ = was_trial ? wait_ : 1;
  }

 private:
  static constexpr int64_t kStretch = 64, kLongest = 256;
  bool together_ = false, better_ = false;
  int64_t trials_ = 0, stretches_ = 1, wait_ = 1;
  double seconds_ = 0.0, alone_ = 0.0, batches_ = 0.0;
};

// The maximum number of trials in a batch, and of numbers in memory: larger batches gain little.
constexpr int64_t kMostTrials = 32;
constexpr int64_t kMostNumbers = int64_t{1} << 20;

}  // namespace

void tail_forward(const Tail& tail, ParallelFor parallel_for) {
  forward_layers(tail, 0, tail.threads, parallel_for);
}

void walk_row(const Tail& tail, int64_t layer, int64_t row, int64_t begin, int64_t end, const Bounds& bounds,
              ParallelFor parallel_for) {
  const TailLayer& at = tail.layers[layer];
  double* weights = at.weights + row * at.cols;
  std::vector<int64_t> columns;
  for (int64_t j = begin; j < end; ++j) {
    if (weights[j] != 0.0) columns.push_back(j);
  }
  if (columns.empty()) return;
  const Moves moves(tail, layer, row);
  thread_local Pace pace;
  const int64_t threads = pace.better() ? tail.threads : 1;
  if (!moves.after.reaches()) {
    for (const int64_t j : columns) weights[j] = 0.0;
    forward_after(tail, layer, row, threads, parallel_for);
    return;
  }
  Downstream after = moves.after;
  const auto still = sum_still(tail, moves, bounds.accuracy, threads, parallel_for, &after);

  const int64_t chunks = (tail.stride + kChunk - 1) / kChunk;
  const int64_t most = std::min(chunks, tail.threads) == 1
                           ? 1
                           : std::clamp<int64_t>(kMostNumbers / tail.stride, 1, kMostTrials);
  Outcomes outcomes(most + 1, tail.stride, bounds.accuracy);
  over_chunks(tail, threads, parallel_for, [&](int64_t from, int64_t to) {
    const Outcome& present = outcomes.present();
    std::copy(at.pre + row * tail.stride + from, at.pre + row * tail.stride + to, present.pre + from);
    std::copy(after.held + from, after.held + to, present.held + from);
    const Room room = room_for(after);
    circuit_lines_in_use().losses(after, from, to, present.held, present.losses, present.right, room.changes,
                                  room.logits);
  });

  const double* inputs = inputs_of(tail, layer);
  std::vector<Verdict> verdicts(static_cast<size_t>(most * chunks));
  bool any_zeroed = false;
  double rate = 1.0;  // the share of trials that stay zero, a moving average
  int64_t batch = 1;
  for (size_t next = 0; next < columns.size();) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    const bool together = most > 1 && pace.together();
    const int64_t size =
        together ? std::min<int64_t>({batch, most, static_cast<int64_t>(columns.size() - next)}) : 1;
    const bool guess = rate >= 0.5;
    over_chunks(tail, together ? tail.threads : 1, parallel_for, [&](int64_t from, int64_t to) {
      const Room room = room_for(after);
      for (int64_t t = 0; t < size; ++t) {
        const int64_t j = columns[next + t];
        const Trial trial{&after,
                          weights[j],
                          inputs + j * tail.stride,
                          guess && t > 0 ? outcomes.of_trial(t - 1) : outcomes.present(),
                          outcomes.of_trial(t),
                          room.changes,
                          room.logits};
        verdicts[t * chunks + from / kChunk] = circuit_lines_in_use().attempt(trial, from, to);
      }
    });
    int64_t made = 0, accepted = -1;
    bool as_guessed = true;
    for (; made < size && as_guessed; ++made) {
      Verdict all;
      for (int64_t c = 0; c < chunks; ++c) {
        const Verdict& part = verdicts[made * chunks + c];
        all.loss += part.loss;
        all.right += part.right;
        all.moved = all.moved || part.moved;
      }
      // A trial that changes no activation is accepted without a comparison, which rounding might decide.
      const bool stays =
          !all.moved || (all.loss <= bounds.loss && (!bounds.accuracy || all.right >= bounds.right));
      if (stays) {
        weights[columns[next + made]] = 0.0;
        accepted = made;
      }
      as_guessed = stays == guess;
      rate += ((stays ? 1.0 : 0.0) - rate) / 8;
    }
    if (accepted >= 0) {
      outcomes.accept(accepted);
      any_zeroed = true;
    }
    next += made;
    if (together) batch = as_guessed ? 2 * size : std::max<int64_t>(1, (size + made) / 2);
    if (most > 1) pace.note(made, std::chrono::duration<double>(Clock::now() - start).count());
  }
  if (!any_zeroed) return;
  forward_after(tail, layer, row, threads, parallel_for);
}

}  // namespace modfast
