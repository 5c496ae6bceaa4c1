// Which channels, neurons and logits depend on one channel. The host finds them from the weights after it
// before the walk along a row begins, on every device. Weights are read here; states are only pointed to, and
// may be on a GPU.
#pragma once

#include "circuits/channels.h"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace modfast {

struct Moves {
  // Reads the weights of the layers after this one.
  Moves(const Tail& tail, int64_t layer, int64_t row) {
    const auto last_layer = static_cast<int64_t>(tail.layers.size()) - 1;
    const TailLayer &at = tail.layers[layer], &last = tail.layers[last_layer];
    after.activation = at.activation;
    after.slope = at.slope;
    after.held = at.held + row * tail.stride;
    after.is_logit = layer == last_layer;
    after.is_label = after.is_logit && row == tail.label;
    after.before_label = row < tail.label;
    after.own_pre = last.held + tail.label * tail.stride;
    after.signs = tail.signs;
    std::vector<char> logit_moves(last.rows, 0);
    if (after.is_logit) {
      logit_moves[row] = 1;
    } else {
      const auto leads = leading(tail, layer);
      std::vector<Place> moved;
      for (int64_t p = 0; p < at.held_places; ++p) moved.push_back({row * at.held_places + p, p});
      after.entries = at.held_places;
      int64_t next = layer + 1;
      if (layer < tail.first_plain) next = find_channels(tail, layer, row, leads, &moved);
      find_neurons(tail, next, leads, moved, &logit_moves);
    }
    if (layer < tail.first_plain) {
      through.layer = &at;
      through.row = row;
      through.most_places = std::max({through.most_places, at.places, at.held_places, most_of_stages(at)});
      through.most_changes = std::max(through.most_changes, at.held_places);
      through.terms = terms.data();
      through.channels = channels.data();
      through.layers = layers.data();
      through.layer_count = static_cast<int64_t>(layers.size());
    }
    after.changes = changes.data();
    after.hidden = hidden.data();
    after.hidden_count = static_cast<int64_t>(hidden.size());
    after.others = others.data();
    after.others_count = static_cast<int64_t>(others.size());
    if (!own.empty()) after.own = own.data();
    for (int64_t c = 0; c < last.rows; ++c) {
      if (c == tail.label) still_before = static_cast<int64_t>(still.size());
      if (c != tail.label && !logit_moves[c]) still.push_back(c);
    }
  }
  Moves(const Moves&) = delete;

  Downstream after;  // without the sums over the logits that do not change
  Channels through;  // for a layer before the linear ones; without what the walked channel held
  std::vector<Change> changes;
  std::vector<Moved> hidden, others, own;
  std::vector<Term> terms;
  std::vector<MovedChannel> channels;
  std::vector<MovedLayer> layers;
  std::vector<int64_t> still;  // the other classes whose logits do not change
  int64_t still_before = 0;    // how many of them come before the label

  static int64_t most_of_stages(const TailLayer& layer) {
    int64_t most = 1;
    for (int64_t s = 0; s < layer.stage_count; ++s) most = std::max(most, layer.stages[s].places);
    return most;
  }

 private:
  // A neuron that changes, and the place of its change among those of its layer.
  struct Place {
    int64_t neuron, place;
  };

  // For each later layer, which of its neurons affect a logit.
  static std::vector<std::vector<char>> leading(const Tail& tail, int64_t layer) {
    const auto count = tail.layers.size();
    std::vector<std::vector<char>> leads(count);
    leads[count - 1].assign(tail.layers[count - 1].rows, 1);
    for (size_t l = count - 1; l-- > static_cast<size_t>(layer) + 1;) {
      const TailLayer& next = tail.layers[l + 1];
      leads[l].assign(tail.layers[l].rows * tail.layers[l].held_places, 0);
      for (int64_t s = 0; s < next.rows; ++s) {
        if (!channel_leads(next, leads[l + 1], s)) continue;
        for (int64_t q = 0; q < next.cols; ++q) {
          if (next.weights[s * next.cols + q] == 0.0) continue;
          const auto first = leads[l].begin() + read_by(next, s, q);
          std::fill(first, first + next.in_places, 1);
        }
      }
    }
    return leads;
  }
  static bool channel_leads(const TailLayer& layer, const std::vector<char>& leads, int64_t row) {
    const auto first = leads.begin() + row * layer.held_places;
    return std::find(first, first + layer.held_places, 1) != first + layer.held_places;
  }

