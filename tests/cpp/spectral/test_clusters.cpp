// Tests of k-means and of moves alone, against plain loops. `make sanitize` builds and runs it; see
// test_spectral.cpp.
#include "common/instruction_set.h"

#include "checks.h"
#include "spectral/spectral.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>
#include <vector>

namespace {

using namespace modfast;

// Checks that labels are clusters, and the cost that k-means reports.
std::vector<int64_t> labels_of(const KMeans& problem, const float* points, Tightness* result) {
  const std::unique_ptr<int64_t[]> labels(new int64_t[problem.points]);
  *result = k_means(problem, points, std::vector<float>(problem.points, 1.0f).data(), labels.get(), in_turn);
  for (int64_t i = 0; i < problem.points; ++i) {
    check(0 <= labels[i] && labels[i] < problem.clusters, "label", static_cast<double>(labels[i]), 0);
  }
  check(1 <= result->iterations && result->iterations <= problem.max_iterations, "iterations",
        static_cast<double>(result->iterations), 1);
  return {labels.get(), labels.get() + problem.points};
}

double cost_of(const KMeans& problem, const float* points, const std::vector<int64_t>& labels) {
  std::vector<double> means(problem.clusters * problem.dims), sizes(problem.clusters);
  for (int64_t i = 0; i < problem.points; ++i) {
    sizes[labels[i]] += 1.0;
    for (int64_t d = 0; d < problem.dims; ++d)
      means[labels[i] * problem.dims + d] += points[i * problem.dims + d];
  }
  double cost = 0.0;
  for (int64_t i = 0; i < problem.points; ++i) {
    for (int64_t d = 0; d < problem.dims; ++d) {
      const double away =
          points[i * problem.dims + d] - means[labels[i] * problem.dims + d] / sizes[labels[i]];
      cost += away * away;
    }
  }
  return cost;
}

KMeans problem_of(int64_t points, int64_t dims, int64_t clusters) {
  KMeans problem;
  problem.points = points;
  problem.dims = dims;
  problem.clusters = clusters;
  problem.starts = 5;
  problem.max_iterations = 100;
  problem.seed = 7;
  problem.same_place = 1e-4;
  return problem;
}

// Clusters far apart must be found exactly, also with more points than the sample for the starts.
void try_planted_points(int64_t count, int64_t dims, int64_t clusters) {
  const KMeans problem = problem_of(count, dims, clusters);
  const auto points = numbers<float>(count * dims);
  std::vector<int64_t> truth(count);
  for (int64_t i = 0; i < count; ++i) {
    truth[i] = i < clusters ? i : draw(0, clusters - 1);
    for (int64_t d = 0; d < dims; ++d) {
      points[i * dims + d] =
          points[i * dims + d] * 0.1f + (d == truth[i] % dims ? 20.0f * float(1 + truth[i]) : 0.0f);
    }
  }
  Tightness result;
  const auto labels = labels_of(problem, points.get(), &result);
  std::vector<int64_t> match(clusters, -1);
  for (int64_t i = 0; i < count; ++i) {
    if (match[truth[i]] < 0) match[truth[i]] = labels[i];
    check(match[truth[i]] == labels[i], "a planted cluster", double(labels[i]), double(match[truth[i]]));
  }
  check(std::set<int64_t>(match.begin(), match.end()).size() == match.size(), "planted clusters", 0, 1);
  check_near(result.cost, cost_of(problem, points.get(), labels), 1e-3 * result.cost + 1e-6, "cost");
  ++passed;
}

// Points of which at most `places` differ: equal points must be in one cluster, and no cluster may be empty
// if enough points differ.
void try_few_places(int64_t count, int64_t dims, int64_t places, int64_t clusters) {
  KMeans problem = problem_of(count, dims, clusters);
  problem.starts = 1;
  const auto points = numbers<float>(count * dims);
  for (int64_t i = places; i < count; ++i) {
    for (int64_t d = 0; d < dims; ++d) points[i * dims + d] = points[i % places * dims + d];
  }
  Tightness result;
  const auto labels = labels_of(problem, points.get(), &result);
  for (int64_t i = places; i < count; ++i) {
    check(labels[i] == labels[i % places], "equal points", double(labels[i]), double(labels[i % places]));
  }
  const std::set<int64_t> used(labels.begin(), labels.end());
  const int64_t expected = dims == 0 ? 1 : std::min(places, clusters);
  check(static_cast<int64_t>(used.size()) == expected, "clusters in use", double(used.size()),
        double(expected));
  check_near(result.cost, cost_of(problem, points.get(), labels), 1e-4 * result.cost + 1e-6, "cost");
  ++passed;
}

// The normalised cut by its definition.
double cut_of(const std::vector<Entry>& entries, const std::vector<int64_t>& labels, int64_t clusters) {
  std::vector<double> inside(clusters), volume(clusters);
  for (const Entry& entry : entries) {
    const int64_t own = labels[entry.row], other = labels[entry.col];
    if (own < 0) continue;
    volume[own] = volume[own] + entry.weight;
    if (own == other) inside[own] = inside[own] + entry.weight;
  }
  double cut = 0.0;
  for (int64_t c = 0; c < clusters; ++c) cut += volume[c] > 0 ? 1.0 - inside[c] / volume[c] : 0.0;
  return cut;
}

std::vector<Entry> random_graph(const std::vector<int64_t>& labels, double inside, double outside) {
  const auto nodes = static_cast<int64_t>(labels.size());
  std::vector<Entry> entries;
  for (int64_t i = 0; i < nodes; ++i) {
    for (int64_t j = i; j < nodes; ++j) {
      const double chance = labels[i] == labels[j] ? inside : outside;
      if (std::uniform_real_distribution<double>()(random_numbers) >= chance) continue;
      const double weight = 0.25 * double(draw(1, 4));
      entries.push_back({i, j, weight});
      if (i != j) entries.push_back({j, i, weight});
    }
  }
  std::stable_sort(entries.begin(), entries.end(), [](auto a, auto b) { return a.row < b.row; });
  return entries;
}

template <class I, class T>
void try_graph(DType dtype, int64_t nodes, int64_t clusters) {
  std::vector<int64_t> truth(nodes), labels(nodes);
  for (int64_t& label : truth) label = draw(0, clusters - 1);
  const auto entries = random_graph(truth, 0.5, 0.05);
  std::vector<double> degrees(nodes);
  for (const Entry& entry : entries) degrees[entry.row] = degrees[entry.row] + entry.weight;
  for (int64_t i = 0; i < nodes; ++i) {
    labels[i] = degrees[i] == 0.0 || draw(0, 9) == 0 ? -1 : draw(0, 2) ? truth[i] : draw(0, clusters - 1);
  }
  const Sparse<I, T> graph(dtype, nodes, nodes, entries);
  const Similarity given{Affinity::given, 1.0};
  const double before = cut_of(entries, labels, clusters);
  const Cut cut = graph_cut(graph.matrix, given, clusters, labels.data(), in_turn);
  double found = 0.0;
  for (int64_t c = 0; c < clusters; ++c) {
    found += cut.volume[c] > 0 ? 1.0 - cut.inside[c] / cut.volume[c] : 0.0;
    check(cut.sizes[c] == std::count(labels.begin(), labels.end(), c), "size", double(cut.sizes[c]), 0);
  }
  check_near(found, before, 1e-12 * double(clusters), "normalised cut");

  const int64_t width = 8 * draw(1, 5);
  const auto right = numbers<double>(nodes * width), weights = numbers<double>(nodes);
  const auto out = numbers<double>(nodes * width);
  graph_product(graph.matrix, given, right.get(), weights.get(), width, out.get(), in_turn);
  std::vector<double> product(nodes * width);
  for (const Entry& entry : entries) {
    for (int64_t k = 0; k < width; ++k) {
      const int64_t at = entry.row * width + k;
      product[at] = product[at] + weights[entry.row] * entry.weight * right[entry.col * width + k];
    }
  }
  for (int64_t i = 0; i < nodes * width; ++i) check_near(out[i], product[i], 1e-11, "product of a graph");

  std::vector<int64_t> moved = labels;
  const int64_t count = move_graph(graph.matrix, given, clusters, 1e-12, 50, moved.data(), in_turn);
  const double after = cut_of(entries, moved, clusters);
  check(count == 0 ? moved == labels : after < before, "moves lower the cut", after, before);
  for (int64_t i = 0; i < nodes; ++i) check((moved[i] < 0) == (labels[i] < 0), "a node's tie", 0, 1);
  for (int64_t c = 0; c < clusters; ++c) {
    const bool was = std::count(labels.begin(), labels.end(), c),
               is = std::count(moved.begin(), moved.end(), c);
    check(was == is, "no cluster is emptied or made", is, was);
  }
  // By the definition of the cut, no move of a single node may lower it further.
  for (int64_t i = 0; i < nodes; ++i) {
    const int64_t own = moved[i];
    if (own < 0 || std::count(moved.begin(), moved.end(), own) == 1) continue;
    for (int64_t c = 0; c < clusters; ++c) {
      // A node joins no cluster without an edge to it.
      const auto ties = [&](const Entry& e) { return e.row == i && e.col != i && moved[e.col] == c; };
      if (c == own || std::none_of(entries.begin(), entries.end(), ties)) continue;
      auto other = moved;
      other[i] = c;
      const double changed = cut_of(entries, other, clusters);
      check(changed > after - 1e-9, "a move was left", changed, after);
    }
  }
  ++passed;
}

// Moves nodes of one side of a bipartite graph; the nodes of the other side stay.
void try_side(int64_t nodes, int64_t others, int64_t clusters) {
  std::vector<int64_t> labels(nodes + others);
  for (int64_t& label : labels) label = draw(0, clusters - 1);
  std::vector<Entry> entries;
  const int64_t stride = clusters + 3;
  std::vector<double> ties(nodes * stride), degrees(nodes);
  for (int64_t i = 0; i < nodes; ++i) {
    for (int64_t j = nodes; j < nodes + others; ++j) {
      const double weight = 0.125 * double(draw(1, 8)) * (draw(0, 2) == 0);
      if (weight == 0.0) continue;
      entries.push_back({i, j, weight});
      entries.push_back({j, i, weight});
      ties[i * stride + labels[j]] = ties[i * stride + labels[j]] + weight;
      degrees[i] = degrees[i] + weight;
    }
    if (degrees[i] == 0.0) labels[i] = -1;
  }
  Cut cut;
  cut.inside.resize(clusters);
  cut.volume.resize(clusters);
  cut.sizes.resize(clusters);
  for (const Entry& entry : entries) {
    const int64_t own = labels[entry.row];
    cut.volume[own] = cut.volume[own] + entry.weight;
    if (own == labels[entry.col]) cut.inside[own] = cut.inside[own] + entry.weight;
  }
  for (int64_t label : labels) {
    if (label >= 0) cut.sizes[label] = cut.sizes[label] + 1;
  }
  std::vector<int64_t> moved = labels;
  const double before = cut_of(entries, labels, clusters);
  const int64_t count =
      move_side(nodes, ties.data(), stride, degrees.data(), nullptr, 1e-12, 10, moved.data(), &cut);
  const double after = cut_of(entries, moved, clusters);
  check(count == 0 ? moved == labels : after < before, "moves of a side lower the cut", after, before);
  double told = 0.0;
  for (int64_t c = 0; c < clusters; ++c) {
    told += cut.volume[c] > 0 ? 1.0 - cut.inside[c] / cut.volume[c] : 0.0;
    check(cut.sizes[c] == std::count(moved.begin(), moved.end(), c), "size after moves", double(cut.sizes[c]),
          0);
  }
  check_near(told, after, 1e-10, "normalised cut after moves");
  ++passed;
}

}  // namespace

int main() {
  try_planted_points(60, 3, 3);
  try_planted_points(500, 9, 9);
  try_planted_points(40000, 2, 2);
  try_planted_points(5, 5, 5);
  for (int64_t places : {1, 2, 7}) {
    for (int64_t clusters : {1, 2, 7, 9}) try_few_places(30, 4, places, std::min<int64_t>(clusters, 30));
  }
  try_few_places(1, 3, 1, 1);
  try_few_places(6, 0, 1, 3);
  try_few_places(12, 17, 12, 12);

  for (int trial = 0; trial < 6; ++trial) {
    try_graph<int32_t, float>(DType::float32, 40, 3);
    try_graph<int64_t, double>(DType::float64, 30, 4);
    try_side(30, 20, 3);
  }
  try_graph<int32_t, double>(DType::float64, 1, 1);
  try_graph<int64_t, float>(DType::float32, 12, 12);
  try_side(1, 1, 2);
  std::printf("%s: %d of clusters and moves passed, 0 failed\n", name_of(instruction_set_in_use()), passed);
}
