// The spectral family's operators on a GPU: argument checks, memory for the kernels, registration.
//
// Nothing here waits for the device, and all memory comes from PyTorch. The values of a sparse matrix's
// starts and indices are therefore not checked: a row or an entry that is out of range counts as empty.
#include "common/binding_cuda.h"
#include "spectral/binding.h"
#include "spectral/cuda.h"

#include <array>
#include <tuple>

namespace modfast {
namespace {

template <class C>
Tensor room_for(int64_t numbers, const Tensor& like) {
  return torch::stable::new_empty(like, {numbers},
                                  std::is_same_v<C, float> ? ScalarType::Float : ScalarType::Double);
}

std::tuple<Tensor, Tensor> similarity_sums_cuda(const Tensor& weight, int64_t affinity, double scale) {
  const DenseMatrix matrix = dense_of(weight);
  const Similarity similarity = similarity_of(affinity, scale);
  const OnDevice device(weight);
  const PieceRoom room = sums_room(matrix);
  const Tensor row_pieces = room_for<double>(room.forward, weight);
  const Tensor col_pieces = room_for<double>(room.backward, weight);
  Tensor rows = room_for<double>(matrix.rows, weight), cols = room_for<double>(matrix.cols, weight);
  require_success(cuda_sums(matrix, similarity, mutable_data_of<double>(row_pieces),
                            mutable_data_of<double>(col_pieces), mutable_data_of<double>(rows),
                            mutable_data_of<double>(cols), device.stream()));
  return {rows, cols};
}

std::tuple<Tensor, Tensor> similarity_product_cuda(const Tensor& weight, int64_t affinity, double scale,
                                                   const std::optional<Tensor>& right,
                                                   const std::optional<Tensor>& left,
                                                   const std::optional<Tensor>& row_weights) {
  const DenseMatrix matrix = dense_of(weight);
  const Similarity similarity = similarity_of(affinity, scale);
  const OnDevice device(weight);
  return product_of(
      matrix.rows, matrix.cols, right, left, row_weights, checked_beside(weight), [&](const auto& blocks) {
        using C = std::remove_pointer_t<decltype(blocks.forward)>;
        const ProductPlan<C> plan(matrix, similarity, blocks);
        const PieceRoom room = plan.room();
        const Tensor forward = room_for<C>(room.forward, weight);
        const Tensor backward = room_for<C>(room.backward, weight);
        require_success(
            cuda_product(plan, mutable_data_of<C>(forward), mutable_data_of<C>(backward), device.stream()));
      });
}

Rows rows_of(const Tensor& starts, const Tensor& indices, const Tensor& values, int64_t cols) {
  return {sparse_of(starts, indices, values, cols, checked_beside(values)), indices.size(0)};
}

// The transpose of a sparse matrix: with entries sorted by column, sums over columns always have the same
// order. The sort is PyTorch's, and stable.
class Turned {
 public:
  Turned(const Rows& rows, const Tensor& indices, const Tensor& values, const OnDevice& device)
      : starts_(torch::stable::new_empty(indices, {rows.matrix.cols + 1})),
        indices_(torch::stable::empty_like(indices)),
        values_(torch::stable::empty_like(values)) {
    check_rows_of_index(rows.matrix);
    std::array<StableIValue, 4> stack{
        torch::stable::detail::from(indices), torch::stable::detail::from(std::optional<bool>(true)),
        torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
    REQUIRE(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION) == 0,
            "PyTorch does not sort indices of shape ", shape_of(indices));
    const auto columns = torch::stable::detail::to<Tensor>(stack[0]);
    const auto order = torch::stable::detail::to<Tensor>(stack[1]);
    require_success(cuda_turn(rows, columns.const_data_ptr(), const_data_of<int64_t>(order),
                              starts_.data_ptr(), indices_.data_ptr(), values_.data_ptr(), device.stream()));
    rows_.entries = rows.entries;
    rows_.matrix = {starts_.const_data_ptr(), indices_.const_data_ptr(), rows.matrix.wide,
                    values_.const_data_ptr(), rows.matrix.dtype,         rows.matrix.cols,
                    rows.matrix.rows};
  }
  const Rows& rows() const { return rows_; }
  std::tuple<Tensor, Tensor, Tensor> tensors() const { return {starts_, indices_, values_}; }

