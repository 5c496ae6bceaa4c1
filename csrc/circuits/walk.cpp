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

// The nonzero weights of some rows.
struct Links {
  std::vector<Link> all;
  std::vector<size_t> starts{0};

  void add_row(const TailLayer& layer, int64_t row) {
    const double* weights = layer.weights + row * layer.cols;
    for (int64_t j = 0; j < layer.cols; ++j) {
      if (weights[j] != 0.0) all.push_back({weights[j], j});
    }
    starts.push_back(all.size());
  }
};

// One thread's scratch memory, reused from call to call.
class Scratch {
 public:
  explicit Scratch(size_t numbers) {
    thread_local std::vector<double> memory;
    memory.resize(std::max(memory.size(), numbers));
    next_ = memory.data();
  }
  double* take(size_t numbers) {
    double* taken = next_;
    next_ += numbers;
    return taken;
  }
  // As many numbers as hold some values of another type.
  template <class T>
  static size_t numbers_for(int64_t values) {
    return (static_cast<size_t>(values) * sizeof(T) + sizeof(double) - 1) / sizeof(double);
  }
  template <class T>
  T* take_values(int64_t values) {
    return reinterpret_cast<T*>(take(numbers_for<T>(values)));
  }

 private:
  double* next_;
};

ChannelRoom room_for(const Channels& channels, int64_t later_changes, int64_t logits) {
  const auto places = static_cast<size_t>(channels.most_places) * kInputs;
  const auto changes = static_cast<size_t>(channels.most_changes + later_changes) * kInputs;
  const size_t terms = Scratch::numbers_for<Term>(channels.most_terms);
  const size_t still = Scratch::numbers_for<char>(channels.most_channels);
  Scratch scratch(3 * places + 2 * changes + static_cast<size_t>(logits) * kInputs + terms + 2 * still);
  ChannelRoom room{};
  room.sums = scratch.take(places);
  room.spare = scratch.take(places);
  room.held = scratch.take(places);
  room.logits = scratch.take(static_cast<size_t>(logits) * kInputs);
  room.terms = scratch.take_values<Term>(channels.most_terms);
  for (int i = 0; i < 2; ++i) {
    room.changes[i] = scratch.take(changes);
    room.still[i] = scratch.take_values<char>(channels.most_channels);
  }
  return room;
}

// From how many rows on their inputs are copied, and how many inputs at a time.
constexpr int64_t kManyRows = 8, kNear = 32;

// Computes channels first to before last of a layer before the linear ones.
void forward_channels(const Tail& tail, int64_t layer, int64_t first, int64_t last, int64_t threads,
                      ParallelFor parallel_for) {
  const TailLayer& at = tail.layers[layer];
  std::vector<Term> terms;
  std::vector<size_t> starts{0};
  for (int64_t row = first; row < last; ++row) {
    for (int64_t j = 0; j < at.cols; ++j) {
      const double weight = at.weights[row * at.cols + j];
      if (weight == 0.0) continue;
      terms.push_back(term_of(at, j, weight, read_by(at, row, j) * kInputs, 0));
    }
    starts.push_back(terms.size());
  }
  const Layout inputs = layout_of_inputs(tail, layer), pre = layout_of_pre(tail, layer),
               held = layout_of_held(tail, layer);
  Channels sizes;
  sizes.most_places = std::max({at.places, at.held_places, Moves::most_of_stages(at)});
  over_chunks(tail, threads, parallel_for, [&](int64_t begin, int64_t end) {
    const ChannelRoom room = room_for(sizes, 0, 0);
    // All channels of a block of inputs before the next block: they read the same numbers.
    for (int64_t m = begin; m < end; m += kInputs) {
      for (int64_t row = first; row < last; ++row) {
        const size_t start = starts[row - first];
        const ChannelSums sums{&at,
                               row,
                               terms.data() + start,
                               static_cast<int64_t>(starts[row - first + 1] - start),
                               inputs_of(tail, layer),
                               inputs.block,
                               at.pre + row * at.places * pre.neuron,
                               pre.block,
                               at.held + row * at.held_places * held.neuron,
                               held};
        circuit_lines_in_use().forward_channel(sums, room, m, m + kInputs);
      }
    }
  });
}

