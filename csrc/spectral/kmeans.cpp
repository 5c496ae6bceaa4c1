#include "spectral/kmeans.h"

#include "common/parallel.h"
#include "spectral/lines.h"

#include <limits>

namespace modfast {
namespace {

constexpr int64_t kPointsOfChunk = 4096;

// Centres: places holds their coordinates, one centre after the other.
struct Centres {
  int64_t dims;
  int32_t count = 0;
  std::vector<float> places;

  Centres(int64_t dims, int64_t clusters) : dims(dims), places(dims * clusters) {}
  void set(int64_t cluster, const float* point) { std::copy_n(point, dims, places.data() + cluster * dims); }
};

// Points: places holds their coordinates, one point after the other. turn() transposes some of them, for the
// computation of distances.
struct Points {
  int64_t count, dims;
  const float *places, *weights;

  // turned[d * count + i] = coordinate d of point begin + i
  void turn(int64_t begin, int64_t end, float* turned) const {
    const int64_t n = end - begin;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t d = 0; d < dims; ++d) turned[d * n + i] = places[(begin + i) * dims + d];
    }
  }
};

// The terms of Lloyd's iteration over some points: for each cluster the weighted sum of its points, their
// total weight and their number.
struct Sums {
  std::vector<double> places, weights;
  std::vector<int64_t> sizes;
  double cost = 0;
  int64_t moved = 0;

  Sums(int64_t dims, int64_t clusters) : places(dims * clusters), weights(clusters), sizes(clusters) {}
  void add(const Points& points, int64_t point, int64_t cluster, int sign) {
    const double weight = sign * static_cast<double>(points.weights[point]);
    const float* place = points.places + point * points.dims;
    for (int64_t d = 0; d < points.dims; ++d) places[cluster * points.dims + d] += weight * place[d];
    weights[cluster] += weight;
    sizes[cluster] += sign;
  }
  void add(const Sums& other) {
    for (size_t i = 0; i < places.size(); ++i) places[i] += other.places[i];
    for (size_t i = 0; i < sizes.size(); ++i) {
      weights[i] += other.weights[i];
      sizes[i] += other.sizes[i];
    }
    cost += other.cost;
    moved += other.moved;
  }
};

// A sum in several parts, which do not wait for each other.
double sum_of(const double* numbers, int64_t count) {
  constexpr int kParts = 8;
  double parts[kParts] = {};
  int64_t i = 0;
  for (; i + kParts <= count; i += kParts) {
    for (int part = 0; part < kParts; ++part) parts[part] += numbers[i + part];
  }
  for (; i < count; ++i) parts[0] += numbers[i];
  double sum = 0;
  for (double part : parts) sum += part;
  return sum;
}

// Labels the points [begin, end) with their nearest centre, sets squares to the squared distances from it,
// and adds to `changes` the terms of the points that change their label.
void assign(const Points& points, int64_t begin, int64_t end, const float* turned, int64_t stride,
            const Centres& centres, int32_t* labels, float* squares, Sums* changes) {
  const auto& lines = spectral_lines_in_use();
  const int64_t n = end - begin;
  std::vector<int32_t> before(labels + begin, labels + end);
  std::fill(squares + begin, squares + end, std::numeric_limits<float>::infinity());
  std::fill(labels + begin, labels + end, 0);
  lines.nearest(turned, stride, n, centres.places.data(), centres.dims, 0, centres.count, squares + begin,
                labels + begin);
  std::vector<double> costs(n);
  for (int64_t i = 0; i < n; ++i) {
    costs[i] = static_cast<double>(points.weights[begin + i]) * squares[begin + i];
  }
  changes->cost += sum_of(costs.data(), n);
  for (int64_t i = begin; i < end; ++i) {
    const int32_t from = before[i - begin];
    if (labels[i] == from) continue;
    ++changes->moved;
    if (from >= 0) changes->add(points, i, from, -1);
    changes->add(points, i, labels[i], 1);
  }
}

