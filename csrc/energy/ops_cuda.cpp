// The operators on a GPU: argument checks, conversion of tensors for the kernels, registration.
//
// Nothing here waits for the device, and all memory comes from PyTorch, so every operator can be captured in
// a CUDA graph. The values of labels are therefore not checked: one out of range counts as "in no cluster".
#include "common/binding_cuda.h"
#include "energy/binding.h"
#include "energy/cuda.h"
#include "energy/plan.h"

#include <limits>
#include <optional>
#include <tuple>

namespace modfast {
namespace {

Place place_of(const Tensor& tensor, const Strides& strides) {
  REQUIRE(strides.kernel.size() <= kKernelDims, "on CUDA at most ", kKernelDims,
          " kernel dimensions may lie apart in memory, got shape ", shape_of(tensor));
  Place place{tensor.data_ptr(), strides.row, strides.col, {0, 0, 0}};
  for (size_t d = 0; d < strides.kernel.size(); ++d) place.kernel[d] = strides.kernel[d].second;
  return place;
}

// first: a tensor whose device the others must share; other: the gradient or another tensor like the weight.
Matrix matrix_of(const Tensor& first, const Tensor& weight, const Tensor* other, const Tensor& row_labels,
                 const Tensor& col_labels, int64_t num_clusters, bool* transposed) {
  check_num_clusters(num_clusters);
  check_device(weight, first, "weight");
  check_device(row_labels, first, "row_labels");
  check_device(col_labels, first, "col_labels");
  if (other != nullptr) check_device(*other, first, "weight");
  const Tensor* tensors[] = {&weight, other};
  const Layout layout = layout_of(tensors, other == nullptr ? 1 : 2);
  check_labels(row_labels, weight.size(0), "row_labels");
  check_labels(col_labels, weight.size(1), "col_labels");
  const auto source = [](const Tensor& labels, const LabelIndex& index) {
    return LabelSource{static_cast<const int64_t*>(labels.const_data_ptr()),
                       labels.size(0) > 0 ? labels.stride(0) : 1, index};
  };
  Matrix matrix{};
  matrix.dtype = dtype_of(weight, "weight");
  matrix.none = static_cast<int32_t>(num_clusters);
  matrix.rows = layout.rows;
  matrix.cols = layout.cols;
  matrix.weight = place_of(weight, layout.tensors[0]);
  matrix.grad = other == nullptr ? matrix.weight : place_of(*other, layout.tensors[1]);
  matrix.row_labels = source(layout.transposed ? col_labels : row_labels, layout.row_index);
  matrix.col_labels = source(layout.transposed ? row_labels : col_labels, layout.col_index);
  for (int d = 0; d < kKernelDims; ++d) {
    const auto& kernel = layout.tensors[0].kernel;
    matrix.kernel_size[d] = size_t(d) < kernel.size() ? kernel[d].first : 1;
  }
  if (transposed != nullptr) *transposed = layout.transposed;
  return matrix;
}

std::vector<Matrix> matrices_of(const std::vector<Tensor>& weights, const std::vector<Tensor>* grads,
                                const std::vector<Tensor>& row_labels, const std::vector<Tensor>& col_labels,
                                const std::vector<int64_t>& num_clusters) {
  check_lists(weights, grads ? *grads : weights, row_labels, col_labels, num_clusters);
  std::vector<Matrix> matrices;
  matrices.reserve(weights.size());
  for (size_t t = 0; t < weights.size(); ++t) {
    matrices.push_back(matrix_of(weights[0], weights[t], grads ? &(*grads)[t] : nullptr, row_labels[t],
                                 col_labels[t], num_clusters[t], nullptr));
    plan_items(&matrices.back());
  }
  return matrices;
}

Tensor doubles(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(like, shape, ScalarType::Double);
}

template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// New tensors for the losses and energies of some matrices: (n,) and (n, 2).
std::tuple<Tensor, Tensor> energies_of(const Tensor& like, const std::vector<Matrix>& matrices,
                                       const OnDevice& device) {
  const auto count = static_cast<int64_t>(matrices.size());
  int64_t items = 0;
  for (const Matrix& matrix : matrices) items += matrix.items;
  Tensor losses = doubles(like, {count}), energies = doubles(like, {count, 2});
  Tensor partial = doubles(like, {items, 2});
  require_success(cuda_energies(matrices.data(), count, data_of<Split>(partial), data_of<Split>(energies),
                                data_of<double>(losses), device.stream()));
  return {losses, energies};
}

std::tuple<Tensor, Tensor> enmeshment_cuda(std::vector<Tensor> weights, std::vector<Tensor> row_labels,
                                           std::vector<Tensor> col_labels,
                                           std::vector<int64_t> num_clusters) {
  const auto matrices = matrices_of(weights, nullptr, row_labels, col_labels, num_clusters);
  const OnDevice device(weights[0]);
  return energies_of(weights[0], matrices, device);
}

void scale(const std::vector<Tensor>& weights, const std::vector<Matrix>& matrices, const Tensor& energies,
           const Tensor& slopes, Into into) {
  const auto count = static_cast<int64_t>(weights.size());
  check_device(energies, weights[0], "energies");
  check_device(slopes, weights[0], "slopes");
  check_numbers(energies, count, 2, "energies");
  check_numbers(slopes, count, 0, "slopes");
  const OnDevice device(weights[0]);
  require_success(cuda_scale(matrices.data(), count, data_of<Split>(energies), data_of<double>(slopes), 0.0,
                             into, device.stream()));
}

std::vector<Tensor> enmeshment_grad_cuda(std::vector<Tensor> weights, Tensor energies, Tensor slopes,
                                         std::vector<Tensor> row_labels, std::vector<Tensor> col_labels,
                                         std::vector<int64_t> num_clusters) {
  std::vector<Tensor> grads;
  for (const Tensor& weight : weights) grads.push_back(torch::stable::empty_like(weight));
  const auto matrices = matrices_of(weights, &grads, row_labels, col_labels, num_clusters);
  scale(weights, matrices, energies, slopes, Into::fresh);
  return grads;
}

void add_enmeshment_grad_cuda(std::vector<Tensor> weights, std::vector<Tensor> grads, Tensor energies,
                              Tensor slopes, std::vector<Tensor> row_labels, std::vector<Tensor> col_labels,
                              std::vector<int64_t> num_clusters) {
  const auto matrices = matrices_of(weights, &grads, row_labels, col_labels, num_clusters);
  check_writable(weights, grads);
  scale(weights, matrices, energies, slopes, Into::sum);
}

Tensor accumulate_enmeshment_grad_cuda(std::vector<Tensor> weights, std::vector<Tensor> grads,
                                       std::vector<Tensor> row_labels, std::vector<Tensor> col_labels,
                                       std::vector<int64_t> num_clusters, double slope) {
  const auto matrices = matrices_of(weights, &grads, row_labels, col_labels, num_clusters);
  check_writable(weights, grads);
  const OnDevice device(weights[0]);
  const auto [losses, energies] = energies_of(weights[0], matrices, device);
  require_success(cuda_scale(matrices.data(), static_cast<int64_t>(matrices.size()), data_of<Split>(energies),
                             nullptr, slope, Into::sum, device.stream()));
  return losses;
}

// Transposes a square matrix of blocks if the matrix was transposed.
Tensor turned(const Tensor& square, bool transposed) {
  return transposed ? torch::stable::contiguous(torch::stable::transpose(square, 0, 1)) : square;
}

Tensor block_inner_cuda(const Tensor& weight, const std::optional<Tensor>& other, const Tensor& row_labels,
                        const Tensor& col_labels, int64_t num_clusters) {
  bool transposed;
  const Matrix matrix =
      matrix_of(weight, weight, other ? &*other : nullptr, row_labels, col_labels, num_clusters, &transposed);
  const OnDevice device(weight);
  const BlockRoom room = block_room(matrix);
  const Tensor orders = torch::stable::new_empty(weight, {room.orders}, ScalarType::Int);
  const Tensor starts = torch::stable::new_empty(weight, {room.starts}, ScalarType::Int);
  const Tensor partial = doubles(weight, {room.partial});
  const Tensor blocks = doubles(weight, {num_clusters + 1, num_clusters + 1});
  require_success(cuda_block_inner(matrix, other.has_value(), data_of<int32_t>(orders),
                                   data_of<int32_t>(starts), data_of<double>(partial),
                                   data_of<double>(blocks), device.stream()));
  return turned(blocks, transposed);
}

Tensor block_scale_cuda(const Tensor& weight, const Tensor& factors, const Tensor& row_labels,
                        const Tensor& col_labels) {
  check_device(factors, weight, "factors");
  check_factors(factors);
  Tensor out = torch::stable::empty_like(weight);
  bool transposed;
  Matrix matrix = matrix_of(weight, weight, &out, row_labels, col_labels, factors.size(0) - 1, &transposed);
  plan_items(&matrix, 1);
  const OnDevice device(weight);
  const Tensor table = turned(torch::stable::contiguous(factors), transposed);
  require_success(cuda_block_scale(matrix, data_of<double>(table), device.stream()));
  return out;
}

}  // namespace
}  // namespace modfast

STABLE_TORCH_LIBRARY_IMPL(modfast, CUDA, m) {
  m.impl("block_inner", MODFAST_BOX(&modfast::block_inner_cuda));
  m.impl("block_scale", MODFAST_BOX(&modfast::block_scale_cuda));
  m.impl("enmeshment", MODFAST_BOX(&modfast::enmeshment_cuda));
  m.impl("enmeshment_grad", MODFAST_BOX(&modfast::enmeshment_grad_cuda));
  m.impl("add_enmeshment_grad_", MODFAST_BOX(&modfast::add_enmeshment_grad_cuda));
  m.impl("accumulate_enmeshment_grad_", MODFAST_BOX(&modfast::accumulate_enmeshment_grad_cuda));
}
