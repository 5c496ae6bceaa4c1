// The greedy walk that finds a circuit (arXiv 2409.15747, effective circuit size): weight after weight is set
// to zero, and stays zero if the loss of the network's tail then is no higher than allowed.
//
// The tail is linear layers with elementwise activations between them, on fixed features; all is float64.
// Inputs are numbered along a row: neuron i of input m is pre[i * stride + m]. The stride is a multiple of
// kInputs; what is beyond the last input has sign 0, and counts for nothing.
//
// A trial moves the pre-activation of one neuron by -weight * input, and what lies after it. While one row of
// weights is walked along, each input's loss is a function of that neuron's activation alone: Downstream,
// made once for the row, computes it from the state before the row. So no error grows from trial to trial,
// and inputs on which the activation does not move keep their loss.
//
// Nothing here knows PyTorch: pointers, sizes, and a function that runs a loop in parallel.
#pragma once

#include "common/half.h"
#include "common/numbers.h"

#include <cstdint>
#include <vector>

namespace modfast {

enum class Activation : int32_t { identity, relu, leaky_relu, gelu, gelu_tanh, silu, tanh, sigmoid };
constexpr int64_t kActivations = 8;

// Inputs are computed on so many at once, and their losses added up in chunks of so many, whatever the
// processor and the number of threads: the same bits everywhere.
constexpr int64_t kInputs = 8;
constexpr int64_t kChunk = 128;

// One layer of the tail.
struct TailLayer {
  int64_t rows = 0, cols = 0;
  double* weights = nullptr;     // rows x cols
  const double* bias = nullptr;  // rows
  Activation activation = Activation::identity;
  double slope = 0.0;      // of a leaky ReLU below zero
  double* pre = nullptr;   // rows x stride, before the activation
  double* held = nullptr;  // rows x stride, after it
};

struct Tail {
  const double* features = nullptr;  // what the first layer reads, its cols x stride
  int64_t stride = 0;
  std::vector<TailLayer> layers;
  const double* signs = nullptr;  // 1 for inputs of the class, -1 for others, 0 for none
  int64_t label = 0;              // the class: a row of the last layer
  int64_t threads = 1;            // how many parallel_for may use; no result depends on it
};

// What a weight that is set to zero must keep to.
struct Bounds {
  double loss = 0.0;      // the highest sum of the inputs' losses
  double right = 0.0;     // the lowest number of inputs that are answered rightly
  bool accuracy = false;  // whether that number matters
};

// Computes pre and held of all layers.
void tail_forward(const Tail& tail, ParallelFor parallel_for);

// Tries to set the weights of one row to zero, from column begin to column end. The state must be that of the
// weights; it is so again afterwards.
void walk_row(const Tail& tail, int64_t layer, int64_t row, int64_t begin, int64_t end, const Bounds& bounds,
              ParallelFor parallel_for);

}  // namespace modfast