// An empty cluster takes the point with the highest cost that is not alone in its cluster.
void fill_empty(const Points& points, int32_t* labels, float* squares, Sums* sums) {
  for (size_t cluster = 0; cluster < sums->sizes.size(); ++cluster) {
    if (sums->sizes[cluster] > 0) continue;
    int64_t farthest = -1;
    double most = -1;
    for (int64_t i = 0; i < points.count; ++i) {
      const double share = static_cast<double>(points.weights[i]) * squares[i];
      if (sums->sizes[labels[i]] <= 1 || share <= most) continue;
      farthest = i;
      most = share;
    }
    if (farthest < 0) return;
    sums->add(points, farthest, labels[farthest], -1);
    sums->add(points, farthest, static_cast<int64_t>(cluster), 1);
    labels[farthest] = static_cast<int32_t>(cluster);
    sums->cost -= most;
    squares[farthest] = 0;
    ++sums->moved;
  }
}

// Runs Lloyd's iterations until no point changes its cluster. turned: all points transposed, or null.
Tightness lloyd(const Points& points, const float* turned, Centres* centres, int64_t max_iterations,
                int32_t* labels, ParallelFor parallel_for) {
  const int64_t dims = points.dims, chunks = (points.count + kPointsOfChunk - 1) / kPointsOfChunk;
  std::vector<float> squares(points.count);
  std::fill(labels, labels + points.count, -1);
  Sums sums(dims, centres->count);
  Tightness result;
  while (result.iterations < max_iterations) {
    ++result.iterations;
    std::vector<Sums> changes(chunks, Sums(dims, centres->count));
    for_each_chunk(parallel_for, points.count, kPointsOfChunk, [&](int64_t begin, int64_t end) {
      std::vector<float> own;
      if (!turned) {
        own.resize(dims * (end - begin));
        points.turn(begin, end, own.data());
      }
      assign(points, begin, end, turned ? turned + begin : own.data(), turned ? points.count : end - begin,
             *centres, labels, squares.data(), &changes[begin / kPointsOfChunk]);
    });
    sums.cost = 0;
    sums.moved = 0;
    for (const Sums& each : changes) sums.add(each);
    fill_empty(points, labels, squares.data(), &sums);
    result.cost = sums.cost;
    if (sums.moved == 0) break;
    std::vector<float> mean(dims);
    for (int32_t c = 0; c < centres->count; ++c) {
      if (sums.sizes[c] == 0) continue;
      for (int64_t d = 0; d < dims; ++d) {
        mean[d] = static_cast<float>(sums.places[c * dims + d] / sums.weights[c]);
      }
      centres->set(c, mean.data());
    }
  }
  return result;
}

// Points whose shares are added up together, to look at few sums when one of them is drawn.
constexpr int64_t kDrawnTogether = 64;

// The squared distances from the centres at which points are in the same place as one of them.
std::vector<float> same_places(const KMeans& problem, const float* turned, int64_t count) {
  std::vector<float> least(count);
  for (int64_t d = 0; d < problem.dims; ++d) {
    const float* places = turned + d * count;
    for (int64_t i = 0; i < count; ++i) least[i] += places[i] * places[i];
  }
  for (float& each : least) each *= static_cast<float>(problem.same_place * problem.same_place);
  return least;
}

// Draws one of `count` shares in proportion; lowers `drawn`, from 0 to their sum, by those before it. If
// rounding leaves something after all of them, the last one that is not 0. -1 if there is none.
int64_t draw(const double* shares, int64_t count, double* drawn) {
  int64_t chosen = -1;
  for (int64_t i = 0; i < count; ++i) {
    if (shares[i] == 0) continue;
    chosen = i;
    if (*drawn < shares[i]) return chosen;
    *drawn -= shares[i];
  }
  *drawn = std::numeric_limits<double>::infinity();  // within the last one, it is the last again
  return chosen;
}

