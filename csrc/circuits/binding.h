// The part of the walk's bindings that is the same on every device: arguments become a Tail for the kernels.
#pragma once

#include "circuits/circuits.h"
#include "common/binding.h"

#include <optional>

namespace modfast {

// The tensors of a walk; lists have one element for each layer, from the first to the last. If no layer is a
// convolution or has another stage than an activation, sources and groups may be empty; else the sources of a
// linear layer have shape (0, 0). The stages before the activations are listed for all layers together.
struct TailTensors {
  const Tensor &features, &signs;
  const std::vector<Tensor>&weights, &biases;
  const std::vector<int64_t>& activations;
  const std::vector<double>& slopes;
  const std::vector<Tensor>& sources;
  const std::vector<int64_t>&groups, &stage_layers, &stage_kinds;
  const std::vector<double>& stage_numbers;
  const std::vector<Tensor>& stage_tables;
  const std::vector<Tensor>&pre, &held;
  int64_t label, threads;
};

// The arguments that all operators of the walk begin with.
#define TAIL_PARAMETERS                                                                                 \
  Tensor features, Tensor signs, std::vector<Tensor> weights, std::vector<Tensor> biases,               \
      std::vector<int64_t> activations, std::vector<double> slopes, std::vector<Tensor> sources,        \
      std::vector<int64_t> groups, std::vector<int64_t> stage_layers, std::vector<int64_t> stage_kinds, \
      std::vector<double> stage_numbers, std::vector<Tensor> stage_tables, std::vector<Tensor> pre,     \
      std::vector<Tensor> held, int64_t label, int64_t threads
#define TAIL_TENSORS                                                                                   \
  TailTensors {                                                                                        \
    features, signs, weights, biases, activations, slopes, sources, groups, stage_layers, stage_kinds, \
        stage_numbers, stage_tables, pre, held, label, threads                                         \
  }

// The kinds of stages: the activations, and these.
constexpr int64_t kAffine = kActivations, kMaxPool = kAffine + 1, kMeanPool = kAffine + 2;

// What a layer without sources reads.
inline constexpr int32_t kOnePlace[1] = {0};

// Requires that every entry of a table is a place or, for none, -1.
inline const int32_t* places_in(const Tensor& table, int64_t places, const char* name) {
  const int32_t* entries = mutable_data_of<int32_t>(table);
  for (int64_t i = 0; i < table.numel(); ++i) {
    REQUIRE(-1 <= entries[i] && entries[i] < places, name, " must hold numbers in [-1, ", places - 1,
            "], got ", static_cast<int64_t>(entries[i]));
  }
  return entries;
}

// One stage of a layer whose channels have so many places before it.
template <class Checked>
Stage stage_of(const TailTensors& given, size_t s, int64_t rows, int64_t places, const Checked& checked) {
  const int64_t kind = given.stage_kinds[s];
  const Tensor& table = given.stage_tables[s];
  REQUIRE(0 <= kind && kind <= kMeanPool, "stage_kinds must be in [0, ", kMeanPool, "], got ", kind);
  Stage stage;
  stage.number = given.stage_numbers[s];
  stage.places = places;
  if (kind < kActivations) {
    stage.activation = static_cast<Activation>(kind);
  } else if (kind == kAffine) {
    stage.kind = StageKind::affine;
    stage.scale = mutable_data_of<double>(checked(table, ScalarType::Double, {2, rows}, "stage_tables"));
    stage.shift = stage.scale + rows;
  } else {
    stage.kind = kind == kMaxPool ? StageKind::max_pool : StageKind::mean_pool;
    checked(table, ScalarType::Int, {-1, -1}, "stage_tables");
    stage.places = table.size(0);
    stage.width = table.size(1);
    REQUIRE(stage.places > 0 && stage.width > 0, "stage_tables must not be empty");
    stage.windows = places_in(table, places, "stage_tables");
  }
  return stage;
}

// The size of a layer and where it reads, given how many numbers its input has.
template <class Checked>
void set_geometry(const TailTensors& given, size_t l, int64_t width, const Checked& checked,
                  TailLayer* layer) {
  REQUIRE(given.weights[l].dim() == 2, "weights must have two dimensions, got shape ",
          shape_of(given.weights[l]));
  layer->rows = given.weights[l].size(0);
  layer->cols = given.weights[l].size(1);
  REQUIRE(layer->rows > 0 && layer->cols > 0, "weights must not be empty");
  if (given.sources.empty() || given.sources[l].numel() == 0) {
    layer->cols = width;
    layer->sources = kOnePlace;
    return;
  }
  const Tensor& sources = checked(given.sources[l], ScalarType::Int, {-1, -1}, "sources");
  layer->taps = sources.size(0);
  layer->places = sources.size(1);
  layer->groups = given.groups[l];
  REQUIRE(layer->groups >= 1 && layer->rows % layer->groups == 0,
          "groups must divide the rows of weights, got ", layer->groups);
  REQUIRE(layer->cols % layer->taps == 0, "weights must have a multiple of ", layer->taps,
          " columns, got shape ", shape_of(given.weights[l]));
  const int64_t channels = input_channels_of(*layer);
  REQUIRE(width % channels == 0, "weights must read ", channels, " channels of equal size, and there are ",
          width, " numbers");
  layer->in_places = width / channels;
  layer->sources = places_in(sources, layer->in_places, "sources");
}

// checked: check_shaped, and a check of the device.
template <class Checked>
Tail tail_of(const TailTensors& given, const Checked& checked) {
  const size_t count = given.weights.size();
  REQUIRE(count > 0, "weights must hold at least one layer");
  REQUIRE(given.biases.size() == count && given.activations.size() == count && given.slopes.size() == count &&
              given.pre.size() == count && given.held.size() == count,
          "weights, biases, activations, slopes, pre and held must be lists of one length");
  REQUIRE(
      given.sources.size() == given.groups.size() && (given.sources.empty() || given.sources.size() == count),
      "sources and groups must be empty or lists of the length of weights");
  const size_t stages = given.stage_layers.size();
  REQUIRE(given.stage_kinds.size() == stages && given.stage_numbers.size() == stages &&
              given.stage_tables.size() == stages,
          "stage_layers, stage_kinds, stage_numbers and stage_tables must be lists of one length");
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
  const auto all_stages = std::make_shared<std::vector<Stage>>();
  all_stages->reserve(stages + count);  // layers point to them
  const auto all_rises = std::make_shared<std::vector<std::vector<int32_t>>>();
  int64_t width = given.features.size(0), before = 1;
  size_t next_stage = 0;
  for (size_t l = 0; l < count; ++l) {
    TailLayer layer;
    set_geometry(given, l, width, checked, &layer);
    all_rises->push_back(rises_of(layer));
    layer.rises = all_rises->back().data();
    // A channel that is read lies within one channel that is written, so that it changes as a whole.
    REQUIRE(l == 0 || before % layer.in_places == 0, "weights must read channels of no more than ", before,
            " places, got ", layer.in_places);
    layer.weights = doubles(given.weights[l], {layer.rows, layer.cols}, "weights");
    layer.bias = doubles(given.biases[l], {layer.rows}, "biases");
    REQUIRE(0 <= given.activations[l] && given.activations[l] < kActivations, "activations must be in [0, ",
            kActivations - 1, "], got ", given.activations[l]);
    layer.activation = static_cast<Activation>(given.activations[l]);
    layer.slope = given.slopes[l];
    layer.held_places = layer.places;
    const size_t first_stage = all_stages->size();
    for (; next_stage < stages && given.stage_layers[next_stage] == static_cast<int64_t>(l); ++next_stage) {
      all_stages->push_back(stage_of(given, next_stage, layer.rows, layer.held_places, checked));
      layer.held_places = all_stages->back().places;
    }
    const bool plain = layer.sources == kOnePlace && all_stages->size() == first_stage;
    if (!plain) tail.first_plain = static_cast<int64_t>(l) + 1;
    if (layer.activation != Activation::identity) {
      Stage stage;
      stage.activation = layer.activation;
      stage.number = layer.slope;
      stage.places = layer.held_places;
      all_stages->push_back(stage);
    }
    layer.stages = all_stages->data() + first_stage;
    layer.stage_count = static_cast<int64_t>(all_stages->size() - first_stage);
    layer.pre = doubles(given.pre[l], {layer.rows * layer.places, tail.stride}, "pre");
    layer.held = doubles(given.held[l], {layer.rows * layer.held_places, tail.stride}, "held");
    tail.layers.push_back(layer);
    before = layer.held_places;
    width = layer.rows * layer.held_places;
  }
  REQUIRE(next_stage == stages, "stage_layers must rise from 0 to ", static_cast<int64_t>(count) - 1);
  tail.stages = all_stages;
  tail.rises = all_rises;
  REQUIRE(tail.layers.back().activation == Activation::identity,
          "the last layer's outputs must be the logits");
  REQUIRE(tail.layers.back().held_places == 1,
          "the last layer must hold one number for each of its rows, got ", tail.layers.back().held_places);
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
