// The walk's operators on a GPU: argument checks, memory for the kernels, registration.
//
// All work goes to the current stream, and functions wait for no other stream, so walks on different streams
// run side by side. The number of threads has no effect here.
#include "circuits/binding.h"
#include "circuits/cuda.h"
#include "common/binding_cuda.h"

namespace modfast {
namespace {

void forward_rows(const Tail& tail, int64_t layer, int64_t first, int64_t last, const OnDevice& device) {
  require_success(
      cuda_forward(tail.layers[layer], inputs_of(tail, layer), tail.stride, first, last, device.stream()));
}

void forward_layers(const Tail& tail, int64_t first, const OnDevice& device) {
  for (int64_t l = first; l < static_cast<int64_t>(tail.layers.size()); ++l) {
    forward_rows(tail, l, 0, tail.layers[l].rows, device);
  }
}

Tail linear_tail_of(const TailTensors& given) {
  REQUIRE(given.sources.empty() && given.stage_layers.empty(),
          "sources and stage_layers must be empty on a GPU, which walks along linear layers only");
  return tail_of(given, checked_beside(given.features));
}

void tail_forward_cuda(TAIL_PARAMETERS) {
  const Tail tail = linear_tail_of(TAIL_TENSORS);
  forward_layers(tail, 0, OnDevice(weights[0]));
}

// The same tail, but the weights of the layers from `first` on are copies on the host.
class WithWeights {
 public:
  WithWeights(const Tail& tail, int64_t first, const OnDevice& device) : tail_(tail) {
    for (size_t l = first; l < tail.layers.size(); ++l) {
      TailLayer& layer = tail_.layers[l];
      auto& copy = copies_.emplace_back(layer.rows * layer.cols);
      require_success(cuda_read(layer.weights, layer.rows * layer.cols, copy.data(), device.stream()));
      layer.weights = copy.data();
    }
  }
  WithWeights(const WithWeights&) = delete;
  const Tail& operator*() const { return tail_; }

 private:
  Tail tail_;
  std::vector<std::vector<double>> copies_;
};

void walk_row_cuda(TAIL_PARAMETERS, int64_t layer, int64_t row, int64_t begin, int64_t end,
                   double highest_loss, std::optional<double> least_right) {
  const Tail tail = linear_tail_of(TAIL_TENSORS);
  check_place(tail, {layer, row, begin, end});
  if (begin == end) return;
  const OnDevice device(weights[0]);
  const Moves moves(*WithWeights(tail, layer + 1, device), layer, row);
  if (moves.after.reaches()) {
    const WalkPlan plan(tail, moves, layer, row, begin, end, bounds_of(highest_loss, least_right));
    const auto words = static_cast<int64_t>(plan.tables().size());
    const Tensor tables = torch::stable::new_empty(features, {words}, ScalarType::Long);
    const Tensor numbers = torch::stable::new_empty(features, {plan.numbers()});
    require_success(
        cuda_walk(plan, mutable_data_of<int64_t>(tables), mutable_data_of<double>(numbers), device.stream()));
  } else {
    const TailLayer& at = tail.layers[layer];
    require_success(cuda_clear(at.weights + row * at.cols + begin, end - begin, device.stream()));
  }
  forward_rows(tail, layer, row, row + 1, device);
  forward_layers(tail, layer + 1, device);
}

}  // namespace
}  // namespace modfast

STABLE_TORCH_LIBRARY_IMPL(modfast, CUDA, m) {
  m.impl("tail_forward_", MODFAST_BOX(&modfast::tail_forward_cuda));
  m.impl("walk_row_", MODFAST_BOX(&modfast::walk_row_cuda));
}
