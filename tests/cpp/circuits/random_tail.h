// Random tails for the tests of the walk, with the memory that they point to. Each array ends with its last
// number, so that an access beyond it is detected.
#pragma once

#include "circuits/circuits.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
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

struct LayerNumbers {
  int64_t rows, cols;
  Activation activation;
  double slope;
  std::vector<double> weights, bias, pre, held;
};

struct RandomTail {
  int64_t stride, label;
  std::vector<double> features, signs;
  std::vector<LayerNumbers> layers;

  // mixed: whether there are inputs of other classes too.
  RandomTail(int64_t depth, int64_t inputs, bool mixed) : stride((inputs + kInputs - 1) / kInputs * kInputs) {
    int64_t width = draw(1, 9);
    features.assign(width * stride, 0.0);
    signs.assign(stride, 0.0);
    for (int64_t m = 0; m < inputs; ++m) {
      signs[m] = mixed && draw(0, 1) ? -1.0 : 1.0;
      for (int64_t j = 0; j < width; ++j) features[j * stride + m] = draw(0, 3) ? normal() : 0.0;
    }
    for (int64_t l = 0; l < depth; ++l) {
      const bool last = l + 1 == depth;
      LayerNumbers layer{last ? draw(2, 6) : draw(1, 9),
                         width,
                         Activation::identity,
                         0.1 * static_cast<double>(draw(0, 3)),
                         {},
                         {},
                         {},
                         {}};
      if (!last) layer.activation = static_cast<Activation>(draw(0, kActivations - 1));
      const bool biased = draw(0, 1);
      const double zeros = draw(0, 3) ? 0.2 : 0.8;
      for (int64_t i = 0; i < layer.rows * layer.cols; ++i) {
        layer.weights.push_back(std::bernoulli_distribution(zeros)(random_numbers) ? 0.0 : normal());
      }
      for (int64_t i = 0; i < layer.rows; ++i) layer.bias.push_back(biased ? normal() : 0.0);
      layer.pre.assign(layer.rows * stride, 0.0);
      layer.held.assign(layer.rows * stride, 0.0);
      width = layer.rows;
      layers.push_back(layer);
    }
    label = draw(0, width - 1);
  }

  Tail tail(int64_t threads = 1) {
    Tail tail;
    tail.features = features.data();
    tail.stride = stride;
    tail.signs = signs.data();
    tail.label = label;
    tail.threads = threads;
    for (LayerNumbers& each : layers) {
      tail.layers.push_back({each.rows, each.cols, each.weights.data(), each.bias.data(), each.activation,
                             each.slope, each.pre.data(), each.held.data()});
    }
    return tail;
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
