// The greedy walk that finds a circuit (arXiv 2409.15747, effective circuit size): it sets weights to zero
// one by one, and a weight stays zero if the loss of the network's tail is then no higher than allowed.
//
// The tail is convolutions and linear layers on fixed features; everything is float64. Every layer is a
// convolution: it has channels, and a channel has places; a linear layer has one place for each channel, its
// neuron. After a layer's sums come its stages: a batch norm, an activation, a pooling. Each of them works on
// one channel alone. The stride, how many inputs there is room for, is a multiple of kInputs; the padding
// after the last input has sign 0 and no effect.
//
// A trial changes the sums of one channel by -weight * input, and with it what comes after it. All weights of
// one row belong to one channel, and each input's loss is a function of what that channel holds after its
// stages alone. Downstream, and for the layers before the linear ones at the end Channels, which are prepared
// once for the row, compute it from the state before the row. So no error grows from trial to trial, and
// inputs on which the channel holds the same keep their loss.
//
// How states lie in memory. The layers at the end that are linear, with at most an activation after them, are
// walked neuron by neuron, so inputs run along rows: neuron i is at [i * stride + m] on input m. All layers
// before first_plain are walked channel by channel, so for each kInputs inputs all neurons lie together:
// neuron i is at [(m / kInputs * neurons + i) * kInputs + m % kInputs]. What a layer holds lies as its reader
// wants it, so the last of these layers holds rows.
//
// Nothing here depends on PyTorch: pointers, sizes, and a function that runs a loop in parallel.
#pragma once

#include "common/half.h"
#include "common/numbers.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace modfast {

enum class Activation : int32_t { identity, relu, leaky_relu, gelu, gelu_tanh, silu, tanh, sigmoid };
constexpr int64_t kActivations = 8;

// kInputs inputs are computed on at once, and losses are added up in chunks of kChunk inputs, whatever the
// processor and the number of threads: so the results have the same bits everywhere.
constexpr int64_t kInputs = 8;
constexpr int64_t kChunk = 128;

// What happens to each channel of a layer after its sums.
enum class StageKind : int32_t { activation, affine, max_pool, mean_pool };
struct Stage {
  StageKind kind = StageKind::activation;
  Activation activation = Activation::identity;
  double number = 0.0;  // the slope of a leaky ReLU below zero; what the sums of a mean_pool are divided by
  const double *scale = nullptr, *shift = nullptr;  // of an affine stage, one for each channel
  const int32_t* windows = nullptr;  // of a pool, places x width: the places that it reads; -1 reads nothing
  int64_t width = 0;
  int64_t places = 1;  // how many places a channel has after it
};

// One layer of the tail. Weight j of a row reads the input channel j / taps of the row's group, at place
// sources[j % taps * places + p] for the sum at place p.
struct TailLayer {
  int64_t rows = 0, cols = 0;
  double* weights = nullptr;                     // rows x cols
  const double* bias = nullptr;                  // rows
  Activation activation = Activation::identity;  // the last stage
  double slope = 0.0;                            // the slope of a leaky ReLU below zero
  double* pre = nullptr;                         // rows x places numbers for each input: the sums
  double* held = nullptr;  // rows x held_places numbers for each input: after the stages
  // Of a linear layer there is one of everything, and sources is null.
  const int32_t* sources = nullptr;  // taps x places; -1 reads the padding, 0
  // taps x places / kInputs, for whole groups of kInputs places: by how many places their sources rise, 0 if
  // they do not rise evenly.
  const int32_t* rises = nullptr;
  int64_t taps = 1, places = 1, groups = 1;
  int64_t in_places = 1;          // of an input channel
  int64_t held_places = 1;        // of a channel after the stages
  const Stage* stages = nullptr;  // all of them, with the activation
  int64_t stage_count = 0;
};

struct Tail {
  const double* features = nullptr;  // the first layer's input, its cols x stride
  int64_t stride = 0;
  std::vector<TailLayer> layers;
  int64_t first_plain = 0;  // the layers from here on are linear, with at most an activation after them
  // What the layers point to.
  std::shared_ptr<const std::vector<Stage>> stages;
  std::shared_ptr<const std::vector<std::vector<int32_t>>> rises;
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

// Where the numbers of a state lie: neuron i on input m, a multiple of kInputs, is at
// i * neuron + m / kInputs * block.
struct Layout {
  int64_t neuron, block;
};
inline Layout in_rows(const Tail& tail) { return {tail.stride, kInputs}; }
inline Layout in_blocks(int64_t neurons) { return {kInputs, neurons * kInputs}; }

// The input of a layer, and where it lies.
inline const double* inputs_of(const Tail& tail, int64_t layer) {
  return layer == 0 ? tail.features : tail.layers[layer - 1].held;
}
inline int64_t input_channels_of(const TailLayer& layer) { return layer.groups * (layer.cols / layer.taps); }
inline Layout layout_of_inputs(const Tail& tail, int64_t layer) {
  const TailLayer& reader = tail.layers[layer];
  return layer < tail.first_plain ? in_blocks(input_channels_of(reader) * reader.in_places) : in_rows(tail);
}
inline Layout layout_of_held(const Tail& tail, int64_t layer) {
  const TailLayer& at = tail.layers[layer];
  return layer + 1 < tail.first_plain ? in_blocks(at.rows * at.held_places) : in_rows(tail);
}
inline Layout layout_of_pre(const Tail& tail, int64_t layer) {
  const TailLayer& at = tail.layers[layer];
  return layer < tail.first_plain ? in_blocks(at.rows * at.places) : in_rows(tail);
}

// The first neuron that weight j of a row reads: the first place of its input channel.
inline int64_t read_by(const TailLayer& layer, int64_t row, int64_t j) {
  const int64_t group = row / (layer.rows / layer.groups);
  return (group * (layer.cols / layer.taps) + j / layer.taps) * layer.in_places;
}

// Finds TailLayer::rises.
inline std::vector<int32_t> rises_of(const TailLayer& layer) {
  const int64_t groups = layer.places / kInputs;
  std::vector<int32_t> rises;
  for (int64_t tap = 0; tap < layer.taps; ++tap) {
    for (int64_t g = 0; g < groups; ++g) {
      const int32_t* sources = layer.sources + tap * layer.places + g * kInputs;
      int32_t rise = sources[1] - sources[0];
      for (int64_t i = 0; i < kInputs; ++i) {
        if (sources[0] < 0 || sources[i] != sources[0] + i * rise) rise = 0;
      }
      rises.push_back(std::max(rise, 0));
    }
  }
  return rises;
}

// Tries to set the weights of one row to zero, from column begin to before column end. pre and held must be
// up to date, and are so again afterwards.
void walk_row(const Tail& tail, int64_t layer, int64_t row, int64_t begin, int64_t end, const Bounds& bounds,
              ParallelFor parallel_for);

}  // namespace modfast
