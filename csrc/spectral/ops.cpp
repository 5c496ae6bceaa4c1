// The spectral family's operators on the CPU: schemas, argument checks, registration.
#include "common/kept_memory.h"
#include "common/parallel.h"
#include "spectral/binding_cpu.h"

#include <atomic>

namespace modfast {
namespace {

// Whether `count` numbers are all in [0, limit).
template <class I>
bool all_below(const I* numbers, int64_t count, int64_t limit) {
  std::atomic<bool> good{true};
  for_each_chunk(parallel_for, count, 1 << 16, [&](int64_t begin, int64_t end) {
    I least = 0, most = 0;
    for (int64_t i = begin; i < end; ++i) {
      least = std::min(least, numbers[i]);
      most = std::max(most, numbers[i]);
    }
    if (least < 0 || most >= limit) good = false;
  });
  return good || count == 0;
}

template <class I>
void check_starts(const Tensor& starts, const Tensor& indices, int64_t rows) {
  const I* from = const_data_of<I>(starts);
  REQUIRE(from[0] == 0 && from[rows] == indices.size(0), "starts must begin with 0 and end with ",
          indices.size(0));
  std::atomic<bool> rising{true};
  for_each_chunk(parallel_for, rows, 1 << 16, [&](int64_t begin, int64_t end) {
    bool good = true;
    for (int64_t i = begin; i < end; ++i) good &= from[i] <= from[i + 1];
    if (!good) rising = false;
  });
  REQUIRE(rising, "starts must not fall");
}

SparseMatrix sparse_on_cpu(const Tensor& starts, const Tensor& indices, const Tensor& values, int64_t cols) {
  const SparseMatrix matrix = sparse_of(starts, indices, values, cols, checked);
  matrix.wide ? check_starts<int64_t>(starts, indices, matrix.rows)
              : check_starts<int32_t>(starts, indices, matrix.rows);
  return matrix;
}

// A square sparse matrix, whose indices are checked too.
SparseMatrix graph_of(const Tensor& starts, const Tensor& indices, const Tensor& values) {
  REQUIRE(starts.dim() == 1 && starts.size(0) >= 1, "starts must hold at least one number");
  const SparseMatrix graph = sparse_on_cpu(starts, indices, values, starts.size(0) - 1);
  const int64_t entries = indices.size(0);
  REQUIRE(graph.wide ? all_below(const_data_of<int64_t>(indices), entries, graph.cols)
                     : all_below(const_data_of<int32_t>(indices), entries, graph.cols),
          "indices must be in [0, ", graph.cols, ")");
  return graph;
}

template <class Matrix>
std::tuple<Tensor, Tensor> sums_of(const Matrix& matrix, Similarity similarity, const Tensor& like,
                                   const std::optional<Tensor>& right, const std::optional<Tensor>& left,
                                   bool of_cols) {
  Tensor rows = torch::stable::new_empty(like, {matrix.rows}, ScalarType::Double);
  Tensor cols = torch::stable::new_empty(like, {of_cols ? matrix.cols : 0}, ScalarType::Double);
  similarity_sums(matrix, similarity, probe_of(right, matrix.cols, "right", checked),
                  probe_of(left, matrix.rows, "left", checked), mutable_data_of<double>(rows),
                  of_cols ? mutable_data_of<double>(cols) : nullptr, parallel_for);
  return {rows, cols};
}

template <class Matrix>
std::tuple<Tensor, Tensor> product_on_cpu(const Matrix& matrix, Similarity similarity,
                                          const std::optional<Tensor>& right,
                                          const std::optional<Tensor>& left,
                                          const std::optional<Tensor>& row_weights) {
  return product_of(matrix.rows, matrix.cols, right, left, row_weights, checked, [&](const auto& blocks) {
    similarity_product(matrix, similarity, blocks, parallel_for);
  });
}

std::tuple<Tensor, Tensor> similarity_sums_cpu(Tensor weight, int64_t affinity, double scale) {
  return sums_of(dense_on_cpu(weight), similarity_of(affinity, scale), weight, {}, {}, true);
}

std::tuple<Tensor, Tensor> similarity_product_cpu(Tensor weight, int64_t affinity, double scale,
                                                  std::optional<Tensor> right, std::optional<Tensor> left,
                                                  std::optional<Tensor> row_weights) {
  return product_on_cpu(dense_on_cpu(weight), similarity_of(affinity, scale), right, left, row_weights);
}

std::tuple<Tensor, Tensor> sparse_similarity_sums_cpu(Tensor starts, Tensor indices, Tensor values,
                                                      int64_t cols, int64_t affinity, double scale,
                                                      std::optional<Tensor> right, std::optional<Tensor> left,
                                                      bool of_cols) {
  return sums_of(sparse_on_cpu(starts, indices, values, cols), similarity_of(affinity, scale), values, right,
                 left, of_cols);
}

std::tuple<Tensor, Tensor> sparse_similarity_product_cpu(Tensor starts, Tensor indices, Tensor values,
                                                         int64_t cols, int64_t affinity, double scale,
                                                         std::optional<Tensor> right,
                                                         std::optional<Tensor> left,
                                                         std::optional<Tensor> row_weights) {
  return product_on_cpu(sparse_on_cpu(starts, indices, values, cols), similarity_of(affinity, scale), right,
                        left, row_weights);
}

std::tuple<Tensor, Tensor, Tensor> sparse_transpose_cpu(Tensor starts, Tensor indices, Tensor values,
                                                        int64_t cols) {
  const SparseMatrix matrix = sparse_on_cpu(starts, indices, values, cols);
  check_rows_of_index(matrix);
  Tensor turned_starts = torch::stable::new_empty(starts, {cols + 1});
  Tensor turned_indices = torch::stable::empty_like(indices),
         turned_values = torch::stable::empty_like(values);
  sparse_transpose(matrix, turned_starts.data_ptr(), turned_indices.data_ptr(), turned_values.data_ptr());
  return {turned_starts, turned_indices, turned_values};
}

void graph_product_cpu(Tensor out, Tensor starts, Tensor indices, Tensor values, double scale, Tensor right,
                       Tensor row_weights) {
  REQUIRE(starts.dim() == 1 && starts.size(0) >= 1, "starts must hold at least one number");
  const SparseMatrix graph = sparse_on_cpu(starts, indices, values, starts.size(0) - 1);
  with_compute(right, "right", [&](auto compute) {
    using C = decltype(compute);
    const ScalarType type = right.scalar_type();
    const int64_t width = width_of(right, "right");
    checked(right, type, {graph.rows, width}, "right");
    checked(out, type, {graph.rows, width}, "out");
    checked(row_weights, type, {graph.rows}, "row_weights");
    REQUIRE(out.data_ptr() != right.data_ptr() || graph.rows == 0, "out must not be right");
    // The next product reads it in random order.
    prefer_large_pages(out.data_ptr(), static_cast<size_t>(out.numel()) * sizeof(C));
    graph_product(graph, similarity_of(2, scale), const_data_of<C>(right), const_data_of<C>(row_weights),
                  width, mutable_data_of<C>(out), parallel_for);
  });
}

Tensor basis_inner_cpu(std::vector<Tensor> basis, Tensor block, std::optional<Tensor> weights) {
  return with_compute(block, "block", [&](auto compute) {
    using C = decltype(compute);
    const int64_t width = width_of(block, "block");
    checked(block, block.scalar_type(), {-1, width}, "block");
    const auto vectors = basis_of<C>(basis, block.scalar_type(), block.size(0), checked);
    Tensor products = torch::stable::new_empty(block, {vectors.width(), width}, ScalarType::Double);
    const C* weight =
        weights ? const_data_of<C>(checked(*weights, block.scalar_type(), {vectors.length}, "weights"))
                : nullptr;
    basis_inner(vectors, const_data_of<C>(block), weight, width, mutable_data_of<double>(products),
                parallel_for);
    return products;
  });
}

void basis_rotate_cpu(std::vector<Tensor> basis, Tensor factors) {
  REQUIRE(!basis.empty(), "basis must hold at least one block");
  with_compute(basis[0], "basis", [&](auto compute) {
    using C = decltype(compute);
    width_of(basis[0], "basis");
    const auto vectors = basis_of<C>(basis, basis[0].scalar_type(), basis[0].size(0), checked);
    const int64_t width = width_of(factors, "factors");
    checked(factors, ScalarType::Double, {vectors.width(), width}, "factors");
    check_covers(vectors, width);
    basis_rotate(vectors, const_data_of<double>(factors), width, parallel_for);
  });
}

std::tuple<Tensor, Tensor, Tensor> k_means_cpu(Tensor points, Tensor weights, int64_t num_clusters,
                                               int64_t n_init, int64_t seed, int64_t max_iter,
                                               double same_place) {
  const KMeans problem =
      k_means_of(points, weights, num_clusters, n_init, seed, max_iter, same_place, checked);
  Tensor labels = torch::stable::new_empty(points, {problem.points}, ScalarType::Long);
  Tensor cost = torch::stable::new_empty(points, {1}, ScalarType::Double);
  Tensor iterations = torch::stable::new_empty(points, {1}, ScalarType::Long);
  const Tightness found = k_means(problem, const_data_of<float>(points), const_data_of<float>(weights),
                                  mutable_data_of<int64_t>(labels), parallel_for);
  *mutable_data_of<double>(cost) = found.cost;
  *mutable_data_of<int64_t>(iterations) = found.iterations;
  return {labels, cost, iterations};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> move_side_cpu(Tensor labels, Tensor inside, Tensor volume,
                                                         Tensor sizes, Tensor ties, Tensor degrees,
                                                         std::optional<Tensor> loops, double least,
                                                         int64_t max_sweeps) {
  const int64_t nodes = labels.size(0), clusters = inside.size(0);
  check_node_labels(labels, nodes, clusters);
  checked(inside, ScalarType::Double, {clusters}, "inside");
  checked(volume, ScalarType::Double, {clusters}, "volume");
  checked(sizes, ScalarType::Long, {clusters}, "sizes");
  checked(degrees, ScalarType::Double, {nodes}, "degrees");
  checked(ties, ScalarType::Double, {nodes, -1}, "ties");
  REQUIRE(ties.size(1) >= clusters, "ties must have a column for each cluster, got shape ", shape_of(ties));
  Cut cut;
  cut.inside.assign(const_data_of<double>(inside), const_data_of<double>(inside) + clusters);
  cut.volume.assign(const_data_of<double>(volume), const_data_of<double>(volume) + clusters);
  cut.sizes.assign(const_data_of<int64_t>(sizes), const_data_of<int64_t>(sizes) + clusters);
  Tensor moved = copy_of<int64_t>(labels);
  move_side(nodes, const_data_of<double>(ties), ties.size(1), const_data_of<double>(degrees),
            loops ? const_data_of<double>(checked(*loops, ScalarType::Double, {nodes}, "loops")) : nullptr,
            least, max_sweeps, mutable_data_of<int64_t>(moved), &cut);
  Tensor new_inside = torch::stable::empty_like(inside), new_volume = torch::stable::empty_like(volume);
  Tensor new_sizes = torch::stable::empty_like(sizes);
  std::copy_n(cut.inside.data(), clusters, mutable_data_of<double>(new_inside));
  std::copy_n(cut.volume.data(), clusters, mutable_data_of<double>(new_volume));
  std::copy_n(cut.sizes.data(), clusters, mutable_data_of<int64_t>(new_sizes));
  return {moved, new_inside, new_volume, new_sizes};
}

Tensor move_graph_cpu(Tensor starts, Tensor indices, Tensor values, double scale, Tensor labels,
                      int64_t num_clusters, double least, int64_t max_sweeps) {
  const SparseMatrix graph = graph_of(starts, indices, values);
  check_node_labels(labels, graph.rows, num_clusters);
  Tensor moved = copy_of<int64_t>(labels);
  move_graph(graph, similarity_of(2, scale), num_clusters, least, max_sweeps, mutable_data_of<int64_t>(moved),
             parallel_for);
  return moved;
}

std::tuple<Tensor, Tensor> graph_cut_cpu(Tensor starts, Tensor indices, Tensor values, double scale,
                                         Tensor labels, int64_t num_clusters) {
  const SparseMatrix graph = graph_of(starts, indices, values);
  check_node_labels(labels, graph.rows, num_clusters);
  const Cut cut =
      graph_cut(graph, similarity_of(2, scale), num_clusters, const_data_of<int64_t>(labels), parallel_for);
  Tensor inside = torch::stable::new_empty(values, {num_clusters}, ScalarType::Double);
  Tensor volume = torch::stable::new_empty(values, {num_clusters}, ScalarType::Double);
  std::copy_n(cut.inside.data(), num_clusters, mutable_data_of<double>(inside));
  std::copy_n(cut.volume.data(), num_clusters, mutable_data_of<double>(volume));
  return {inside, volume};
}

Tensor edge_gradient_cpu(Tensor weight, Tensor row_terms, Tensor col_terms, Tensor row_vectors,
                         Tensor col_vectors) {
  const DenseMatrix matrix = dense_on_cpu(weight);
  checked(row_terms, ScalarType::Double, {matrix.rows}, "row_terms");
  checked(col_terms, ScalarType::Double, {matrix.cols}, "col_terms");
  checked(row_vectors, ScalarType::Double, {matrix.rows, -1}, "row_vectors");
  checked(col_vectors, ScalarType::Double, {matrix.cols, row_vectors.size(1)}, "col_vectors");
  Tensor grad = torch::stable::new_empty(weight, {matrix.rows, matrix.cols});
  edge_gradient(matrix, const_data_of<double>(row_terms), const_data_of<double>(col_terms),
                const_data_of<double>(row_vectors), const_data_of<double>(col_vectors), row_vectors.size(1),
                grad.data_ptr(), parallel_for);
  return grad;
}

}  // namespace
}  // namespace modfast

// clang-format off
STABLE_TORCH_LIBRARY_FRAGMENT(modfast, m) {
  m.def("similarity_sums(Tensor weight, int affinity, float scale) -> (Tensor, Tensor)");
  m.def("similarity_product(Tensor weight, int affinity, float scale, Tensor? right, Tensor? left, "
        "Tensor? row_weights) -> (Tensor, Tensor)");
  m.def("sparse_similarity_sums(Tensor starts, Tensor indices, Tensor values, int cols, int affinity, "
        "float scale, Tensor? right, Tensor? left, bool of_cols) -> (Tensor, Tensor)");
  m.def("sparse_similarity_product(Tensor starts, Tensor indices, Tensor values, int cols, int affinity, "
        "float scale, Tensor? right, Tensor? left, Tensor? row_weights) -> (Tensor, Tensor)");
  m.def("sparse_transpose(Tensor starts, Tensor indices, Tensor values, int cols) -> (Tensor, Tensor, Tensor)");
  m.def("graph_product_(Tensor(a!) out, Tensor starts, Tensor indices, Tensor values, float scale, "
        "Tensor right, Tensor row_weights) -> ()");
  m.def("basis_inner(Tensor[] basis, Tensor block, Tensor? weights) -> Tensor");
  m.def("basis_rotate_(Tensor(a!)[] basis, Tensor factors) -> ()");
  m.def("k_means(Tensor points, Tensor weights, int num_clusters, int n_init, int seed, int max_iter, float same_place) "
        "-> (Tensor, Tensor, Tensor)");
  m.def("move_side(Tensor labels, Tensor inside, Tensor volume, Tensor sizes, Tensor ties, Tensor degrees, "
        "Tensor? loops, float least, int max_sweeps) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("move_graph(Tensor starts, Tensor indices, Tensor values, float scale, Tensor labels, "
        "int num_clusters, float least, int max_sweeps) -> Tensor");
  m.def("graph_cut(Tensor starts, Tensor indices, Tensor values, float scale, Tensor labels, "
        "int num_clusters) -> (Tensor, Tensor)");
  m.def("edge_gradient(Tensor weight, Tensor row_terms, Tensor col_terms, Tensor row_vectors, "
        "Tensor col_vectors) -> Tensor");
}
// clang-format on

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) {
  m.impl("similarity_sums", MODFAST_BOX(&modfast::similarity_sums_cpu));
  m.impl("similarity_product", MODFAST_BOX(&modfast::similarity_product_cpu));
  m.impl("sparse_similarity_sums", MODFAST_BOX(&modfast::sparse_similarity_sums_cpu));
  m.impl("sparse_similarity_product", MODFAST_BOX(&modfast::sparse_similarity_product_cpu));
  m.impl("sparse_transpose", MODFAST_BOX(&modfast::sparse_transpose_cpu));
  m.impl("basis_inner", MODFAST_BOX(&modfast::basis_inner_cpu));
  m.impl("graph_product_", MODFAST_BOX(&modfast::graph_product_cpu));
  m.impl("basis_rotate_", MODFAST_BOX(&modfast::basis_rotate_cpu));
  m.impl("k_means", MODFAST_BOX(&modfast::k_means_cpu));
  m.impl("move_side", MODFAST_BOX(&modfast::move_side_cpu));
  m.impl("move_graph", MODFAST_BOX(&modfast::move_graph_cpu));
  m.impl("graph_cut", MODFAST_BOX(&modfast::graph_cut_cpu));
  m.impl("edge_gradient", MODFAST_BOX(&modfast::edge_gradient_cpu));
}
