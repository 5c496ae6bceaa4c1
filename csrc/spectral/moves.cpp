#include "spectral/moves.h"

#include "common/parallel.h"
#include "spectral/spectral.h"

namespace modfast {
namespace {

Cut empty_cut(int64_t clusters) {
  Cut cut;
  cut.inside.resize(clusters);
  cut.volume.resize(clusters);
  cut.sizes.resize(clusters);
  return cut;
}

CutTerms terms_of(Cut* cut) {
  return {cut->inside.data(), cut->volume.data(), cut->sizes.data(), static_cast<int64_t>(cut->sizes.size())};
}

template <class I, class T>
struct Graph {
  const I* starts;
  const I* indices;
  const T* values;
  Similarity similarity;

  // Sets ties to the node's edge weight to each cluster. The node's own cluster must not be -1.
  Node node_of(int64_t i, const int32_t* labels, std::vector<double>* ties) const {
    std::fill(ties->begin(), ties->end(), 0.0);
    double degree = 0, loop = 0;  // in registers, unlike a result that ties might overlap
    for (int64_t e = starts[i]; e < starts[i + 1]; ++e) {
      const double a = similarity_of<double>(values[e], similarity);
      degree += a;
      if (indices[e] == i) {
        loop += a;
      } else if (const int64_t label = labels[indices[e]]; label >= 0) {
        (*ties)[label] += a;
      }
    }
    return {labels[i], degree, loop, (*ties)[labels[i]]};
  }
};

template <class I, class T>
Cut cut_of(const Graph<I, T>& graph, int64_t nodes, int64_t clusters, const int32_t* labels,
           ParallelFor parallel_for) {
  constexpr int64_t kChunk = 16384;
  std::vector<Cut> of_chunk((nodes + kChunk - 1) / kChunk, empty_cut(clusters));
  for_each_chunk(parallel_for, nodes, kChunk, [&](int64_t begin, int64_t end) {
    Cut& cut = of_chunk[begin / kChunk];
    std::vector<double> ties(clusters);
    for (int64_t i = begin; i < end; ++i) {
      if (labels[i] < 0) continue;
      const Node node = graph.node_of(i, labels, &ties);
      cut.inside[node.own] += node.own_tie + node.loop;
      cut.volume[node.own] += node.degree;
      ++cut.sizes[node.own];
    }
  });
  Cut sum = empty_cut(clusters);
  for (const Cut& cut : of_chunk) {
    for (int64_t c = 0; c < clusters; ++c) {
      sum.inside[c] += cut.inside[c];
      sum.volume[c] += cut.volume[c];
      sum.sizes[c] += cut.sizes[c];
    }
  }
  return sum;
}

template <class I, class T>
int64_t move_nodes(const Graph<I, T>& graph, int64_t nodes, double least, int64_t max_sweeps, int32_t* labels,
                   Cut* cut, ParallelFor parallel_for) {
  const CutTerms terms = terms_of(cut);
  std::vector<char> wants(nodes);
  int64_t moved = 0;
  for (int64_t sweep = 0; sweep < max_sweeps; ++sweep) {
    // First find in parallel which nodes gain by a move. Then move these one after the other, each only if it
    // still gains.
    for_each_chunk(parallel_for, nodes, 4096, [&](int64_t begin, int64_t end) {
      std::vector<double> ties(terms.clusters);
      for (int64_t i = begin; i < end; ++i) {
        wants[i] = labels[i] >= 0 &&
                   best_move(ties.data(), graph.node_of(i, labels, &ties), least, terms).to != labels[i];
      }
    });
    std::vector<double> ties(terms.clusters);
    int64_t now = 0;
    for (int64_t i = 0; i < nodes; ++i) {
      if (!wants[i]) continue;
      const Node node = graph.node_of(i, labels, &ties);
      const int64_t to = best_move(ties.data(), node, least, terms).to;
      if (to == node.own) continue;
      move(node, to, ties[to], terms);
      labels[i] = static_cast<int32_t>(to);
      ++now;
    }
    moved += now;
    if (now == 0) break;
  }
  return moved;
}

}  // namespace

int64_t move_side(int64_t nodes, const double* ties, int64_t ties_stride, const double* degrees,
                  const double* loops, double least, int64_t max_sweeps, int64_t* labels, Cut* cut) {
  const CutTerms terms = terms_of(cut);
  int64_t moved = 0;
  for (int64_t sweep = 0; sweep < max_sweeps; ++sweep) {
    // Moves of this side do not change ties, but the gain of a move depends on the moves before it.
    int64_t now = 0;
    for (int64_t i = 0; i < nodes; ++i) {
      if (labels[i] < 0) continue;
      const double* of_node = ties + i * ties_stride;
      const Node node{labels[i], degrees[i], loops ? loops[i] : 0.0, of_node[labels[i]]};
      const int64_t to = best_move(of_node, node, least, terms).to;
      if (to == node.own) continue;
      move(node, to, of_node[to], terms);
      labels[i] = to;
      ++now;
    }
    moved += now;
    if (now == 0) break;
  }
  return moved;
}

namespace {

template <class F>
auto with_graph(const SparseMatrix& graph, Similarity similarity, const F& f) {
  const auto run = [&](auto index, auto value) {
    using I = decltype(index);
    using T = decltype(value);
    return f(Graph<I, T>{static_cast<const I*>(graph.starts), static_cast<const I*>(graph.indices),
                         static_cast<const T*>(graph.values), similarity});
  };
  if (graph.wide) return graph.dtype == DType::float64 ? run(int64_t{}, double{}) : run(int64_t{}, float{});
  return graph.dtype == DType::float64 ? run(int32_t{}, double{}) : run(int32_t{}, float{});
}

}  // namespace

Cut graph_cut(const SparseMatrix& graph, Similarity similarity, int64_t clusters, const int64_t* labels,
              ParallelFor parallel_for) {
  const std::vector<int32_t> narrow(labels, labels + graph.rows);
  return with_graph(graph, similarity, [&](const auto& typed) {
    return cut_of(typed, graph.rows, clusters, narrow.data(), parallel_for);
  });
}

int64_t move_graph(const SparseMatrix& graph, Similarity similarity, int64_t clusters, double least,
                   int64_t max_sweeps, int64_t* labels, ParallelFor parallel_for) {
  // 32-bit labels, so that twice as many fit into the cache.
  std::vector<int32_t> narrow(labels, labels + graph.rows);
  const int64_t moved = with_graph(graph, similarity, [&](const auto& typed) {
    Cut cut = cut_of(typed, graph.rows, clusters, narrow.data(), parallel_for);
    return move_nodes(typed, graph.rows, least, max_sweeps, narrow.data(), &cut, parallel_for);
  });
  std::copy(narrow.begin(), narrow.end(), labels);
  return moved;
}

}  // namespace modfast