 private:
  Tensor starts_, indices_, values_;
  Rows rows_;
};

std::tuple<Tensor, Tensor, Tensor> sparse_transpose_cuda(const Tensor& starts, const Tensor& indices,
                                                         const Tensor& values, int64_t cols) {
  const Rows rows = rows_of(starts, indices, values, cols);
  const OnDevice device(values);
  return Turned(rows, indices, values, device).tensors();
}

std::tuple<Tensor, Tensor> sparse_similarity_sums_cuda(const Tensor& starts, const Tensor& indices,
                                                       const Tensor& values, int64_t cols, int64_t affinity,
                                                       double scale, const std::optional<Tensor>& right,
                                                       const std::optional<Tensor>& left, bool of_cols) {
  const Rows rows = rows_of(starts, indices, values, cols);
  const Similarity similarity = similarity_of(affinity, scale);
  const auto checked = checked_beside(values);
  const double* right_probe = probe_of(right, cols, "right", checked);
  const double* left_probe = probe_of(left, rows.matrix.rows, "left", checked);
  const OnDevice device(values);
  Tensor row_sums = room_for<double>(rows.matrix.rows, values);
  Tensor col_sums = room_for<double>(of_cols ? cols : 0, values);
  require_success(
      cuda_sums(rows, similarity, right_probe, mutable_data_of<double>(row_sums), device.stream()));
  if (!of_cols) return {row_sums, col_sums};
  const Turned turned(rows, indices, values, device);
  require_success(
      cuda_sums(turned.rows(), similarity, left_probe, mutable_data_of<double>(col_sums), device.stream()));
  return {row_sums, col_sums};
}

std::tuple<Tensor, Tensor> sparse_similarity_product_cuda(const Tensor& starts, const Tensor& indices,
                                                          const Tensor& values, int64_t cols,
                                                          int64_t affinity, double scale,
                                                          const std::optional<Tensor>& right,
                                                          const std::optional<Tensor>& left,
                                                          const std::optional<Tensor>& row_weights) {
  const Rows rows = rows_of(starts, indices, values, cols);
  const Similarity similarity = similarity_of(affinity, scale);
  const OnDevice device(values);
  return product_of(rows.matrix.rows, cols, right, left, row_weights, checked_beside(values),
                    [&](const auto& blocks) {
                      using C = std::remove_pointer_t<decltype(blocks.forward)>;
                      const C* whole = nullptr;  // no scales or weights
                      if (blocks.right) {
                        require_success(cuda_product(rows, similarity, blocks.right, whole, whole,
                                                     blocks.width, blocks.forward, device.stream()));
                      }
                      if (blocks.backward) {
                        const Turned turned(rows, indices, values, device);
                        const C* back = blocks.left ? blocks.left : blocks.forward;
                        require_success(cuda_product(turned.rows(), similarity, back, blocks.row_weights,
                                                     whole, blocks.width, blocks.backward, device.stream()));
                      }
                    });
}

Tensor edge_gradient_cuda(const Tensor& weight, const Tensor& row_terms, const Tensor& col_terms,
                          const Tensor& row_vectors, const Tensor& col_vectors) {
  const auto checked = checked_beside(weight);
  const DenseMatrix matrix = dense_of(weight);
  const auto numbers = [&](const Tensor& tensor, std::initializer_list<int64_t> shape, const char* name) {
    return const_data_of<double>(checked(tensor, ScalarType::Double, shape, name));
  };
  EdgeGradient gradient;
  gradient.weight = matrix;
  gradient.row_terms = numbers(row_terms, {matrix.rows}, "row_terms");
  gradient.col_terms = numbers(col_terms, {matrix.cols}, "col_terms");
  gradient.row_vectors = numbers(row_vectors, {matrix.rows, -1}, "row_vectors");
  gradient.width = row_vectors.size(1);
  gradient.col_vectors = numbers(col_vectors, {matrix.cols, gradient.width}, "col_vectors");
  Tensor grad = torch::stable::new_empty(weight, {matrix.rows, matrix.cols});
  gradient.grad = grad.data_ptr();
  const OnDevice device(weight);
  require_success(cuda_edge_gradient(gradient, device.stream()));
  return grad;
}

}  // namespace
}  // namespace modfast

STABLE_TORCH_LIBRARY_IMPL(modfast, CUDA, m) {
  m.impl("similarity_sums", MODFAST_BOX(&modfast::similarity_sums_cuda));
  m.impl("similarity_product", MODFAST_BOX(&modfast::similarity_product_cuda));
  m.impl("sparse_similarity_sums", MODFAST_BOX(&modfast::sparse_similarity_sums_cuda));
  m.impl("sparse_similarity_product", MODFAST_BOX(&modfast::sparse_similarity_product_cuda));
  m.impl("sparse_transpose", MODFAST_BOX(&modfast::sparse_transpose_cuda));
  m.impl("edge_gradient", MODFAST_BOX(&modfast::edge_gradient_cuda));
}
