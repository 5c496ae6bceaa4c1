// The body of the walk's inner loops. It is included once for each instruction set, and like energy/lines.inl
// includes no standard header.

// As many numbers as a register holds: compilers split wider vectors into slow code.
#if defined(MODFAST_LINES_AVX512)
constexpr int64_t kLanes = 8;
#elif defined(MODFAST_LINES_AVX2)
constexpr int64_t kLanes = 4;
#else
constexpr int64_t kLanes = 2;
#endif
static_assert(kInputs % kLanes == 0, "inputs fill registers");
typedef double Lanes __attribute__((vector_size(kLanes * sizeof(double))));

template <class V>
struct Bits;
template <>
struct Bits<Lanes> {
  typedef int64_t Type __attribute__((vector_size(kLanes * sizeof(int64_t))));
};

#define MODFAST_EACH __attribute__((always_inline)) inline
#include "circuits/math.inl"
#undef MODFAST_EACH

// Whether any lane of a comparison holds.
inline bool any(const Bits<Lanes>::Type& lanes) {
#if defined(MODFAST_LINES_AVX512)
  return _mm512_movepi64_mask((__m512i)lanes) != 0;
#elif defined(MODFAST_LINES_AVX2)
  return _mm256_movemask_pd((__m256d)lanes) != 0;
#else
  int64_t found = 0;
  for (int64_t i = 0; i < kLanes; ++i) found |= lanes[i];
  return found != 0;
#endif
}

// Computes Sums * kLanes inputs at once, since each addition of a sum waits for the one before.
template <int Sums>
inline void forward_some(const Link* links, int64_t count, const InputRows& inputs, double bias,
                         Activation activation, double slope, double* pre, double* held, int64_t m) {
  Lanes x[Sums];
  for (int i = 0; i < Sums; ++i) x[i] = Lanes{} + bias;
  for (int64_t k = 0; k < count; ++k) {
    const double* input = inputs.rows + links[k].from * inputs.step + (m - inputs.first);
    for (int i = 0; i < Sums; ++i) x[i] = x[i] + load<Lanes>(input + i * kLanes) * links[k].weight;
  }
  for (int i = 0; i < Sums; ++i) {
    store<Lanes>(x[i], pre + m + i * kLanes);
    store<Lanes>(activate(x[i], activation, slope), held + m + i * kLanes);
  }
}

void forward(const Link* links, int64_t count, const InputRows& inputs, double bias, Activation activation,
             double slope, int64_t begin, int64_t end, double* pre, double* held) {
  int64_t m = begin;
  for (; m + 4 * kLanes <= end; m += 4 * kLanes) {
    forward_some<4>(links, count, inputs, bias, activation, slope, pre, held, m);
  }
  for (; m < end; m += kLanes) forward_some<1>(links, count, inputs, bias, activation, slope, pre, held, m);
}

void logsumexp(const double* const* logits, int64_t count, int64_t begin, int64_t end, double* largest,
               double* sum, double* result) {
  for (int64_t m = begin; m < end; m += kLanes) {
    Lanes top = Lanes{} - __builtin_inf(), total{};
    for (int64_t c = 0; c < count; ++c) top = larger(top, load<Lanes>(logits[c] + m));
    for (int64_t c = 0; c < count; ++c) total = total + exp_of(load<Lanes>(logits[c] + m) - top);
    store<Lanes>(top, largest + m);
    store<Lanes>(total, sum + m);
    if (count > 0) store<Lanes>(top + log_of(total), result + m);
  }
}

void losses(const Downstream& after, int64_t begin, int64_t end, const double* held, double* to,
            double* right, double* changes, double* logits) {
  for (int64_t m = begin; m < end; m += kLanes) {
    store<Lanes>(
        loss_of<Lanes>(after, m, load<Lanes>(held + m), changes, logits, kLanes, right ? right + m : nullptr),
        to + m);
  }
}

// Adds every kInputs-th number to one of kInputs sums, then adds these: the same order for any kLanes.
inline double sum_of(const double* numbers, int64_t begin, int64_t end) {
  Lanes sums[kInputs / kLanes]{};
  for (int64_t m = begin; m < end; m += kInputs) {
    for (int64_t i = 0; i < kInputs / kLanes; ++i) sums[i] = sums[i] + load<Lanes>(numbers + m + i * kLanes);
  }
  double total = sums[0][0];
  for (int64_t i = 1; i < kInputs; ++i) total += sums[i / kLanes][i % kLanes];
  return total;
}

Verdict attempt(const Trial& trial, int64_t begin, int64_t end) {
  const Downstream& after = *trial.after;
  const Outcome &from = trial.from, &to = trial.to;
  Verdict verdict;
  for (int64_t m = begin; m < end; m += kLanes) {
    const Lanes held = load<Lanes>(from.held + m);
    const Lanes pre = load<Lanes>(from.pre + m) - load<Lanes>(trial.input + m) * trial.weight;
    const Lanes now = activate(pre, after.activation, after.slope);
    store<Lanes>(pre, to.pre + m);
    store<Lanes>(now, to.held + m);
    Lanes loss;
    if (any(now != held)) {
      verdict.moved = true;
      loss = loss_of<Lanes>(after, m, now, trial.changes, trial.logits, kLanes,
                            to.right ? to.right + m : nullptr);
    } else {
      // The loss is a function of the activation alone: computing it again would give the same bits.
      loss = load<Lanes>(from.losses + m);
      if (to.right) store<Lanes>(load<Lanes>(from.right + m), to.right + m);
    }
    store<Lanes>(loss, to.losses + m);
  }
  verdict.loss = sum_of(to.losses, begin, end);
  if (to.right) verdict.right = sum_of(to.right, begin, end);
  return verdict;
}

#include "circuits/channels.inl"

constexpr CircuitLines circuit_lines_of_this_level = {
    forward, logsumexp, losses, attempt, forward_channel, channel_losses, attempt_channel};
