// k-means on a GPU: argument checks, memory for the kernels, registration.
#include "common/binding_cuda.h"
#include "spectral/binding.h"
#include "spectral/cuda_kmeans.h"

#include <tuple>

namespace modfast {
namespace {

std::tuple<Tensor, Tensor, Tensor> k_means_cuda(const Tensor& points, const Tensor& weights,
                                                int64_t num_clusters, int64_t n_init, int64_t seed,
                                                int64_t max_iter, double same_place) {
  const KMeans problem =
      k_means_of(points, weights, num_clusters, n_init, seed, max_iter, same_place, checked_beside(points));
  const OnDevice device(points);
  const Tensor room = torch::stable::new_empty(points, {k_means_room(problem)}, ScalarType::Byte);
  Tensor labels = torch::stable::new_empty(points, {problem.points}, ScalarType::Long);
  Tensor cost = torch::stable::new_empty(points, {1}, ScalarType::Double);
  Tensor iterations = torch::stable::new_empty(points, {1}, ScalarType::Long);
  require_success(cuda_k_means(problem, const_data_of<float>(points), const_data_of<float>(weights),
                               room.data_ptr(), mutable_data_of<int64_t>(labels),
                               mutable_data_of<double>(cost), mutable_data_of<int64_t>(iterations),
                               device.stream()));
  return {labels, cost, iterations};
}

}  // namespace
}  // namespace modfast

STABLE_TORCH_LIBRARY_IMPL(modfast, CUDA, m) { m.impl("k_means", MODFAST_BOX(&modfast::k_means_cuda)); }
