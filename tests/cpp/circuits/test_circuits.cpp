// Tests of the walk's kernels alone, against plain loops and the standard library: elementary functions,
// states, and every single decision. `make sanitize` builds and runs it under the address and
// undefined-behaviour sanitizers, for every instruction set.
#include "circuits/lines.h"
#include "circuits/walk_threads.h"
#include "common/instruction_set.h"
#include "random_tail.h"

#include <cmath>
#include <limits>

namespace {

using namespace modfast;

void in_turn(int64_t count, int64_t grain, LoopBody body, void* context) {
  for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(begin + grain, count), context);
}

void check_near(double found, double expected, double allowed, const char* what) {
  check(std::abs(found - expected) <= allowed, what, found, expected);
}

// --- Elementary functions

double plain_activation(double x, Activation activation, double slope) {
  switch (activation) {
    case Activation::relu: return std::max(x, 0.0);
    case Activation::leaky_relu: return x < 0.0 ? x * slope : x;
    case Activation::gelu: return x * std::erfc(-x * std::sqrt(0.5)) / 2;
    case Activation::gelu_tanh: {
      // (1 + tanh u) / 2 = 1 / (1 + exp(-2 u))
      return x / (1.0 + std::exp(-2.0 * std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    }
    case Activation::silu: return x / (1.0 + std::exp(-x));
    case Activation::tanh: return std::tanh(x);
    case Activation::sigmoid: return 1.0 / (1.0 + std::exp(-x));
    case Activation::identity: break;
  }
  return x;
}

// Checks the error in units of the last place; a value smaller than exp(-708) may be zero.
void check_ulps(double found, double expected, double ulps, const char* what) {
  const double next = std::nextafter(std::abs(expected), std::numeric_limits<double>::infinity());
  check_near(found, expected, ulps * (next - std::abs(expected)) + 3.4e-308, what);
}

// The normal distribution, by the error function in double. A wider long double would do, but on some
// machines it is no wider. The argument's rounding error, times the slope, corrects the value.
double normal_distribution(double x) {
  constexpr double root = 0.70710678118654757, rest = -4.8336466567264567e-17;  // together the root of 1 / 2
  const double a = -x * root, error = std::fma(-x, root, -a) - x * rest;
  return (std::erfc(a) - 1.1283791670955126 * std::exp(-a * a) * error) / 2;
}

void try_functions() {
  for (int i = 0; i < 20000; ++i) {
    const double sizes[] = {1e-300, 1e-17, 1e-9, 1e-3, 1.0, 30.0, 700.0};
    const double x = normal() * sizes[draw(0, 6)], size = std::abs(x);
    if (size <= 708.0) check_ulps(exp_of(-size), std::exp(-size), 2, "exp");
    check_ulps(log_of(1.0 + size), std::log(1.0 + size), 2, "log");
    check_ulps(log1p_of(std::exp(-size)), std::log1p(std::exp(-size)), 3, "log1p");
    check_ulps(softplus(x), std::max(x, 0.0) + std::log1p(std::exp(-size)), 3, "softplus");
    check_ulps(tanh_of(x), std::tanh(x), 4, "tanh");
    check_ulps(sigmoid_of(x), x < 0.0 ? std::exp(x) / (1.0 + std::exp(x)) : 1.0 / (1.0 + std::exp(-x)), 3,
               "sigmoid");
    // exp(-x^2 / 2) multiplies the rounding error of the square by x^2 / 2.
    check_ulps(normal_of(x), normal_distribution(x), 4 + x * x, "normal");
  }
  for (const double x : {0.0, -0.0}) {
    check(exp_of(x) == 1.0 && tanh_of(x) == 0.0 && sigmoid_of(x) == 0.5, "of zero", tanh_of(x), 0.0);
    check_ulps(normal_of(x), 0.5, 4, "normal of zero");
  }
  const double far = std::numeric_limits<double>::infinity();
  check(exp_of(-far) == 0.0 && exp_of(-709.0) == 0.0, "exp far below", exp_of(-709.0), 0.0);
  check(tanh_of(1e300) == 1.0 && tanh_of(-far) == -1.0, "tanh far away", tanh_of(1e300), 1.0);
  check(sigmoid_of(-1e300) == 0.0 && sigmoid_of(far) == 1.0, "sigmoid far away", sigmoid_of(far), 1.0);
  check(normal_of(-1e100) == 0.0 && normal_of(1e100) == 1.0, "normal far away", normal_of(1e100), 1.0);
  check(softplus(1e300) == 1e300 && softplus(-1e300) == 0.0, "softplus far away", softplus(1e300), 1e300);
  // After an overflow the result stays NaN and does not become a loss.
  const double none = std::numeric_limits<double>::quiet_NaN();
  for (const double x : {exp_of(none), log_of(none), softplus(none)}) check(std::isnan(x), "of NaN", x, none);
  for (int64_t a = 0; a < kActivations; ++a) {
    const double x = activate(none, static_cast<Activation>(a), 0.1);
    check(std::isnan(x), "activation of NaN", x, none);
  }
}

// The instruction set's functions give the bits of the plain ones above.
void try_lines() {
  constexpr int64_t stride = 5 * kInputs;
  std::vector<double> x(stride), pre(stride), held(stride);
  for (int trial = 0; trial < 50; ++trial) {
    for (double& each : x) each = normal() * 5.0;
    const Link link{normal(), 0};
    const double bias = normal(), slope = 0.1;
    for (int64_t a = 0; a < kActivations; ++a) {
      const auto activation = static_cast<Activation>(a);
      circuit_lines_in_use().forward(&link, 1, {x.data(), stride, 0}, bias, activation, slope, 0, stride,
                                     pre.data(), held.data());
      for (int64_t m = 0; m < stride; ++m) {
        const double expected = bias + x[m] * link.weight;
        check(pre[m] == expected, "before the activation", pre[m], expected);
        check(held[m] == activate(expected, activation, slope), "activation", held[m],
              activate(expected, activation, slope));
        const double plain = plain_activation(expected, activation, slope);
        check_near(held[m], plain, 1e-15 * (1.0 + std::abs(plain)), "plain activation");
      }
    }
    const double* logits[] = {x.data(), pre.data(), held.data()};
    std::vector<double> largest(stride), sum(stride), found(stride);
    circuit_lines_in_use().logsumexp(logits, 3, 0, stride, largest.data(), sum.data(), found.data());
    for (int64_t m = 0; m < stride; ++m) {
      const double top = std::max({x[m], pre[m], held[m]});
      const double rest = std::exp(x[m] - top) + std::exp(pre[m] - top) + std::exp(held[m] - top);
      check(largest[m] == top, "largest logit", largest[m], top);
      check_near(sum[m], rest, 1e-15 * rest, "sum of exponentials");
      check_near(found[m], top + std::log(rest), 1e-15 * (1.0 + std::abs(top)), "logsumexp");
    }
  }
}

// --- The walk

struct Answer {
  double loss = 0.0, right = 0.0;
};

// What one channel holds, given what all channels of the layer before hold on one input.
std::vector<double> run_channel(const LayerNumbers& layer, int64_t row, const std::vector<double>& values) {
  const int64_t in = layer.cols / layer.taps, group = row / (layer.rows / layer.groups);
  std::vector<double> held;
  for (int64_t p = 0; p < layer.places; ++p) {
    double x = layer.bias[row];
    for (int64_t j = 0; j < layer.cols; ++j) {
      const int64_t source = layer.sources[j % layer.taps * layer.places + p];
      const int64_t first = (group * in + j / layer.taps) * layer.in_places;
      if (source >= 0) x = x + layer.weights[row * layer.cols + j] * values[first + source];
    }
    held.push_back(x);
  }
  for (const StageNumbers& each : layer.stages) {
    const Stage& stage = each.stage;
    std::vector<double> next;
    for (int64_t p = 0; p < stage.places; ++p) {
      const bool is_max = stage.kind == StageKind::max_pool;
      double x = is_max ? -std::numeric_limits<double>::infinity() : 0.0;
      if (stage.kind == StageKind::activation) x = plain_activation(held[p], stage.activation, stage.number);
      if (stage.kind == StageKind::affine) x = held[p] * each.scale[row] + each.shift[row];
      for (int64_t k = 0; k < stage.width; ++k) {
        const int64_t source = each.windows[p * stage.width + k];
        if (source >= 0) x = is_max ? std::max(x, held[source]) : x + held[source] / stage.number;
      }
      next.push_back(x);
    }
    held.swap(next);
  }
  for (double& x : held) x = plain_activation(x, layer.activation, layer.slope);
  return held;
}

// Runs the whole network with its present weights.
Answer run_plainly(const RandomTail& tail) {
  Answer all;
  for (int64_t m = 0; m < tail.stride; ++m) {
    if (tail.signs[m] == 0.0) continue;
    std::vector<double> values, next;
    for (size_t j = 0; j < tail.features.size() / tail.stride; ++j) {
      values.push_back(tail.features[j * tail.stride + m]);
    }
    for (const LayerNumbers& layer : tail.layers) {
      next.clear();
      for (int64_t i = 0; i < layer.rows; ++i) {
        const std::vector<double> channel = run_channel(layer, i, values);
        next.insert(next.end(), channel.begin(), channel.end());
      }
      values.swap(next);
    }
    const double own = values[tail.label], tie = 1e-12 * (1.0 + std::abs(own));
    double top = -std::numeric_limits<double>::infinity(), rest = 0.0;
    bool first = true;
    for (int64_t c = 0; c < static_cast<int64_t>(values.size()); ++c) {
      if (c == tail.label) continue;
      top = std::max(top, values[c]);
      first = first && (c < tail.label ? own > values[c] + tie : own >= values[c] - tie);
    }
    for (int64_t c = 0; c < static_cast<int64_t>(values.size()); ++c) {
      if (c != tail.label) rest = rest + std::exp(values[c] - top);
    }
    const double worse = tail.signs[m] * (top + std::log(rest) - own);
    all.loss = all.loss + std::max(worse, 0.0) + std::log1p(std::exp(-std::abs(worse)));
    all.right += first == (tail.signs[m] > 0.0) ? 1.0 : 0.0;
  }
  return all;
}

int64_t decisions = 0, close_calls = 0, kept = 0;

// Checks every decision of a walk, each given the walk's decisions before it.
void try_walk(int64_t depth, int64_t inputs, bool accuracy, int64_t convolutions) {
  RandomTail tail(depth, inputs, draw(0, 1), convolutions);
  tail_forward(tail.tail(), in_turn);
  const Answer before = run_plainly(tail);
  const double tolerance = static_cast<double>(inputs) * 0.002 * static_cast<double>(draw(1, 10));
  const Bounds bounds{before.loss + tolerance, before.right, accuracy};
  for (int64_t l = depth; l-- > 0;) {
    LayerNumbers& layer = tail.layers[l];
    for (int64_t row = 0; row < layer.rows; ++row) {
      RandomTail replayed = tail;
      const int64_t begin = draw(0, 3) ? 0 : draw(0, layer.cols);
      walk_row(tail.tail(draw(1, 4)), l, row, begin, layer.cols, bounds, in_turn);
      Answer last = run_plainly(replayed);
      for (int64_t i = 0; i < static_cast<int64_t>(layer.weights.size()); ++i) {
        double& weight = replayed.layers[l].weights[i];
        if (i < row * layer.cols + begin || i >= (row + 1) * layer.cols || weight == 0.0) {
          check(layer.weights[i] == weight, "weight elsewhere", layer.weights[i], weight);
          continue;
        }
        const double tried = weight, rounding = 1e-10 * (1.0 + bounds.loss);
        weight = 0.0;
        const Answer now = run_plainly(replayed);
        const bool may = now.loss <= bounds.loss && (!accuracy || now.right >= bounds.right);
        const bool stays = layer.weights[i] == 0.0;
        ++decisions;
        // A weight that changes no loss may be zero.
        if (std::abs(now.loss - bounds.loss) <= rounding && now.loss != last.loss) {
          ++close_calls;
        } else {
          check(stays == (may || now.loss == last.loss), "loss of a decision", now.loss, bounds.loss);
        }
        if (stays) {
          last = now;
        } else {
          check(layer.weights[i] == tried, "weight kept", layer.weights[i], tried);
          weight = tried;
          ++kept;
        }
      }
      // The state must be up to date with the weights.
      RandomTail fresh = tail;
      tail_forward(fresh.tail(), in_turn);
      check_same(tail, fresh);
    }
  }
}

// The bits must be the same for any number of threads.
void try_threads(int64_t depth, int64_t inputs, int64_t threads, int64_t convolutions) {
  RandomTail one(depth, inputs, true, convolutions);
  tail_forward(one.tail(), in_turn);
  RandomTail several = one;
  const Bounds bounds{run_plainly(one).loss * 1.01, 0.0, false};
  for (int64_t l = depth; l-- > 0;) {
    for (int64_t row = 0; row < one.layers[l].rows; ++row) {
      walk_row(one.tail(), l, row, 0, one.layers[l].cols, bounds, in_turn);
      walk_row(several.tail(threads), l, row, 0, one.layers[l].cols, bounds, in_turn);
      check_same(several, one);
    }
  }
}

}  // namespace

int main() {
  try_functions();
  try_lines();
  constexpr int kWalks = 200;
  for (int walk = 0; walk < kWalks; ++walk)
    try_walk(draw(1, 4), draw(1, draw(0, 5) ? 20 : 300), walk % 2 == 1, 0);
  for (int walk = 0; walk < kWalks; ++walk) {
    const int64_t depth = draw(1, 4);
    try_walk(depth, draw(1, 20), walk % 2 == 1, draw(1, depth));
  }
  for (int walk = 0; walk < 4; ++walk) {
    try_threads(3, 500, walk % 2 ? std::numeric_limits<int64_t>::max() : 3, walk);
  }
  check(close_calls * 50 <= decisions, "decisions by rounding", static_cast<double>(close_calls), 0.0);
  check(kept > 300 && decisions - kept > 300, "weights kept", static_cast<double>(kept), 301);
  std::printf("%s: %lld decisions of the circuits family passed, 0 failed\n",
              name_of(instruction_set_in_use()), static_cast<long long>(decisions));
}
