// Which neurons and logits depend on one neuron. The host finds them from the weights after it before the
// walk along a row begins, on every device. Weights are read here; states are only pointed to, and may be on
// a GPU.
#pragma once

#include "circuits/downstream.h"

#include <cstddef>
#include <vector>

namespace modfast {

struct Moves {
  // Reads the weights of the layers after this one.
  Moves(const Tail& tail, int64_t layer, int64_t row) {
    const size_t last_layer = tail.layers.size() - 1;
    const TailLayer &at = tail.layers[layer], &last = tail.layers[last_layer];
    after.activation = at.activation;
    after.slope = at.slope;
    after.held = at.held + row * tail.stride;
    after.is_logit = static_cast<size_t>(layer) == last_layer;
    after.is_label = after.is_logit && row == tail.label;
    after.before_label = row < tail.label;
    after.own_pre = last.pre + tail.label * tail.stride;
    after.signs = tail.signs;
    std::vector<char> logit_moves(last.rows, 0);
    if (after.is_logit) {
      logit_moves[row] = 1;
    } else {
      find_moved(tail, layer, row, &logit_moves);
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
  std::vector<Change> changes;
  std::vector<Moved> hidden, others, own;
  std::vector<int64_t> still;  // the other classes whose logits do not change
  int64_t still_before = 0;    // how many of them come before the label

 private:
  // For each later layer, which of its neurons affect a logit.
  static std::vector<std::vector<char>> leading(const Tail& tail, int64_t layer) {
    const auto count = tail.layers.size();
    std::vector<std::vector<char>> leads(count);
    leads[count - 1].assign(tail.layers[count - 1].rows, 1);
    for (size_t l = count - 1; l-- > static_cast<size_t>(layer) + 1;) {
      const TailLayer& next = tail.layers[l + 1];
      leads[l].assign(next.cols, 0);
      for (int64_t s = 0; s < next.rows; ++s) {
        if (!leads[l + 1][s]) continue;
        for (int64_t q = 0; q < next.cols; ++q) {
          if (next.weights[s * next.cols + q] != 0.0) leads[l][q] = 1;
        }
      }
    }
    return leads;
  }

  void find_moved(const Tail& tail, int64_t layer, int64_t row, std::vector<char>* logit_moves) {
    const int64_t last_layer = static_cast<int64_t>(tail.layers.size()) - 1;
    const auto leads = leading(tail, layer);
    struct Place {
      int64_t neuron, place;
    };
    std::vector<Place> moved{{row, 0}}, next;
    for (int64_t l = layer + 1; l <= last_layer; ++l) {
      const TailLayer& to = tail.layers[l];
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
        const bool logit = l == last_layer;
        const Moved neuron{to.pre + s * tail.stride,
                           logit ? nullptr : to.held + s * tail.stride,
                           first,
                           end,
                           to.activation,
                           to.slope,
                           logit && s < tail.label};
        if (logit) {
          (*logit_moves)[s] = 1;
          (s == tail.label ? own : others).push_back(neuron);
        } else {
          hidden.push_back(neuron);
          next.push_back({s, static_cast<int64_t>(hidden.size())});
        }
      }
      moved.swap(next);
    }
  }
};

// The input of a layer.
inline const double* inputs_of(const Tail& tail, int64_t layer) {
  return layer == 0 ? tail.features : tail.layers[layer - 1].held;
}

}  // namespace modfast
