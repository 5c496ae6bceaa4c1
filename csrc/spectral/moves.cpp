#include "common/parallel.h"
#include "spectral/spectral.h"

#include <cmath>

namespace modfast {
namespace {

// The cluster in which a node lowers the normalised cut most. The normalised cut is the number of clusters
// less the sum of inside / volume over them. ties: the weight of the edges from the node to the other nodes
// of each cluster; loop: the weight of its edge to itself.
int64_t best_cluster(const double* ties, double degree, double loop, int64_t own, double least,
                     const Cut& cut) {
  if (cut.sizes[own] == 1) return own;
  const double share = cut.inside[own] / cut.volume[own];
  const double left = (cut.inside[own] - 2 * ties[own] - loop) / (cut.volume[own] - degree);
  double most = share - left + least;
  int64_t best = own;
  for (size_t c = 0; c < cut.sizes.size(); ++c) {
    if (static_cast<int64_t>(c) == own || cut.sizes[c] == 0 || ties[c] == 0) continue;
    const double gain =
        (cut.inside[c] + 2 * ties[c] + loop) / (cut.volume[c] + degree) - cut.inside[c] / cut.volume[c];
    if (gain > most) {
      most = gain;
      best = static_cast<int64_t>(c);
    }
  }
  return best;
}

void move(const double* ties, double degree, double loop, int64_t from, int64_t to, Cut* cut) {
  cut->inside[from] -= 2 * ties[from] + loop;
  cut->volume[from] -= degree;
  --cut->sizes[from];
  cut->inside[to] += 2 * ties[to] + loop;
  cut->volume[to] += degree;
  ++cut->sizes[to];
}

Cut empty_cut(int64_t clusters) {
  Cut cut;
  cut.inside.resize(clusters);
  cut.volume.resize(clusters);
  cut.sizes.resize(clusters);
  return cut;
}

template <class I, class T>
struct Graph {
  const I* starts;
  const I* indices;
  const T* values;
  Similarity similarity;

  // Sets ties to the node's edge weight to each cluster, and degree; returns the weight of its edge to
  // itself.
  double ties_of(int64_t node, const int32_t* labels, std::vector<double>* ties, double* degree) const {
    std::fill(ties->begin(), ties->end(), 0.0);
    double loop = 0;
    *degree = 0;
    for (int64_t e = starts[node]; e < starts[node + 1]; ++e) {
      const double a = similarity_of<double>(values[e], similarity);
      *degree += a;
      if (indices[e] == node) {
        loop += a;
      } else if (const int64_t label = labels[indices[e]]; label >= 0) {
        (*ties)[label] += a;
      }
    }
    return loop;
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
      const int64_t own = labels[i];
      if (own < 0) continue;
      double degree;
      const double loop = graph.ties_of(i, labels, &ties, &degree);
      cut.inside[own] += ties[own] + loop;
      cut.volume[own] += degree;
      ++cut.sizes[own];
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
  const auto clusters = static_cast<int64_t>(cut->sizes.size());
  const auto best = [&](int64_t node, std::vector<double>* ties, double* degree, double* loop) {
    *loop = graph.ties_of(node, labels, ties, degree);
    return best_cluster(ties->data(), *degree, *loop, labels[node], least, *cut);
  };
  std::vector<char> wants(nodes);
  int64_t moved = 0;
  for (int64_t sweep = 0; sweep < max_sweeps; ++sweep) {
    // First find in parallel which nodes gain by a move. Then move these one after the other, each only if it
    // still gains.
    for_each_chunk(parallel_for, nodes, 4096, [&](int64_t begin, int64_t end) {
      std::vector<double> ties(clusters);
      double degree, loop;
      for (int64_t i = begin; i < end; ++i) {
        wants[i] = labels[i] >= 0 && best(i, &ties, &degree, &loop) != labels[i];
      }
    });
    std::vector<double> ties(clusters);
    double degree, loop;
    int64_t now = 0;
    for (int64_t i = 0; i < nodes; ++i) {
      if (!wants[i]) continue;
      const int64_t to = best(i, &ties, &degree, &loop);
      if (to == labels[i]) continue;
      move(ties.data(), degree, loop, labels[i], to, cut);
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
  int64_t moved = 0;
  for (int64_t sweep = 0; sweep < max_sweeps; ++sweep) {
    // Moves of this side do not change ties, but the gain of a move depends on the moves before it.
    int64_t now = 0;
    for (int64_t i = 0; i < nodes; ++i) {
      if (labels[i] < 0) continue;
      const double* of_node = ties + i * ties_stride;
      const double loop = loops ? loops[i] : 0.0;
      const int64_t to = best_cluster(of_node, degrees[i], loop, labels[i], least, *cut);
      if (to == labels[i]) continue;
      move(of_node, degrees[i], loop, labels[i], to, cut);
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
