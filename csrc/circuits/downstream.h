// How the losses depend on the activation of one neuron: what the walk's inner loops read.
#pragma once

#include "circuits/circuits.h"

namespace modfast {

// How much of the change at a place moves a neuron. Places: 0 is the walked neuron, 1 + h the hidden neuron h
// of Downstream.
struct Change {
  double weight;
  int64_t from;
};

// A neuron after the walked one: its state before the row, and the changes first to last that move it.
struct Moved {
  const double* pre;
  const double* held;  // null for a logit
  int64_t first, last;
  Activation activation;
  double slope;
  bool before_label;  // of a logit: whether its class comes before the label
};

// The loss of an input is softplus(-sign m) of its margin m = own logit - logsumexp(other logits). This is
// the cross-entropy, or with sign -1 that of "another class". Other logits that do not move are summed up
// once for the row.
struct Downstream {
  Activation activation = Activation::identity;  // of the walked neuron
  double slope = 0.0;
  const double* held = nullptr;  // its activation before the row
  bool is_logit = false;         // the walked neuron is a logit itself,
  bool is_label = false;         // the label's,
  bool before_label = false;     // or one before it
  const Change* changes = nullptr;
  const Moved* hidden = nullptr;  // in an order in which each depends on earlier ones
  int64_t hidden_count = 0;
  const Moved* others = nullptr;  // logits of other classes
  int64_t others_count = 0;
  const Moved* own = nullptr;  // the label's logit, if it moves
  const double* own_pre = nullptr;
  const double* signs = nullptr;
  // Of the other logits that do not move: the largest, the sum of exp(logit - largest) and their logsumexp;
  // and the largest before and after the label.
  const double *largest = nullptr, *sum = nullptr, *logsumexp = nullptr, *largest_before = nullptr,
               *largest_after = nullptr;

  // Whether any logit moves at all.
  bool reaches() const { return is_logit || own != nullptr || others_count > 0; }
  MODFAST_HD bool others_move() const { return others_count > 0 || (is_logit && !is_label); }
};

// The state of the walked neuron and the losses under some weights: pre-activations, activations, losses, and
// 1 or 0 for inputs answered rightly or not. right may be null.
struct Outcome {
  double *pre, *held, *losses, *right;
};

}  // namespace modfast
