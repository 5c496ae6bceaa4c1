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

void tail_forward_cpu(Tensor features, Tensor signs, std::vector<Tensor> weights, std::vector<Tensor> biases,
                      std::vector<int64_t> activations, std::vector<double> slopes, std::vector<Tensor> pre,
                      std::vector<Tensor> held, int64_t label, int64_t threads) {
  const Tail tail =
      tail_of({features, signs, weights, biases, activations, slopes, pre, held, label, threads}, checked);
  tail_forward(tail, parallel_for);
}

void walk_row_cpu(Tensor features, Tensor signs, std::vector<Tensor> weights, std::vector<Tensor> biases,
                  std::vector<int64_t> activations, std::vector<double> slopes, std::vector<Tensor> pre,
                  std::vector<Tensor> held, int64_t label, int64_t threads, int64_t layer, int64_t row,
                  int64_t begin, int64_t end, double highest_loss, std::optional<double> least_right) {
  const Tail tail =
      tail_of({features, signs, weights, biases, activations, slopes, pre, held, label, threads}, checked);
  check_place(tail, {layer, row, begin, end});
  walk_row(tail, layer, row, begin, end, bounds_of(highest_loss, least_right), parallel_for);
}

}  // namespace
}  // namespace modfast

// clang-format off
STABLE_TORCH_LIBRARY_FRAGMENT(modfast, m) {
  m.def("tail_forward_(Tensor features, Tensor signs, Tensor[] weights, Tensor[] biases, int[] activations, "
        "float[] slopes, Tensor(a!)[] pre, Tensor(b!)[] held, int label, int threads) -> ()");
  m.def("walk_row_(Tensor features, Tensor signs, Tensor(a!)[] weights, Tensor[] biases, int[] activations, "
        "float[] slopes, Tensor(b!)[] pre, Tensor(c!)[] held, int label, int threads, int layer, int row, "
        "int begin, int end, float highest_loss, float? least_right) -> ()");
}
// clang-format on

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) {
  m.impl("tail_forward_", TORCH_BOX(&modfast::tail_forward_cpu));
  m.impl("walk_row_", TORCH_BOX(&modfast::walk_row_cpu));
}
