#include "cpu_dispatch.h"
#include "parallel.h"
#include "spectral.h"

#include <limits>

namespace modfast {
namespace {

// Starts are tried on so many points at most. All points have their say in the last iterations.
constexpr int64_t kSample = 32768;
constexpr int64_t kPointsOfChunk = 4096;

// Vigna's SplitMix64: independent numbers from any seed.
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }  // in [0, 1)
  int64_t below(int64_t n) {
    return std::min(n - 1, static_cast<int64_t>(uniform() * static_cast<double>(n)));
  }
};

// Centres, clusters along a row, which is padded with centres that are never the nearest.
struct Centres {
  int64_t dims, count, stride;
  std::vector<float> places;

  Centres(int64_t dims, int64_t clusters)
      : dims(dims),
        count(0),
        stride((clusters + kLanes - 1) / kLanes * kLanes),
        places(dims * stride, std::numeric_limits<float>::infinity()) {}
  void set(int64_t cluster, const float* point) {
    for (int64_t d = 0; d < dims; ++d) places[d * stride + cluster] = point[d];
  }
};

// What Lloyd's iteration needs to know of some points: for each cluster their sum and number.
struct Sums {
  std::vector<double> places, nearest;
  std::vector<int64_t> sizes;
  double cost = 0;
  int64_t moved = 0;

  Sums(int64_t dims, int64_t clusters) : places(dims * clusters), sizes(clusters) {}
  void add(const Sums& other) {
    for (size_t i = 0; i < places.size(); ++i) places[i] += other.places[i];
    for (size_t i = 0; i < sizes.size(); ++i) sizes[i] += other.sizes[i];
    cost += other.cost;
    moved += other.moved;
  }
};

// Labels points with their nearest centre.
void assign(const float* points, int64_t begin, int64_t end, const Centres& centres, int64_t* labels,
            float* squares_of_points, Sums* sums) {
  const auto& lines = spectral_lines_in_use();
  std::vector<float> squares(centres.stride);
  for (int64_t i = begin; i < end; ++i) {
    const float* point = points + i * centres.dims;
    lines.squared_distances(point, centres.places.data(), centres.dims, centres.stride, squares.data());
    int64_t nearest = 0;
    for (int64_t c = 1; c < centres.count; ++c) {
      if (squares[c] < squares[nearest]) nearest = c;
    }
    sums->moved += labels[i] != nearest;
    labels[i] = nearest;
    squares_of_points[i] = squares[nearest];
    sums->cost += squares[nearest];
    ++sums->sizes[nearest];
    for (int64_t d = 0; d < centres.dims; ++d) sums->places[nearest * centres.dims + d] += point[d];
  }
}

// An emptied cluster takes the point farthest from its centre that leaves no cluster empty.
void fill_empty(const float* points, int64_t count, int64_t dims, int64_t* labels, float* squares,
                Sums* sums) {
  for (size_t cluster = 0; cluster < sums->sizes.size(); ++cluster) {
    if (sums->sizes[cluster] > 0) continue;
    int64_t farthest = -1;
    for (int64_t i = 0; i < count; ++i) {
      if (sums->sizes[labels[i]] > 1 && (farthest < 0 || squares[i] > squares[farthest])) farthest = i;
    }
    if (farthest < 0) return;
    for (int64_t d = 0; d < dims; ++d) {
      const double place = points[farthest * dims + d];
      sums->places[labels[farthest] * dims + d] -= place;
      sums->places[cluster * dims + d] = place;
    }
    --sums->sizes[labels[farthest]];
    sums->sizes[cluster] = 1;
    labels[farthest] = static_cast<int64_t>(cluster);
    sums->cost -= squares[farthest];
    squares[farthest] = 0;
    ++sums->moved;
  }
}