void forward_rows(const Tail& tail, int64_t layer, int64_t first, int64_t last, int64_t threads,
                  ParallelFor parallel_for) {
  const TailLayer& at = tail.layers[layer];
  if (layer < tail.first_plain) {
    forward_channels(tail, layer, first, last, threads, parallel_for);
    return;
  }
  Links links;
  for (int64_t row = first; row < last; ++row) links.add_row(at, row);
  const InputRows inputs{inputs_of(tail, layer), tail.stride, 0};
  const auto run = [&](const InputRows& from, int64_t begin, int64_t end) {
    for (int64_t row = first; row < last; ++row) {
      const size_t start = links.starts[row - first];
      const auto count = static_cast<int64_t>(links.starts[row - first + 1] - start);
      circuit_lines_in_use().forward(links.all.data() + start, count, from, at.bias[row], at.activation,
                                     at.slope, begin, end, at.pre + row * tail.stride,
                                     at.held + row * tail.stride);
    }
  };
  over_chunks(tail, threads, parallel_for, [&](int64_t begin, int64_t end) {
    if (last - first < kManyRows) {
      run(inputs, begin, end);
      return;
    }
    // All rows read the same numbers: those of a few inputs are copied to where they lie together.
    Scratch scratch(static_cast<size_t>(at.cols * kNear));
    double* near = scratch.take(static_cast<size_t>(at.cols * kNear));
    for (int64_t m = begin; m < end; m += kNear) {
      const int64_t count = std::min(kNear, end - m);
      for (int64_t j = 0; j < at.cols; ++j) {
        const double* from = inputs.rows + j * inputs.step + m;
        std::copy(from, from + count, near + j * kNear);
      }
      run({near, kNear, m}, m, m + count);
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
  for (const int64_t c : moves.still) still.push_back(tail.layers.back().held + c * tail.stride);
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

// Memory for the present outcome and for those of the trials of a batch. A neuron has one number before its
// activation and one after it for each input; a channel has as many as places.
class Outcomes {
 public:
  Outcomes(int64_t count, int64_t stride, int64_t places, int64_t held_places, bool accuracy)
      : memory_(count * stride * numbers(places, held_places, accuracy)) {
    double* next = memory_.data();
    const auto take = [&](int64_t numbers) {
      double* taken = next;
      next += numbers;
      return taken;
    };
    for (int64_t i = 0; i < count; ++i) {
      Outcome one{};
      one.pre = take(stride * places);
      one.held = take(stride * held_places);
      one.losses = take(stride);
      if (accuracy) one.right = take(stride);
      all_.push_back(one);
    }
  }
  static int64_t numbers(int64_t places, int64_t held_places, bool accuracy) {
    return places + held_places + (accuracy ? 2 : 1);
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

struct Room {
  double *changes, *logits;
};
Room room_for(const Downstream& after) {
  const auto changes = static_cast<size_t>(after.entries + after.hidden_count) * kInputs,
             logits = static_cast<size_t>(after.others_count) * kInputs;
  Scratch scratch(changes + logits);
  return {scratch.take(changes), scratch.take(logits)};
}

// The trials of one row, on some of the inputs.
class RowTrials {
 public:
  RowTrials(const Tail& tail, const Moves& moves, const Downstream& after, int64_t layer, int64_t row)
      : tail_(tail),
        at_(tail.layers[layer]),
        after_(after),
        layer_(layer),
        row_(row),
        inputs_(inputs_of(tail, layer)),
        in_(layout_of_inputs(tail, layer)),
        through_(moves.through) {
    through_.after = &after;
    if (!of_channel()) return;
    held_.resize(static_cast<size_t>(tail.stride * at_.held_places));
    through_.held = held_.data();
  }
  RowTrials(const RowTrials&) = delete;

  // Copies the state before the row, and computes its losses.
  void begin(const Outcome& present, int64_t from, int64_t to) {
    const CircuitLines& lines = circuit_lines_in_use();
    if (!of_channel()) {
      const double* pre = at_.pre + row_ * tail_.stride;
      std::copy(pre + from, pre + to, present.pre + from);
      std::copy(after_.held + from, after_.held + to, present.held + from);
      const Room room = room_for(after_);
      lines.losses(after_, from, to, present.held, present.losses, present.right, room.changes, room.logits);
      return;
    }
    const Layout pre = layout_of_pre(tail_, layer_), held = layout_of_held(tail_, layer_);
    for (int64_t m = from; m < to; m += kInputs) {
      copy_places(at_.pre, pre, at_.places, m, present.pre);
      copy_places(at_.held, held, at_.held_places, m, present.held);
      copy_places(at_.held, held, at_.held_places, m, held_.data());
    }
    lines.channel_losses(through_, room(), from, to, present);
  }

  Verdict attempt(int64_t column, double weight, const Outcome& before, const Outcome& outcome, int64_t from,
                  int64_t to) const {
    const CircuitLines& lines = circuit_lines_in_use();
    const double* input = inputs_ + read_by(at_, row_, column) * in_.neuron;
    if (!of_channel()) {
      const Room room = room_for(after_);
      return lines.attempt({&after_, weight, input, before, outcome, room.changes, room.logits}, from, to);
    }
    const int32_t* sources = at_.sources + column % at_.taps * at_.places;
    return lines.attempt_channel({&through_, weight, input, in_.block, sources, before, outcome, room()},
                                 from, to);
  }

 private:
  bool of_channel() const { return layer_ < tail_.first_plain; }
  ChannelRoom room() const { return room_for(through_, after_.hidden_count, after_.others_count); }
  void copy_places(const double* from, const Layout& layout, int64_t places, int64_t m, double* to) const {
    for (int64_t p = 0; p < places; ++p) {
      const double* place = from + (row_ * places + p) * layout.neuron + m / kInputs * layout.block;
      std::copy(place, place + kInputs, to + m * places + p * kInputs);
    }
  }

  const Tail& tail_;
  const TailLayer& at_;
  const Downstream& after_;
  int64_t layer_, row_;
  const double* inputs_;
  Layout in_;
  Channels through_;
  std::vector<double> held_;
};

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
constexpr int64_t kMostNumbers = int64_t{3} << 20;
constexpr int64_t kFewPlaces = 16;

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
  const int64_t threads = pace.better() || at.places > kFewPlaces ? tail.threads : 1;
  if (!moves.after.reaches()) {
    for (const int64_t j : columns) weights[j] = 0.0;
    forward_after(tail, layer, row, threads, parallel_for);
    return;
  }
  Downstream after = moves.after;
  const auto still = sum_still(tail, moves, bounds.accuracy, threads, parallel_for, &after);

  const int64_t chunks = (tail.stride + kChunk - 1) / kChunk;
  const bool several = std::min(chunks, tail.threads) > 1;
  const int64_t numbers = Outcomes::numbers(at.places, at.held_places, bounds.accuracy);
  const int64_t most =
      several ? std::clamp<int64_t>(kMostNumbers / (tail.stride * numbers), 1, kMostTrials) : 1;
  Outcomes outcomes(most + 1, tail.stride, at.places, at.held_places, bounds.accuracy);
  RowTrials trials(tail, moves, after, layer, row);
  over_chunks(tail, threads, parallel_for,
              [&](int64_t from, int64_t to) { trials.begin(outcomes.present(), from, to); });

  std::vector<Verdict> verdicts(static_cast<size_t>(most * chunks));
  bool any_zeroed = false;
  double rate = 1.0;  // the share of trials that stay zero, a moving average
  int64_t batch = 1;
  for (size_t next = 0; next < columns.size();) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    // A trial of a channel with many places takes far longer than threads wait for each other.
    const bool together = several && (at.places > kFewPlaces || pace.together());
    const int64_t size =
        together ? std::min<int64_t>({batch, most, static_cast<int64_t>(columns.size() - next)}) : 1;
    const bool guess = rate >= 0.5;
    over_chunks(tail, together ? tail.threads : 1, parallel_for, [&](int64_t from, int64_t to) {
      for (int64_t t = 0; t < size; ++t) {
        const int64_t j = columns[next + t];
        const Outcome& before = guess && t > 0 ? outcomes.of_trial(t - 1) : outcomes.present();
        verdicts[t * chunks + from / kChunk] =
            trials.attempt(j, weights[j], before, outcomes.of_trial(t), from, to);
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
    if (several && at.places <= kFewPlaces)
      pace.note(made, std::chrono::duration<double>(Clock::now() - start).count());
  }
  if (!any_zeroed) return;
  forward_after(tail, layer, row, threads, parallel_for);
}

}  // namespace modfast
