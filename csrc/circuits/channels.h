// How the losses depend on what one channel holds, through the layers before the linear ones at the end of
// the tail: the data of the inner loops for convolutions. Changes are computed for kInputs inputs at a time.
#pragma once

#include "circuits/downstream.h"

namespace modfast {

// A term of the sums of a channel: weight times what is at the places `sources` from number `from` on.
struct Term {
  double weight;
  int64_t from;            // in numbers, from the beginning of the changes or of a block of the inputs
  const int32_t* sources;  // for each place of the sums; -1 for none
  const int32_t* rises;    // for each whole group of kInputs places; see TailLayer
  int64_t cause;           // for changes: the number of the changed channel that it reads
};

// The sources of weight j of a row of a layer.
inline Term term_of(const TailLayer& layer, int64_t j, double weight, int64_t from, int64_t cause) {
  const int64_t tap = j % layer.taps;
  return {weight, from, layer.sources + tap * layer.places, layer.rises + tap * (layer.places / kInputs),
          cause};
}

// A channel after the walked one: its state before the row, and the range of Channels::terms that adds up to
// the change of its sums.
struct MovedChannel {
  const double* pre;   // its first place, of the first block
  const double* held;  // the same
  int64_t row;
  int64_t first, last;
  int64_t to;  // where its changes go: numbers from the beginning of the changes of its layer
};

// The channels of one layer that change.
struct MovedLayer {
  const TailLayer* layer;
  int64_t first, last;  // in Channels::channels
  Layout pre, held;
};

struct Channels {
  const TailLayer* layer = nullptr;  // of the walked channel
  int64_t row = 0;
  const double* held =
      nullptr;  // what the walked channel held before the row: blocks x held_places x kInputs
  const Term* terms = nullptr;
  const MovedChannel* channels = nullptr;
  const MovedLayer* layers = nullptr;
  int64_t layer_count = 0;
  // The most places of a channel, changed channels of a layer, changes of a layer, and terms of a channel.
  int64_t most_places = 1, most_channels = 1, most_changes = 1, most_terms = 0;
  const Downstream* after = nullptr;  // the linear layers at the end, and the losses
};

// One thread's memory for the loops above.
struct ChannelRoom {
  double* changes[2];    // most_changes and the linear layers' changes, times kInputs
  double *sums, *spare;  // most_places times kInputs
  double* held;          // the same
  double* logits;        // others_count times kInputs
  Term* terms;           // most_terms
  char* still[2];        // most_channels: whether a channel's changes are all zero
};

// The sums of a channel, from its inputs.
struct ChannelSums {
  const TailLayer* layer;
  int64_t row;
  const Term* terms;
  int64_t count;
  const double* inputs;
  int64_t inputs_block;
  double* pre;
  int64_t pre_block;
  double* held;
  Layout held_layout;
};

}  // namespace modfast
