// Random tails for the tests of the walk, with the memory that they point to. Each array ends with its last
// number, so that an access beyond it is detected.
#pragma once

#include "circuits/circuits.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

namespace modfast {

inline std::mt19937 random_numbers(0);

inline int64_t draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_numbers);
}
inline double normal() { return std::normal_distribution<double>()(random_numbers); }

inline void check(bool holds, const char* what, double found, double expected) {
  if (holds) return;
  std::fprintf(stderr, "%s: found %.17g, expected %.17g\n", what, found, expected);
  std::exit(1);
}
inline void check_same(const std::vector<double>& found, const std::vector<double>& expected,
                       const char* what) {
  for (size_t i = 0; i < expected.size(); ++i) check(found[i] == expected[i], what, found[i], expected[i]);
}

// A stage, with the memory that it points to.
struct StageNumbers {
  Stage stage;
  std::vector<double> scale, shift;
  std::vector<int32_t> windows;

  Stage pointing() const {
    Stage copy = stage;
    copy.scale = scale.data();
    copy.shift = shift.data();
    copy.windows = windows.data();
    return copy;
  }
};

struct LayerNumbers {
  int64_t rows = 0, cols = 0;
  Activation activation = Activation::identity;
  double slope = 0.0;
  std::vector<double> weights, bias, pre, held;
  // Of a linear layer one of everything; see TailLayer.
  int64_t taps = 1, places = 1, groups = 1, in_places = 1, held_places = 1;
  std::vector<int32_t> sources{0};
  std::vector<StageNumbers> stages;  // before the activation

  bool plain() const { return taps == 1 && places == 1 && groups == 1 && in_places == 1 && stages.empty(); }
};

// A table of places, some of them none.
inline std::vector<int32_t> random_places(int64_t count, int64_t places) {
  std::vector<int32_t> table;
  const auto first = static_cast<int32_t>(draw(0, places - 1)), rise = static_cast<int32_t>(draw(0, 2));
  for (int64_t i = 0; i < count; ++i) {
    const auto even =
        static_cast<int32_t>(first + i * rise);  // as a convolution reads, while there are places
    table.push_back(even < places && draw(0, 9) ? even : static_cast<int32_t>(draw(-1, places - 1)));
  }
  return table;
}

struct RandomTail {
  int64_t stride, label;
  std::vector<double> features, signs;  // of the features input m of neuron j is at j * stride + m,
  std::vector<double> given;            // and here as the kernels read them
  std::vector<LayerNumbers> layers;

  // mixed: whether there are inputs of other classes too. convolutions: how many layers come first that are
  // convolutions or have other stages than an activation.
  RandomTail(int64_t depth, int64_t inputs, bool mixed, int64_t convolutions = 0)
      : stride((inputs + kInputs - 1) / kInputs * kInputs) {
    int64_t width = draw(1, 9);
    if (convolutions > 0) width *= draw(1, 4);
    features.assign(width * stride, 0.0);
    signs.assign(stride, 0.0);
    for (int64_t m = 0; m < inputs; ++m) {
      signs[m] = mixed && draw(0, 1) ? -1.0 : 1.0;
      for (int64_t j = 0; j < width; ++j) features[j * stride + m] = draw(0, 3) ? normal() : 0.0;
    }
    int64_t before = width;  // places of a channel, of which a reader takes a part
    for (int64_t l = 0; l < depth; ++l) {
      const bool last = l + 1 == depth;
      LayerNumbers layer;
      layer.rows = last ? draw(2, 6) : draw(1, 9);
      layer.cols = width;
      layer.slope = 0.1 * static_cast<double>(draw(0, 3));
      if (!last) layer.activation = static_cast<Activation>(draw(0, kActivations - 1));
      if (l < convolutions) make_convolution(&layer, width, before, last);
      const bool biased = draw(0, 1);
      const double zeros = draw(0, 3) ? 0.2 : 0.8;
      for (int64_t i = 0; i < layer.rows * layer.cols; ++i) {
        layer.weights.push_back(std::bernoulli_distribution(zeros)(random_numbers) ? 0.0 : normal());
      }
      for (int64_t i = 0; i < layer.rows; ++i) layer.bias.push_back(biased ? normal() : 0.0);
      layer.pre.assign(layer.rows * layer.places * stride, 0.0);
      layer.held.assign(layer.rows * layer.held_places * stride, 0.0);
      before = layer.held_places;
      width = layer.rows * layer.held_places;
      layers.push_back(layer);
    }
    label = draw(0, layers.back().rows - 1);
    given = features;
    const Tail made = tail();
    const Layout layout = layout_of_inputs(made, 0);
    for (int64_t j = 0; j < static_cast<int64_t>(features.size()) / stride; ++j) {
      for (int64_t m = 0; m < stride; ++m) {
        given[j * layout.neuron + m / kInputs * layout.block + m % kInputs] = features[j * stride + m];
      }
    }
  }

