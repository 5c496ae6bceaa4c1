// Checks of the optimiser's arguments on every device, and the layout of its tensors.
#pragma once

#include "common/binding_layout.h"

#include <optional>
#include <vector>

namespace modfast {

struct StepArguments {
  const std::vector<Tensor>&weights, &grads, &exp_avgs, &exp_avg_sqs, &steps;
  const std::optional<Tensor>& labels;
  const std::vector<int64_t>& first_labels;
  const std::optional<Tensor>&energies, &new_energies;
  const std::vector<int64_t>& keep;
  const std::optional<Tensor>&thresholds, &lr_tensor, &grad_scale, &found_inf;
};

// Requires what modfast/reference/optim.py says of the arguments; check_place(tensor, name) requires a
// device. Returns how many weights are of the loss.
int64_t check_step(const StepArguments& given, void (*check_place)(const Tensor&, const char*));

// The same of an operator that reads labelled weights, all of the loss.
void check_labelled(const std::vector<Tensor>& weights, const Tensor& labels,
                    const std::vector<int64_t>& first_labels,
                    void (*check_place)(const Tensor&, const char*));

// The number in a tensor of one float32 or float64 element on the CPU.
double number_of(const Tensor& tensor);

// Whether a weight, its gradient and its moments fill their memory, all in the same order.
bool lie_alike(const Tensor* const (&tensors)[4]);

// Like layout_of, also for tensors of fewer than two dimensions, which are one row.
Layout layout_of_stepped(const Tensor* const (&tensors)[4]);

}  // namespace modfast
