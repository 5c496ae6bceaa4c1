// The inner loops of the walk, compiled once for each instruction set; every level computes the same bits.
#pragma once

#include "circuits/channels.h"

namespace modfast {

// A weight that is not zero, and the input neuron that it multiplies.
struct Link {
  double weight;
  int64_t from;
};

// Input neurons in rows: neuron i is at rows + i * step on input `first`.
struct InputRows {
  const double* rows;
  int64_t step, first;
};

// One trial on a range of inputs.
struct Trial {
  const Downstream* after;
  double weight;        // the weight that is set to zero
  const double* input;  // the input that it multiplies
  Outcome from, to;     // before the trial and after it
  // Memory for 1 + hidden_count and for others_count times kInputs numbers.
  double *changes, *logits;
};

// The same for a weight of a channel. `input` is the first place of the input channel, of the first block.
struct ChannelTrial {
  const Channels* channels;
  double weight;
  const double* input;
  int64_t input_block;
  const int32_t* sources;
  Outcome from, to;
  ChannelRoom room;
};

struct Verdict {
  double loss = 0.0, right = 0.0;
  bool moved = false;
};

struct CircuitLines {
  // pre = bias + sum of weight * input over the links, held = activation of pre, for inputs begin to end
  void (*forward)(const Link* links, int64_t count, const InputRows& inputs, double bias,
                  Activation activation, double slope, int64_t begin, int64_t end, double* pre, double* held);
  // largest, sum of exp(logit - largest) and logsumexp over the logits, for inputs begin to end
  void (*logsumexp)(const double* const* logits, int64_t count, int64_t begin, int64_t end, double* largest,
                    double* sum, double* logsumexp);
  // losses (and right, unless null) for the activations held
  void (*losses)(const Downstream& after, int64_t begin, int64_t end, const double* held, double* losses,
                 double* right, double* changes, double* logits);
  // computes the outcome of a trial, and returns its sums over inputs begin to end
  Verdict (*attempt)(const Trial& trial, int64_t begin, int64_t end);

  // The same three for channels. begin and end are multiples of kInputs, and outcomes lie in blocks.
  void (*forward_channel)(const ChannelSums& sums, const ChannelRoom& room, int64_t begin, int64_t end);
  void (*channel_losses)(const Channels& channels, const ChannelRoom& room, int64_t begin, int64_t end,
                         const Outcome& outcome);
  Verdict (*attempt_channel)(const ChannelTrial& trial, int64_t begin, int64_t end);
};

extern const CircuitLines circuit_lines_baseline;
#if defined(__x86_64__)
extern const CircuitLines circuit_lines_avx2;
extern const CircuitLines circuit_lines_avx512;
#endif

// The loops for the instruction set in use.
const CircuitLines& circuit_lines_in_use();

}  // namespace modfast
