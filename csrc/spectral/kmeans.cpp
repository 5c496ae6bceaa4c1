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
  for (int64_t i = begin; i < end; ++i) {
    changes->cost += static_cast<double>(points.weights[i]) * squares[i];
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

// k-means++ (Arthur and Vassilvitskii 2007): each centre is a point, drawn with a probability proportional to
// its weighted squared distance from the centres before.
Centres first_centres(const KMeans& problem, const Points& points, const float* turned, Random random) {
  const int64_t dims = points.dims, count = points.count;
  Centres centres(dims, problem.clusters);
  std::vector<float> squares(count, std::numeric_limits<float>::infinity());
  std::vector<int32_t> labels(count);
  const auto& lines = spectral_lines_in_use();
  std::vector<float> least(count);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t d = 0; d < dims; ++d) least[i] += turned[d * count + i] * turned[d * count + i];
    least[i] *= static_cast<float>(problem.same_place * problem.same_place);
  }
  const auto share = [&](int64_t i) { return share_of(points.weights[i], squares[i], least[i]); };
  int64_t chosen = random.below(count);
  while (true) {
    centres.set(centres.count++, points.places + chosen * dims);
    if (centres.count == problem.clusters) break;
    lines.nearest(turned, count, count, centres.places.data(), dims, centres.count - 1, centres.count,
                  squares.data(), labels.data());
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += share(i);
    if (total == 0) break;
    double drawn = random.uniform() * total;
    for (int64_t i = 0; i < count; ++i) {
      if (share(i) == 0) continue;
      chosen = i;
      drawn -= share(i);
      if (drawn < 0) break;
    }
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

  std::vector<Centres> found(problem.starts, Centres(dims, problem.clusters));
  std::vector<Tightness> results(problem.starts);
  std::vector<std::vector<int32_t>> of_sample(problem.starts);
  for_each_chunk(parallel_for, problem.starts, 1, [&](int64_t start, int64_t) {
    const Random random{seed_of_start(problem.seed, start)};
    found[start] = first_centres(problem, tried, turned.data(), random);
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
