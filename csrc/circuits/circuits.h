// The greedy walk that finds a circuit (arXiv 2409.15747, effective circuit size): it sets weights to zero
// one by one, and a weight stays zero if the loss of the network's tail is then no higher than allowed.
//
// The tail is linear layers with elementwise activations between them, on fixed features; everything is
// float64. Inputs run along rows: neuron i has pre-activation pre[i * stride + m] on input m. The stride is a
// multiple of kInputs; the padding after the last input has sign 0 and no effect.
//
// A trial changes the pre-activation of one neuron by -weight * input, and with it the neurons after it. All
// weights of one row belong to one neuron, and each input's loss is a function of that neuron's activation
// alone. Downstream, which is prepared once for the row, computes it from the state before the row. So no
// error grows from trial to trial, and inputs on which the activation does not change keep their loss.
//
// Nothing here depends on PyTorch: pointers, sizes, and a function that runs a loop in parallel.
#pragma once

#include "common/half.h"
#include "common/numbers.h"

#include <cstdint>
#include <vector>

namespace modfast {

enum class Activation : int32_t { identity, relu, leaky_relu, gelu, gelu_tanh, silu, tanh, sigmoid };
constexpr int64_t kActivations = 8;

// kInputs inputs are computed on at once, and losses are added up in chunks of kChunk inputs, whatever the
// processor and the number of threads: so the results have the same bits everywhere.
constexpr int64_t kInputs = 8;
constexpr int64_t kChunk = 128;

// One layer of the tail.
struct TailLayer {
  int64_t rows = 0, cols = 0;
  double* weights = nullptr;     // rows x cols
  const double* bias = nullptr;  // rows
  Activation activation = Activation::identity;
  double slope = 0.0;      // the slope of a leaky ReLU below zero
  double* pre = nullptr;   // rows x stride, before the activation
  double* held = nullptr;  // rows x stride, after it
};

struct Tail {
  const double* features = nullptr;  // the first layer's input, its cols x stride
  int64_t stride = 0;
  std::vector<TailLayer> layers;
  const double* signs = nullptr;  // 1 for inputs of the class, -1 for others, 0 for padding
  int64_t label = 0;              // the class: a row of the last layer
  int64_t threads = 1;            // number of threads of parallel_for; no result depends on it
};

// The conditions under which a weight stays zero.
struct Bounds {
  double loss = 0.0;      // the highest sum of the inputs' losses
  double right = 0.0;     // the lowest number of correctly answered inputs
  bool accuracy = false;  // whether `right` is a condition
};

// Computes pre and held of all layers.
void tail_forward(const Tail& tail, ParallelFor parallel_for);

// Tries to set the weights of one row to zero, from column begin to before column end. pre and held must be
// up to date, and are so again afterwards.
void walk_row(const Tail& tail, int64_t layer, int64_t row, int64_t begin, int64_t end, const Bounds& bounds,
              ParallelFor parallel_for);

}  // namespace modfast