// Lloyd's iterations, until no point changes its cluster.
Tightness lloyd(const float* points, int64_t count, Centres* centres, int64_t max_iterations, int64_t* labels,
                ParallelFor parallel_for) {
  const int64_t dims = centres->dims, chunks = (count + kPointsOfChunk - 1) / kPointsOfChunk;
  std::vector<float> squares(count);
  std::fill(labels, labels + count, -1);
  Tightness result;
  for (; result.iterations < max_iterations;) {
    ++result.iterations;
    std::vector<Sums> of_chunk(chunks, Sums(dims, centres->count));
    for_each_chunk(parallel_for, count, kPointsOfChunk, [&](int64_t begin, int64_t end) {
      assign(points, begin, end, *centres, labels, squares.data(), &of_chunk[begin / kPointsOfChunk]);
    });
    Sums sums(dims, centres->count);
    for (const Sums& each : of_chunk) sums.add(each);
    fill_empty(points, count, dims, labels, squares.data(), &sums);
    result.cost = sums.cost;
    if (sums.moved == 0) break;
    std::vector<float> mean(dims);
    for (int64_t c = 0; c < centres->count; ++c) {
      if (sums.sizes[c] == 0) continue;
      for (int64_t d = 0; d < dims; ++d) {
        mean[d] = static_cast<float>(sums.places[c * dims + d] / static_cast<double>(sums.sizes[c]));
      }
      centres->set(c, mean.data());
    }
  }
  return result;
}

// k-means++ (Arthur and Vassilvitskii 2007): each next centre is a point, drawn by squared distance.
Centres first_centres(const KMeans& problem, const float* points, int64_t count, Random random) {
  const int64_t dims = problem.dims;
  Centres centres(dims, problem.clusters), newest(dims, 1);
  std::vector<float> squares(count, std::numeric_limits<float>::infinity()), distance(newest.stride);
  const auto& lines = spectral_lines_in_use();
  const auto least = static_cast<float>(problem.same_place * problem.same_place);
  int64_t chosen = random.below(count);
  while (true) {
    centres.set(centres.count++, points + chosen * dims);
    if (centres.count == problem.clusters) break;
    newest.set(0, points + chosen * dims);
    double total = 0;
    for (int64_t i = 0; i < count; ++i) {
      lines.squared_distances(points + i * dims, newest.places.data(), dims, newest.stride, distance.data());
      squares[i] = std::min(squares[i], distance[0]);
      // A point that differs from a centre by rounding only must not become another centre.
      if (squares[i] > least) total += squares[i];
    }
    if (total == 0) break;
    double drawn = random.uniform() * total;
    for (int64_t i = 0; i < count; ++i) {
      if (squares[i] <= least) continue;
      chosen = i;
      drawn -= squares[i];
      if (drawn < 0) break;
    }
  }
  return centres;
}

// On this thread.
void serially(int64_t count, int64_t, LoopBody body, void* context) { body(0, count, context); }

}  // namespace

Tightness k_means(const KMeans& problem, const float* points, int64_t* labels, ParallelFor parallel_for) {
  const int64_t count = problem.points, dims = problem.dims;
  // One point from each of so many stretches.
  const int64_t tried = std::min(count, kSample);
  std::vector<float> sample;
  const float* from = points;
  if (tried < count) {
    Random random{problem.seed};
    sample.resize(tried * dims);
    for (int64_t i = 0; i < tried; ++i) {
      const int64_t begin = i * count / tried, end = (i + 1) * count / tried;
      std::copy_n(points + (begin + random.below(end - begin)) * dims, dims, sample.data() + i * dims);
    }
    from = sample.data();
  }
  std::vector<Centres> found(problem.starts, Centres(dims, problem.clusters));
  std::vector<Tightness> results(problem.starts);
  std::vector<std::vector<int64_t>> of_sample(problem.starts);
  for_each_chunk(parallel_for, problem.starts, 1, [&](int64_t start, int64_t) {
    Random random{problem.seed ^ (0xd1342543de82ef95u * static_cast<uint64_t>(start + 1))};
    found[start] = first_centres(problem, from, tried, random);
    of_sample[start].resize(tried);
    results[start] =
        lloyd(from, tried, &found[start], problem.max_iterations, of_sample[start].data(), serially);
  });
  const auto best = std::min_element(results.begin(), results.end(),
                                     [](const auto& a, const auto& b) { return a.cost < b.cost; }) -
                    results.begin();
  if (tried < count) {
    return lloyd(points, count, &found[best], problem.max_iterations, labels, parallel_for);
  }
  std::copy(of_sample[best].begin(), of_sample[best].end(), labels);
  return results[best];
}

}  // namespace modfast
