// The part of the walk's bindings that is the same on every device: arguments become a Tail for the kernels.
#pragma once

#include "circuits/circuits.h"
#include "common/binding.h"

#include <optional>

namespace modfast {

// The tensors of a walk; lists have one element for each layer, from the first to the last.
struct TailTensors {
  const Tensor &features, &signs;
  const std::vector<Tensor>&weights, &biases;
  const std::vector<int64_t>& activations;
  const std::vector<double>& slopes;
  const std::vector<Tensor>&pre, &held;
  int64_t label, threads;
};

// checked: check_shaped, and a check of the device.
template <class Checked>
Tail tail_of(const TailTensors& given, const Checked& checked) {
  const size_t count = given.weights.size();
  REQUIRE(count > 0, "weights must hold at least one layer");
  REQUIRE(given.biases.size() == count && given.activations.size() == count && given.slopes.size() == count &&
              given.pre.size() == count && given.held.size() == count,
          "weights, biases, activations, slopes, pre and held must be lists of one length");
  REQUIRE(given.threads >= 1, "threads must be at least 1, got ", given.threads);
  REQUIRE(given.features.dim() == 2, "features must have two dimensions, got shape ",
          shape_of(given.features));
  const auto doubles = [&](const Tensor& tensor, std::initializer_list<int64_t> shape, const char* name) {
    return mutable_data_of<double>(checked(tensor, ScalarType::Double, shape, name));
  };
  Tail tail;
  tail.stride = given.features.size(1);
  REQUIRE(tail.stride > 0 && tail.stride % kInputs == 0, "features must have a multiple of ", kInputs,
          " columns, got shape ", shape_of(given.features));
  tail.features = doubles(given.features, {-1, tail.stride}, "features");
  tail.signs = doubles(given.signs, {tail.stride}, "signs");
  int64_t width = given.features.size(0);
  for (size_t l = 0; l < count; ++l) {
    TailLayer layer;
    REQUIRE(given.weights[l].dim() == 2, "weights must have two dimensions, got shape ",
            shape_of(given.weights[l]));
    layer.rows = given.weights[l].size(0);
    layer.cols = width;
    REQUIRE(layer.rows > 0 && layer.cols > 0, "weights must not be empty");
    layer.weights = doubles(given.weights[l], {layer.rows, layer.cols}, "weights");
    layer.bias = doubles(given.biases[l], {layer.rows}, "biases");
    REQUIRE(0 <= given.activations[l] && given.activations[l] < kActivations, "activations must be in [0, ",
            kActivations - 1, "], got ", given.activations[l]);
    layer.activation = static_cast<Activation>(given.activations[l]);
    layer.slope = given.slopes[l];
    layer.pre = doubles(given.pre[l], {layer.rows, tail.stride}, "pre");
    layer.held = doubles(given.held[l], {layer.rows, tail.stride}, "held");
    tail.layers.push_back(layer);
    width = layer.rows;
  }
  REQUIRE(tail.layers.back().activation == Activation::identity,
          "the last layer's outputs must be the logits");
  REQUIRE(width >= 2, "the last layer must have at least two rows, got ", width);
  REQUIRE(0 <= given.label && given.label < width, "label must be in [0, ", width - 1, "], got ",
          given.label);
  tail.label = given.label;
  tail.threads = given.threads;
  return tail;
}

struct WalkPlace {
  int64_t layer, row, begin, end;
};
inline void check_place(const Tail& tail, const WalkPlace& place) {
  const auto within = [](int64_t index, int64_t least, int64_t most, const char* name) {
    REQUIRE(least <= index && index <= most, name, " must be in [", least, ", ", most, "], got ", index);
  };
  within(place.layer, 0, static_cast<int64_t>(tail.layers.size()) - 1, "layer");
  within(place.row, 0, tail.layers[place.layer].rows - 1, "row");
  within(place.end, 0, tail.layers[place.layer].cols, "end");
  within(place.begin, 0, place.end, "begin");
}

inline Bounds bounds_of(double highest_loss, std::optional<double> least_right) {
  return {highest_loss, least_right.value_or(0.0), least_right.has_value()};
}

}  // namespace modfast