  // Finds the channels that change, up to the linear layers; returns the first of these.
  int64_t find_channels(const Tail& tail, int64_t layer, int64_t row,
                        const std::vector<std::vector<char>>& leads, std::vector<Place>* moved) {
    // For each neuron of the layer before, the place of its change, or -1, and the channel that it is of.
    const TailLayer& at = tail.layers[layer];
    std::vector<int64_t> places(at.rows * at.held_places, -1), causes(places.size(), 0);
    for (int64_t p = 0; p < at.held_places; ++p) places[row * at.held_places + p] = p;
    int64_t l = layer + 1;
    for (; l < tail.first_plain; ++l) {
      const TailLayer& to = tail.layers[l];
      std::vector<int64_t> next_places(to.rows * to.held_places, -1), next_causes(next_places.size(), 0);
      const Layout pre = layout_of_pre(tail, l), held = layout_of_held(tail, l);
      MovedLayer of_layer{&to, static_cast<int64_t>(channels.size()), 0, pre, held};
      int64_t count = 0;
      for (int64_t s = 0; s < to.rows; ++s) {
        if (!channel_leads(to, leads[l], s)) continue;
        const auto first = static_cast<int64_t>(terms.size());
        for (int64_t j = 0; j < to.cols; ++j) {
          const double weight = to.weights[s * to.cols + j];
          const int64_t neuron = read_by(to, s, j);
          if (weight == 0.0 || places[neuron] < 0) continue;
          terms.push_back(term_of(to, j, weight, places[neuron] * kInputs, causes[neuron]));
        }
        const auto end = static_cast<int64_t>(terms.size());
        if (first == end) continue;
        through.most_terms = std::max(through.most_terms, end - first);
        const int64_t begin = count * to.held_places;
        for (int64_t p = 0; p < to.held_places; ++p) {
          next_places[s * to.held_places + p] = begin + p;
          next_causes[s * to.held_places + p] = count;
        }
        channels.push_back({to.pre + s * to.places * pre.neuron, to.held + s * to.held_places * held.neuron,
                            s, first, end, begin * kInputs});
        ++count;
      }
      of_layer.last = static_cast<int64_t>(channels.size());
      layers.push_back(of_layer);
      through.most_places = std::max({through.most_places, to.places, to.held_places, most_of_stages(to)});
      through.most_channels = std::max(through.most_channels, count);
      through.most_changes = std::max(through.most_changes, count * to.held_places);
      after.entries = count * to.held_places;
      places.swap(next_places);
      causes.swap(next_causes);
    }
    moved->clear();
    for (size_t i = 0; i < places.size(); ++i) {
      if (places[i] >= 0) moved->push_back({static_cast<int64_t>(i), places[i]});
    }
    return l;
  }

  // Finds the neurons that change in the linear layers from this one on, given those of the layer before.
  void find_neurons(const Tail& tail, int64_t layer, const std::vector<std::vector<char>>& leads,
                    std::vector<Place> moved, std::vector<char>* logit_moves) {
    const auto count = static_cast<int64_t>(tail.layers.size());
    const auto add = [&](bool logit, const Moved& neuron, int64_t s, std::vector<Place>* next) {
      if (logit) {
        (*logit_moves)[s] = 1;
        (s == tail.label ? own : others).push_back(neuron);
      } else {
        hidden.push_back(neuron);
        next->push_back({s, after.entries + static_cast<int64_t>(hidden.size()) - 1});
      }
    };
    std::vector<Place> next;
    if (layer == count) {
      // The logits are what channels hold: each changes as its channel does.
      const TailLayer& last = tail.layers.back();
      for (const Place& from : moved) {
        changes.push_back({1.0, from.place});
        const auto end = static_cast<int64_t>(changes.size());
        const double* held = last.held + from.neuron * tail.stride;
        add(true, {held, nullptr, end - 1, end, Activation::identity, 0.0, from.neuron < tail.label},
            from.neuron, &next);
      }
    }
    for (int64_t l = layer; l < count; ++l) {
      const TailLayer& to = tail.layers[l];
      const bool logit = l == count - 1;
      next.clear();
      for (int64_t s = 0; s < to.rows; ++s) {
        if (!leads[l][s]) continue;
        const auto first = static_cast<int64_t>(changes.size());
        for (const Place& from : moved) {
          const double weight = to.weights[s * to.cols + from.neuron];
          if (weight != 0.0) changes.push_back({weight, from.place});
        }
        const auto end = static_cast<int64_t>(changes.size());
        if (first == end) continue;
        add(logit,
            {to.pre + s * tail.stride, logit ? nullptr : to.held + s * tail.stride, first, end, to.activation,
             to.slope, logit && s < tail.label},
            s, &next);
      }
      moved.swap(next);
    }
  }
};

}  // namespace modfast
