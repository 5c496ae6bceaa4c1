// The optimiser's operator on the CPU: schema, argument checks, registration.
#include "common/binding_cpu.h"

// clang-format off
STABLE_TORCH_LIBRARY_FRAGMENT(modfast, m) {
  m.def("adamw_(Tensor(a!)[] weights, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
        "Tensor(e!)[] steps, Tensor? labels, int[] first_labels, Tensor? energies, Tensor(f!)? new_energies, "
        "float slope, int[] keep, Tensor(g!)? floors, float lr, Tensor? lr_tensor, float beta1, float beta2, "
        "float eps, float weight_decay, Tensor? grad_scale, Tensor? found_inf, bool stochastic_rounding) -> ()");
}
// clang-format on