  Tail tail(int64_t threads = 1) {
    Tail tail;
    tail.features = given.data();
    tail.stride = stride;
    tail.signs = signs.data();
    tail.label = label;
    tail.threads = threads;
    const auto stages = std::make_shared<std::vector<Stage>>();
    const auto rises = std::make_shared<std::vector<std::vector<int32_t>>>();
    std::vector<size_t> starts;
    for (LayerNumbers& each : layers) {
      TailLayer layer{each.rows,       each.cols,  each.weights.data(), each.bias.data(),
                      each.activation, each.slope, each.pre.data(),     each.held.data()};
      layer.sources = each.sources.data();
      layer.taps = each.taps;
      layer.places = each.places;
      layer.groups = each.groups;
      layer.in_places = each.in_places;
      layer.held_places = each.held_places;
      rises->push_back(rises_of(layer));
      layer.rises = rises->back().data();
      starts.push_back(stages->size());
      for (const StageNumbers& stage : each.stages) stages->push_back(stage.pointing());
      Stage activation;
      activation.activation = each.activation;
      activation.number = each.slope;
      activation.places = each.held_places;
      if (each.activation != Activation::identity) stages->push_back(activation);
      layer.stage_count = static_cast<int64_t>(stages->size() - starts.back());
      tail.layers.push_back(layer);
      if (!each.plain()) tail.first_plain = static_cast<int64_t>(tail.layers.size());
    }
    for (size_t l = 0; l < layers.size(); ++l) tail.layers[l].stages = stages->data() + starts[l];
    tail.stages = stages;
    tail.rises = rises;
    return tail;
  }

 private:
  static int64_t divisor_of(int64_t number) {
    int64_t divisor = draw(1, number);
    while (number % divisor != 0) --divisor;
    return divisor;
  }

  static void make_convolution(LayerNumbers* layer, int64_t width, int64_t before, bool last) {
    layer->in_places = divisor_of(before);
    const int64_t channels = width / layer->in_places;
    layer->groups = divisor_of(channels);
    if (last) {
      layer->groups = 1;
    } else {
      layer->rows = layer->groups * draw(1, 3);
    }
    layer->taps = draw(1, 4);
    layer->places = draw(1, draw(0, 1) ? 20 : 3);
    layer->cols = channels / layer->groups * layer->taps;
    layer->sources = random_places(layer->taps * layer->places, layer->in_places);
    layer->held_places = layer->places;
    for (int64_t s = draw(0, 3); s > 0; --s) add_stage(layer, draw(0, 3), draw(1, 6));
    if (last) add_stage(layer, static_cast<int64_t>(StageKind::mean_pool), 1);
  }

  static void add_stage(LayerNumbers* layer, int64_t kind, int64_t places) {
    StageNumbers made;
    Stage& stage = made.stage;
    stage.kind = static_cast<StageKind>(kind);
    stage.activation = static_cast<Activation>(draw(0, kActivations - 1));
    stage.number = 0.1;
    stage.places = layer->held_places;
    if (stage.kind == StageKind::affine) {
      for (int64_t i = 0; i < layer->rows; ++i) made.scale.push_back(draw(0, 5) ? normal() : 0.0);
      for (int64_t i = 0; i < layer->rows; ++i) made.shift.push_back(normal());
    } else if (stage.kind != StageKind::activation) {
      stage.places = places;
      stage.width = draw(1, 4);
      stage.number = static_cast<double>(stage.width);
      made.windows = random_places(stage.places * stage.width, layer->held_places);
      // A maximum is of one number at least.
      for (int64_t p = 0; p < places; ++p) {
        made.windows[p * stage.width] = static_cast<int32_t>(draw(0, layer->held_places - 1));
      }
      layer->held_places = places;
    }
    layer->stages.push_back(made);
  }
};

inline void check_same(const RandomTail& found, const RandomTail& expected) {
  for (size_t l = 0; l < expected.layers.size(); ++l) {
    check_same(found.layers[l].weights, expected.layers[l].weights, "weights");
    check_same(found.layers[l].pre, expected.layers[l].pre, "before the activation");
    check_same(found.layers[l].held, expected.layers[l].held, "after the activation");
  }
}

}  // namespace modfast
