// Where a node of a graph moves to; the CPU and the CUDA kernels share it, so that they decide alike.
#pragma once

#include "common/half.h"

#include <cstdint>

namespace modfast {

// The terms of the normalised cut: numbers for each cluster; see Cut.
struct CutTerms {
  double *inside = nullptr, *volume = nullptr;
  int64_t* sizes = nullptr;
  int64_t clusters = 0;
};

// own_tie: the weight of the edges from the node to the other nodes of its own cluster; loop: the weight of
// its edge to itself.
struct Node {
  int64_t own = -1;
  double degree = 0, loop = 0, own_tie = 0;
};

struct BestMove {
  double gain = 0;
  int64_t to = -1;
};

// The cluster, among the clusters first, first + step, and so on, in which a node lowers the normalised cut
// most, if by more than least; else its own. The normalised cut is the number of clusters less the sum of
// inside / volume over them. ties: the weight of the edges from the node to the other nodes of each cluster,
// read for no other clusters than those.
MODFAST_HD inline BestMove best_move(const double* ties, const Node& node, double least, const CutTerms& cut,
                                     int64_t first = 0, int64_t step = 1) {
  const int64_t own = node.own;
  BestMove best;
  best.to = own;
  if (cut.sizes[own] == 1) return best;
  const double share = cut.inside[own] / cut.volume[own];
  const double left = (cut.inside[own] - 2 * node.own_tie - node.loop) / (cut.volume[own] - node.degree);
  best.gain = share - left + least;
  for (int64_t c = first; c < cut.clusters; c += step) {
    if (c == own || cut.sizes[c] == 0 || ties[c] == 0) continue;
    const double gain = (cut.inside[c] + 2 * ties[c] + node.loop) / (cut.volume[c] + node.degree) -
                        cut.inside[c] / cut.volume[c];
    if (gain > best.gain) {
      best.gain = gain;
      best.to = c;
    }
  }
  return best;
}

// tie: the weight of the node's edges to the cluster it moves to.
MODFAST_HD inline void move(const Node& node, int64_t to, double tie, const CutTerms& cut) {
  cut.inside[node.own] -= 2 * node.own_tie + node.loop;
  cut.volume[node.own] -= node.degree;
  --cut.sizes[node.own];
  cut.inside[to] += 2 * tie + node.loop;
  cut.volume[to] += node.degree;
  ++cut.sizes[to];
}

}  // namespace modfast
