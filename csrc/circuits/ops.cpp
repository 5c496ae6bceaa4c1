// The walk's operators on the CPU: schemas, argument checks, registration.
#include "circuits/binding.h"
#include "common/binding_cpu.h"

namespace modfast {
namespace {

const Tensor& checked(const Tensor& tensor, ScalarType type, std::initializer_list<int64_t> shape,
                      const char* name) {
  check_cpu(tensor, name);
  return check_shaped(tensor, type, shape, name);
}

void tail_forward_cpu(TAIL_PARAMETERS) {
  const Tail tail = tail_of(TAIL_TENSORS, checked);
  tail_forward(tail, parallel_for);
}

void walk_row_cpu(TAIL_PARAMETERS, int64_t layer, int64_t row, int64_t begin, int64_t end,
                  double highest_loss, std::optional<double> least_right) {
  const Tail tail = tail_of(TAIL_TENSORS, checked);
  check_place(tail, {layer, row, begin, end});
  walk_row(tail, layer, row, begin, end, bounds_of(highest_loss, least_right), parallel_for);
}

}  // namespace
}  // namespace modfast

// clang-format off
STABLE_TORCH_LIBRARY_FRAGMENT(modfast, m) {
  m.def("tail_forward_(Tensor features, Tensor signs, Tensor[] weights, Tensor[] biases, int[] activations, "
        "float[] slopes, Tensor[] sources, int[] groups, int[] stage_layers, int[] stage_kinds, "
        "float[] stage_numbers, Tensor[] stage_tables, Tensor(a!)[] pre, Tensor(b!)[] held, int label, "
        "int threads) -> ()");
  m.def("walk_row_(Tensor features, Tensor signs, Tensor(a!)[] weights, Tensor[] biases, int[] activations, "
        "float[] slopes, Tensor[] sources, int[] groups, int[] stage_layers, int[] stage_kinds, "
        "float[] stage_numbers, Tensor[] stage_tables, Tensor(b!)[] pre, Tensor(c!)[] held, int label, "
        "int threads, int layer, int row, int begin, int end, float highest_loss, float? least_right) -> ()");
}
// clang-format on

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) {
  m.impl("tail_forward_", MODFAST_BOX(&modfast::tail_forward_cpu));
  m.impl("walk_row_", MODFAST_BOX(&modfast::walk_row_cpu));
}