// k-means++ (Arthur and Vassilvitskii 2007): each centre is a point, drawn with a probability proportional to
// its weighted squared distance from the centres before.
Centres first_centres(const KMeans& problem, const Points& points, const float* turned, const float* least,
                      Random random) {
  const int64_t dims = points.dims, count = points.count;
  Centres centres(dims, problem.clusters);
  std::vector<float> squares(count, std::numeric_limits<float>::infinity());
  std::vector<int32_t> labels(count);
  const auto& lines = spectral_lines_in_use();
  std::vector<double> shares(count), sums((count + kDrawnTogether - 1) / kDrawnTogether);
  int64_t chosen = random.below(count);
  while (true) {
    centres.set(centres.count++, points.places + chosen * dims);
    if (centres.count == problem.clusters) break;
    lines.nearest(turned, count, count, centres.places.data(), dims, centres.count - 1, centres.count,
                  squares.data(), labels.data());
    for (int64_t i = 0; i < count; ++i) shares[i] = share_of(points.weights[i], squares[i], least[i]);
    double total = 0;
    for (size_t part = 0; part < sums.size(); ++part) {
      const int64_t begin = static_cast<int64_t>(part) * kDrawnTogether;
      sums[part] = sum_of(shares.data() + begin, std::min(kDrawnTogether, count - begin));
      total += sums[part];
    }
    double drawn = random.uniform() * total;
    const int64_t part = draw(sums.data(), static_cast<int64_t>(sums.size()), &drawn);
    if (part < 0) break;  // no other point differs from the centres
    const int64_t begin = part * kDrawnTogether;
    chosen = begin + draw(shares.data() + begin, std::min(kDrawnTogether, count - begin), &drawn);
  }
  return centres;
}

// A ParallelFor that runs on the calling thread.
void serially(int64_t count, int64_t, LoopBody body, void* context) { body(0, count, context); }

}  // namespace

Tightness k_means(const KMeans& problem, const float* points, const float* weights, int64_t* labels,
                  ParallelFor parallel_for) {
  const int64_t dims = problem.dims;
  const Points all{problem.points, dims, points, weights};
  Points tried{sample_size(problem), dims, points, weights};
  std::vector<float> sample, sample_weights;
  if (tried.count < all.count) {
    sample.resize(tried.count * dims);
    sample_weights.resize(tried.count);
    for (int64_t i = 0; i < tried.count; ++i) {
      const int64_t drawn = sampled(problem.seed, all.count, tried.count, i);
      std::copy_n(points + drawn * dims, dims, sample.data() + i * dims);
      sample_weights[i] = weights[drawn];
    }
    tried.places = sample.data();
    tried.weights = sample_weights.data();
  }
  std::vector<float> turned(tried.count * dims);
  tried.turn(0, tried.count, turned.data());

  const std::vector<float> least = same_places(problem, turned.data(), tried.count);

  std::vector<Centres> found(problem.starts, Centres(dims, problem.clusters));
  std::vector<Tightness> results(problem.starts);
  std::vector<std::vector<int32_t>> of_sample(problem.starts);
  for_each_chunk(parallel_for, problem.starts, 1, [&](int64_t start, int64_t) {
    const Random random{seed_of_start(problem.seed, start)};
    found[start] = first_centres(problem, tried, turned.data(), least.data(), random);
    of_sample[start].resize(tried.count);
    results[start] =
        lloyd(tried, turned.data(), &found[start], problem.max_iterations, of_sample[start].data(), serially);
  });
  const auto best = std::min_element(results.begin(), results.end(),
                                     [](const auto& a, const auto& b) { return a.cost < b.cost; }) -
                    results.begin();
  if (tried.count < all.count) {
    std::vector<int32_t> of_all(all.count);
    const Tightness result =
        lloyd(all, nullptr, &found[best], problem.max_iterations, of_all.data(), parallel_for);
    std::copy(of_all.begin(), of_all.end(), labels);
    return result;
  }
  std::copy(of_sample[best].begin(), of_sample[best].end(), labels);
  return results[best];
}

}  // namespace modfast
