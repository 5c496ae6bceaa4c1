// How the losses depend on the activation of one neuron: the data of the walk's inner loops.
#pragma once

#include "circuits/circuits.h"

namespace modfast {

// A term of a neuron's change: weight times the change of the neuron `from`. The first `entries` of them are
// where a change enters the linear layers: the walked neuron alone (the one whose row is walked along), or
// what channels before these layers hold; entries + h is Downstream::hidden[h].
struct Change {
  double weight;
  int64_t from;
};

// A neuron after the walked one: its state before the row, and the range of Downstream::changes that adds up
// to its change.
struct Moved {
  const double* pre;
  const double* held;  // null for a logit
  int64_t first, last;
  Activation activation;
  double slope;
  bool before_label;  // for a logit: whether its class comes before the label
};

// The loss of an input is softplus(-sign m), with the margin m = own logit - logsumexp(other logits) and the
// label's logit as own. It is the cross-entropy, or with sign -1 that of "another class". Other logits that
// do not change along the row are summed once for the row.
struct Downstream {
  Activation activation = Activation::identity;  // of the walked neuron
  double slope = 0.0;
  const double* held = nullptr;  // the walked neuron's activation before the row
  bool is_logit = false;         // whether the walked neuron is a logit,
  bool is_label = false;         // the label's logit,
  bool before_label = false;     // a logit of a class before the label
  int64_t entries = 1;
  const Change* changes = nullptr;
  const Moved* hidden = nullptr;  // each depends on earlier ones only
  int64_t hidden_count = 0;
  const Moved* others = nullptr;  // logits of other classes that change
  int64_t others_count = 0;
  const Moved* own = nullptr;  // the label's logit, if it changes
  const double* own_pre = nullptr;
  const double* signs = nullptr;
  // For the other logits that do not change: the largest, the sum of exp(logit - largest) and the logsumexp;
  // and the largest of the classes before and after the label.
  const double *largest = nullptr, *sum = nullptr, *logsumexp = nullptr, *largest_before = nullptr,
               *largest_after = nullptr;

  // Whether any logit changes.
  bool reaches() const { return is_logit || own != nullptr || others_count > 0; }
  MODFAST_HD bool others_move() const { return others_count > 0 || (is_logit && !is_label); }
};

// The walked neuron's pre-activations and activations for some weights, the losses, and 1 for inputs that are
// answered correctly, else 0. right may be null.
struct Outcome {
  double *pre, *held, *losses, *right;
};

}  // namespace modfast
