// The operators on graphs, on their nodes' moves and on the solver's basis, on a GPU; see ops_cuda.cpp.
//
// The values of labels are not checked either: one that is out of range counts as -1, in no cluster.
#include "common/binding_cuda.h"
#include "spectral/binding.h"
#include "spectral/cuda.h"
#include "spectral/cuda_graph.h"

namespace modfast {
namespace {

Tensor room_for(int64_t numbers, ScalarType type, const Tensor& like) {
  return torch::stable::new_empty(like, {numbers}, type);
}

template <class C>
BasisBlocks<C> in_one_launch(const Basis<C>& basis) {
  REQUIRE(basis.blocks.size() <= static_cast<size_t>(kMostBlocks), "basis must hold at most ", kMostBlocks,
          " blocks on a GPU, got ", static_cast<int64_t>(basis.blocks.size()));
  BasisBlocks<C> made;
  made.count = static_cast<int>(basis.blocks.size());
  made.length = basis.length;
  int64_t end = 0;
  for (int b = 0; b < made.count; ++b) {
    made.blocks[b] = basis.blocks[b];
    made.ends[b] = end += basis.widths[b];
  }
  return made;
}

// A square matrix.
Rows graph_of(const Tensor& starts, const Tensor& indices, const Tensor& values) {
  REQUIRE(starts.dim() == 1 && starts.size(0) >= 1, "starts must hold at least one number");
  return {sparse_of(starts, indices, values, starts.size(0) - 1, checked_beside(values)), indices.size(0)};
}

void graph_product_cuda(const Tensor& out, const Tensor& starts, const Tensor& indices, const Tensor& values,
                        double scale, const Tensor& right, const Tensor& row_weights) {
  const Rows graph = graph_of(starts, indices, values);
  const Similarity similarity = similarity_of(2, scale);
  const auto checked = checked_beside(values);
  const OnDevice device(values);
  with_compute(right, "right", [&](auto compute) {
    using C = decltype(compute);
    const ScalarType type = right.scalar_type();
    const int64_t nodes = graph.matrix.rows, width = width_of(right, "right");
    checked(right, type, {nodes, width}, "right");
    checked(out, type, {nodes, width}, "out");
    checked(row_weights, type, {nodes}, "row_weights");
    REQUIRE(out.data_ptr() != right.data_ptr() || nodes == 0, "out must not be right");
    const C* no_scales = nullptr;
    require_success(cuda_product(graph, similarity, const_data_of<C>(right), no_scales,
                                 there(const_data_of<C>(row_weights)), width, mutable_data_of<C>(out),
                                 device.stream()));
  });
}

Tensor basis_inner_cuda(const std::vector<Tensor>& basis, const Tensor& block,
                        const std::optional<Tensor>& weights) {
  const auto checked = checked_beside(block);
  const OnDevice device(block);
  return with_compute(block, "block", [&](auto compute) {
    using C = decltype(compute);
    const int64_t width = width_of(block, "block");
    checked(block, block.scalar_type(), {-1, width}, "block");
    const auto vectors = in_one_launch(basis_of<C>(basis, block.scalar_type(), block.size(0), checked));
    const C* weight =
        weights ? const_data_of<C>(checked(*weights, block.scalar_type(), {vectors.length}, "weights"))
                : nullptr;
    Tensor products = torch::stable::new_empty(block, {vectors.width(), width}, ScalarType::Double);
    const Tensor pieces =
        room_for(inner_room(vectors.length, vectors.width(), width), ScalarType::Double, block);
    require_success(cuda_basis_inner(vectors, const_data_of<C>(block), weight, width,
                                     mutable_data_of<double>(pieces), mutable_data_of<double>(products),
                                     device.stream()));
    return products;
  });
}

void basis_rotate_cuda(const std::vector<Tensor>& basis, const Tensor& factors) {
  REQUIRE(!basis.empty(), "basis must hold at least one block");
  const auto checked = checked_beside(basis[0]);
  const OnDevice device(basis[0]);
  with_compute(basis[0], "basis", [&](auto compute) {
    using C = decltype(compute);
    const ScalarType type = basis[0].scalar_type();
    width_of(basis[0], "basis");
    const auto given = basis_of<C>(basis, type, basis[0].size(0), checked);
    const auto vectors = in_one_launch(given);
    const int64_t width = width_of(factors, "factors");
    checked(factors, ScalarType::Double, {vectors.width(), width}, "factors");
    check_covers(given, width);
    const Tensor room = room_for(rotation_room(vectors.length, width), type, basis[0]);
    require_success(cuda_basis_rotate(vectors, const_data_of<double>(factors), width,
                                      mutable_data_of<C>(room), device.stream()));
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> move_side_cuda(const Tensor& labels, const Tensor& inside,
                                                          const Tensor& volume, const Tensor& sizes,
                                                          const Tensor& ties, const Tensor& degrees,
                                                          const std::optional<Tensor>& loops, double least,
                                                          int64_t max_sweeps) {
  const auto checked = checked_beside(labels);
  checked(labels, ScalarType::Long, {-1}, "labels");
  checked(inside, ScalarType::Double, {-1}, "inside");
  const int64_t nodes = labels.size(0), clusters = inside.size(0);
  check_num_clusters(clusters);
  checked(volume, ScalarType::Double, {clusters}, "volume");
  checked(sizes, ScalarType::Long, {clusters}, "sizes");
  checked(degrees, ScalarType::Double, {nodes}, "degrees");
  checked(ties, ScalarType::Double, {nodes, -1}, "ties");
  REQUIRE(ties.size(1) >= clusters, "ties must have a column for each cluster, got shape ", shape_of(ties));
  if (loops) checked(*loops, ScalarType::Double, {nodes}, "loops");
  const OnDevice device(labels);
  const Tensor moved = torch::stable::clone(labels), new_inside = torch::stable::clone(inside);
  const Tensor new_volume = torch::stable::clone(volume), new_sizes = torch::stable::clone(sizes);
  SideMoves moves;
  moves.nodes = nodes;
  moves.ties = const_data_of<double>(ties);
  moves.stride = ties.size(1);
  moves.degrees = const_data_of<double>(degrees);
  moves.loops = loops ? const_data_of<double>(*loops) : nullptr;
  moves.least = least;
  moves.max_sweeps = max_sweeps;
  moves.labels = mutable_data_of<int64_t>(moved);
  moves.cut = {mutable_data_of<double>(new_inside), mutable_data_of<double>(new_volume),
               mutable_data_of<int64_t>(new_sizes), clusters};
  require_success(cuda_move_side(moves, device.stream()));
  return {moved, new_inside, new_volume, new_sizes};
}

// The scratch memory for the cut of a graph.
struct CutTensors {
  Tensor sizes, numbers, labels;
  CutTensors(int64_t nodes, int64_t clusters, const Tensor& like)
      : sizes(room_for(cut_numbers(nodes, clusters).sizes, ScalarType::Long, like)),
        numbers(room_for(cut_numbers(nodes, clusters).numbers, ScalarType::Double, like)),
        labels(room_for(nodes, ScalarType::Int, like)) {}
  CutRoom room() const {
    return {mutable_data_of<int64_t>(sizes), mutable_data_of<double>(numbers),
            mutable_data_of<int32_t>(labels)};
  }
};

Tensor move_graph_cuda(const Tensor& starts, const Tensor& indices, const Tensor& values, double scale,
                       const Tensor& labels, int64_t num_clusters, double least, int64_t max_sweeps) {
  const Rows graph = graph_of(starts, indices, values);
  const int64_t nodes = graph.matrix.rows;
  const Similarity similarity = similarity_of(2, scale);
  check_num_clusters(num_clusters);
  checked_beside(values)(labels, ScalarType::Long, {nodes}, "labels");
  const OnDevice device(values);
  Tensor moved = torch::stable::empty_like(labels);
  const CutTensors cut(nodes, num_clusters, values);
  const Tensor terms = room_for(2 * num_clusters, ScalarType::Double, values);
  const Tensor ties = room_for(ties_room(num_clusters), ScalarType::Double, values);
  const Tensor wants = room_for(nodes, ScalarType::Char, values);
  const Tensor settled = room_for(1, ScalarType::Int, values);
  MoveRoom room;
  room.cut = cut.room();
  room.inside = mutable_data_of<double>(terms);
  room.volume = room.inside + num_clusters;
  room.ties = mutable_data_of<double>(ties);
  room.wants = mutable_data_of<char>(wants);
  room.settled = mutable_data_of<int32_t>(settled);
  require_success(cuda_move_graph(graph, similarity, num_clusters, least, max_sweeps,
                                  const_data_of<int64_t>(labels), mutable_data_of<int64_t>(moved), room,
                                  device.stream()));
  return moved;
}

std::tuple<Tensor, Tensor> graph_cut_cuda(const Tensor& starts, const Tensor& indices, const Tensor& values,
                                          double scale, const Tensor& labels, int64_t num_clusters) {
  const Rows graph = graph_of(starts, indices, values);
  const int64_t nodes = graph.matrix.rows;
  const Similarity similarity = similarity_of(2, scale);
  check_num_clusters(num_clusters);
  checked_beside(values)(labels, ScalarType::Long, {nodes}, "labels");
  const OnDevice device(values);
  const CutTensors cut(nodes, num_clusters, values);
  Tensor inside = room_for(num_clusters, ScalarType::Double, values);
  Tensor volume = room_for(num_clusters, ScalarType::Double, values);
  require_success(cuda_graph_cut(graph, similarity, num_clusters, const_data_of<int64_t>(labels), cut.room(),
                                 mutable_data_of<double>(inside), mutable_data_of<double>(volume),
                                 device.stream()));
  return {inside, volume};
}

}  // namespace
}  // namespace modfast

STABLE_TORCH_LIBRARY_IMPL(modfast, CUDA, m) {
  m.impl("graph_product_", MODFAST_BOX(&modfast::graph_product_cuda));
  m.impl("basis_inner", MODFAST_BOX(&modfast::basis_inner_cuda));
  m.impl("basis_rotate_", MODFAST_BOX(&modfast::basis_rotate_cuda));
  m.impl("move_side", MODFAST_BOX(&modfast::move_side_cuda));
  m.impl("move_graph", MODFAST_BOX(&modfast::move_graph_cuda));
  m.impl("graph_cut", MODFAST_BOX(&modfast::graph_cut_cuda));
}
