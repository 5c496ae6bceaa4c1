// The kernels of Lloyd's iterations on a GPU; see cuda_kmeans_parts.h.
#include "spectral/cuda_kmeans_parts.h"

namespace modfast {
namespace {

constexpr int kDepth = 16;  // the coordinates of a tile
constexpr int kShare = 4;   // a thread computes the distances of kShare points from kShare centres
constexpr int kNoCluster = std::numeric_limits<int32_t>::max();
constexpr int kAdders = 16;
constexpr int kMoveThreads = 256;
constexpr int64_t kSharedNumbers = 3072;  // sums beyond this are in the device's memory
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// C: the centres of a tile.
template <int C>
struct Tile {
  static constexpr int across = C / kShare, threads = kTilePoints / kShare * across;
  // With strides that let threads write columns without many bank conflicts.
  alignas(16) float points[kDepth][kTilePoints + 4];
  alignas(16) float centres[kDepth][C + 4];
};

// Copies some coordinates of `count` rows into the columns of a tile, and zeros for those that are not there.
template <int Threads, int Stride>
__device__ void read_turned(const float* rows, int64_t count, int64_t dims, int64_t first, int columns,
                            float (*turned)[Stride]) {
  for (int i = threadIdx.x; i < kDepth * columns; i += Threads) {
    const int d = i % kDepth, row = i / kDepth;
    const bool there = row < count && first + d < dims;
    turned[d][row] = there ? rows[row * dims + first + d] : 0.0f;
  }
}

// Computes the nearest of `centres` centres for kShare points of a tile, and the squared distances. Threads
// next to each other share the points; each gets the result.
template <int C>
__device__ void find_nearest(const Lloyd& l, const float* places, int64_t points, const float* centres,
                             int64_t count, Tile<C>* tile, float* squares, int32_t* labels) {
  constexpr int threads = Tile<C>::threads, across = Tile<C>::across;
  const int col = threadIdx.x % across, row = threadIdx.x / across;
  for (int i = 0; i < kShare; ++i) {
    squares[i] = kInfinity;
    labels[i] = 0;
  }
  for (int64_t c = 0; c < count; c += C) {
    float sums[kShare][kShare] = {};
    for (int64_t d = 0; d < l.dims; d += kDepth) {
      read_turned<threads>(places, points, l.dims, d, kTilePoints, tile->points);
      read_turned<threads>(centres + c * l.dims, count - c, l.dims, d, C, tile->centres);
      __syncthreads();
      const int depth = l.dims - d < kDepth ? static_cast<int>(l.dims - d) : kDepth;
      for (int at = 0; at < depth; ++at) {
        for (int i = 0; i < kShare; ++i) {
          for (int j = 0; j < kShare; ++j) {
            const float away = tile->points[at][row * kShare + i] - tile->centres[at][col * kShare + j];
            sums[i][j] = fmaf(away, away, sums[i][j]);
          }
        }
      }
      __syncthreads();
    }
    for (int j = 0; j < kShare; ++j) {
      const int64_t centre = c + col * kShare + j;
      for (int i = 0; i < kShare; ++i) {
        if (centre < count && sums[i][j] < squares[i]) {
          squares[i] = sums[i][j];
          labels[i] = static_cast<int32_t>(centre);
        }
      }
    }
  }
  // Of centres at the same distance the first, as in a loop over all.
  for (int distance = 1; distance < across; distance *= 2) {
    for (int i = 0; i < kShare; ++i) {
      const float square = __shfl_xor_sync(kAllLanes, squares[i], distance);
      const int32_t label = __shfl_xor_sync(kAllLanes, labels[i], distance);
      if (square < squares[i] || (square == squares[i] && label < labels[i])) {
        squares[i] = square;
        labels[i] = label;
      }
    }
  }
}

// The points of a tile, sorted by cluster.
struct Sorted {
  int32_t labels[kTilePoints];
  float weights[kTilePoints];
  int16_t order[kTilePoints];
  int16_t begins[kTilePoints + 1];  // where each cluster that has points begins in the order; their end
  int32_t begins_of_warp[kTilePoints / kWarpLanes];
  int32_t clusters;  // that have points
};

// Sets the order from the labels, of which the last may be kNoCluster.
__device__ void sort(Sorted* sorted) {
  const int i = threadIdx.x, warp = i / kWarpLanes, lane = i % kWarpLanes;
  const bool has_point = i < kTilePoints;
  if (has_point) {
    const int32_t label = sorted->labels[i];
    int rank = 0;
    for (int j = 0; j < kTilePoints; ++j) {
      const int32_t other = sorted->labels[j];
      rank += other < label || (other == label && j < i);
    }
    sorted->order[rank] = static_cast<int16_t>(i);
  }
  __syncthreads();
  bool begins = false, ends = false;
  unsigned bits = 0;
  if (has_point) {  // whole warps
    const int32_t label = sorted->labels[sorted->order[i]];
    const bool differs = i == 0 || label != sorted->labels[sorted->order[i - 1]];
    begins = differs && label != kNoCluster;
    ends = differs && label == kNoCluster;
    bits = __ballot_sync(kAllLanes, begins);
    if (lane == 0) sorted->begins_of_warp[warp] = __popc(bits);
  }
  __syncthreads();
  if (has_point) {
    int before = __popc(bits & ((1u << lane) - 1));
    for (int w = 0; w < warp; ++w) before += sorted->begins_of_warp[w];
    if (begins || ends) sorted->begins[before] = static_cast<int16_t>(i);
    if (ends) sorted->clusters = before;
    if (i == kTilePoints - 1 && sorted->labels[sorted->order[i]] != kNoCluster) {
      sorted->clusters = before + begins;
      sorted->begins[before + begins] = kTilePoints;
    }
  }
  __syncthreads();
}

// Adds a tile's points to the sums: a thread adds up one coordinate of the points of one cluster.
template <int Threads>
__device__ void add_points(const Lloyd& l, const float* places, const Sorted& sorted, double* sums) {
  const auto width = static_cast<unsigned>(l.width());
  for (unsigned i = threadIdx.x; i < sorted.clusters * width; i += Threads) {
    const unsigned cluster = i / width, d = i % width;
    const int begin = sorted.begins[cluster], end = sorted.begins[cluster + 1];
    double sum = 0;
    for (int at = begin; at < end; ++at) {
      const int point = sorted.order[at];
      const double weight = sorted.weights[point];
      sum += d < l.dims ? weight * places[point * l.dims + d] : d == l.dims ? weight : 1.0;
    }
    sums[sorted.labels[sorted.order[begin]] * l.width() + d] += sum;
  }
}

// Labels the points of one piece, one block of threads for each start and piece.
template <int C>
__global__ void __launch_bounds__(Tile<C>::threads) assign(const __grid_constant__ Lloyd l) {
  constexpr int threads = Tile<C>::threads, across = Tile<C>::across;
  __shared__ Tile<C> tile;
  __shared__ Sorted sorted;
  const int64_t start = blockIdx.x / l.pieces, piece = blockIdx.x % l.pieces;
  const Start state = l.states[start];
  if (state.ended) return;
  const int64_t numbers = l.numbers();
  double* record = l.records + blockIdx.x * numbers;
  double* sums = numbers <= kSharedNumbers ? dynamic_shared<double>() : record;
  for (int64_t i = threadIdx.x; i < numbers; i += threads) sums[i] = 0.0;
  __syncthreads();
  const float* centres = l.centres + start * l.clusters * l.dims;
  int32_t* all_labels = l.labels + start * l.count;
  float* all_squares = l.squares + start * l.count;
  const int col = threadIdx.x % across, row = threadIdx.x / across;
  double cost = 0, moved = 0;
  for (int64_t t = 0; t < l.tiles_of_piece; ++t) {
    const int64_t first = (piece * l.tiles_of_piece + t) * kTilePoints;
    if (first >= l.count) break;
    float squares[kShare];
    int32_t labels[kShare];
    find_nearest(l, l.places + first * l.dims, l.count - first, centres, state.centres, &tile, squares,
                 labels);
    for (int i = 0; i < kShare; ++i) {
      if (i % across != col) continue;
      const int in_tile = row * kShare + i;
      const int64_t point = first + in_tile;
      const bool there = point < l.count;
      const float weight = there ? l.weights[point] : 0.0f;
      sorted.labels[in_tile] = there ? labels[i] : kNoCluster;
      sorted.weights[in_tile] = weight;
      if (!there) continue;
      cost += static_cast<double>(weight) * squares[i];
      all_squares[point] = squares[i];
      // Before the first iteration no point has a label.
      if (state.iterations > 0 && all_labels[point] == labels[i]) continue;
      all_labels[point] = labels[i];
      ++moved;
    }
    __syncthreads();
    sort(&sorted);
    add_points<threads>(l, l.places + first * l.dims, sorted, sums);
    __syncthreads();
  }
  __shared__ double of_warp[threads / kWarpLanes];
  cost = block_sum<threads>(cost, of_warp);
  moved = block_sum<threads>(moved, of_warp);
  if (sums != record) {
    for (int64_t i = threadIdx.x; i < numbers - 2; i += threads) record[i] = sums[i];
  }
  if (threadIdx.x == 0) {
    record[numbers - 2] = cost;
    record[numbers - 1] = moved;
  }
}

// Adds up the records of each start: kAdders threads for each number, each in order.
__global__ void __launch_bounds__(kWarpLanes* kAdders) add_records(const __grid_constant__ Lloyd l) {
  __shared__ double sums[kAdders][kWarpLanes];
  const int64_t numbers = l.numbers(), blocks = pieces_of(numbers, kWarpLanes);
  const int64_t start = blockIdx.x / blocks;
  if (l.states[start].ended) return;
  const int lane = threadIdx.x % kWarpLanes, adder = threadIdx.x / kWarpLanes;
  const int64_t number = blockIdx.x % blocks * kWarpLanes + lane;
  double sum = 0;
  if (number < numbers) {
    const double* records = l.records + start * l.pieces * numbers + number;
    for (int64_t piece = adder; piece < l.pieces; piece += kAdders) sum += records[piece * numbers];
  }
  sums[adder][lane] = sum;
  __syncthreads();
  if (adder > 0 || number >= numbers) return;
  sum = 0;
  for (int i = 0; i < kAdders; ++i) sum += sums[i][lane];
  l.totals[start * numbers + number] = sum;
}

// The point with the highest cost that is not alone in its cluster, the first of several, or -1. All threads
// of a block get it. This is slow for many points, and rare.
__device__ int64_t farthest(const Lloyd& l, int64_t start, const double* totals, double* share) {
  __shared__ double shares[kMoveThreads];
  __shared__ int64_t points[kMoveThreads];
  const float* squares = l.squares + start * l.count;
  const int32_t* labels = l.labels + start * l.count;
  double most = -1;
  int64_t found = -1;
  for (int64_t i = threadIdx.x; i < l.count; i += kMoveThreads) {
    const double here = static_cast<double>(l.weights[i]) * squares[i];
    if (totals[labels[i] * l.width() + l.dims + 1] <= 1 || here <= most) continue;
    found = i;
    most = here;
  }
  shares[threadIdx.x] = most;
  points[threadIdx.x] = found;
  __syncthreads();
  for (int i = 0; i < kMoveThreads; ++i) {
    if (points[i] < 0 || shares[i] < most || (shares[i] == most && found >= 0 && points[i] >= found)) {
      continue;
    }
    found = points[i];
    most = shares[i];
  }
  __syncthreads();
  *share = most;
  return found;
}

// An empty cluster takes the farthest point.
__device__ void fill_empty(const Lloyd& l, int64_t start, int64_t centres, double* totals, double* cost,
                           double* moved) {
  const int64_t width = l.width();
  for (int64_t cluster = 0; cluster < centres; ++cluster) {
    if (totals[cluster * width + l.dims + 1] > 0) continue;
    double share;
    const int64_t point = farthest(l, start, totals, &share);
    if (point < 0) return;
    int32_t* label = l.labels + start * l.count + point;
    const int64_t from = *label;
    __syncthreads();
    const double weight = l.weights[point];
    for (int64_t d = threadIdx.x; d < width; d += kMoveThreads) {
      const double number = d < l.dims ? weight * l.places[point * l.dims + d] : d == l.dims ? weight : 1.0;
      totals[from * width + d] -= number;
      totals[cluster * width + d] += number;
    }
    if (threadIdx.x == 0) {
      *label = static_cast<int32_t>(cluster);
      l.squares[start * l.count + point] = 0;
    }
    __syncthreads();
    *cost -= share;
    ++*moved;
  }
}

// Ends an iteration of each start, one block of threads for each. They are fewer than multiprocessors, so a
// block may take as many registers as it likes.
__global__ void __launch_bounds__(kMoveThreads, 1) move_centres(const __grid_constant__ Lloyd l) {
  const int64_t start = blockIdx.x, width = l.width();
  const Start state = l.states[start];
  if (state.ended) return;
  double* totals = l.totals + start * l.numbers();
  double cost = totals[l.numbers() - 2], moved = totals[l.numbers() - 1];
  int empty = 0;
  for (int64_t c = threadIdx.x; c < state.centres; c += kMoveThreads) {
    if (totals[c * width + l.dims + 1] == 0) empty = 1;
  }
  if (__syncthreads_or(empty)) fill_empty(l, start, state.centres, totals, &cost, &moved);
  const bool same = moved == 0;
  for (int64_t i = threadIdx.x; !same && i < state.centres * l.dims; i += kMoveThreads) {
    const double* of_cluster = totals + i / l.dims * width;
    if (of_cluster[l.dims + 1] == 0) continue;
    l.centres[start * l.clusters * l.dims + i] =
        static_cast<float>(of_cluster[i % l.dims] / of_cluster[l.dims]);
  }
  if (threadIdx.x > 0) return;
  const int64_t iterations = state.iterations + 1;
  l.states[start] = {cost, iterations, state.centres, same || iterations >= l.max_iterations};
}

template <int C>
void launch_tiled(const Lloyd& l, cudaStream_t stream) {
  const size_t shared = l.numbers() <= kSharedNumbers ? l.numbers() * sizeof(double) : 0;
  launch(assign<C>, l.starts * l.pieces, Tile<C>::threads, shared, stream, l);
  launch(add_records, l.starts * pieces_of(l.numbers(), kWarpLanes), kWarpLanes * kAdders, 0, stream, l);
  launch(move_centres, l.starts, kMoveThreads, 0, stream, l);
}

}  // namespace

void launch_iteration(const Lloyd& l, cudaStream_t stream) {
  l.clusters <= 16 ? launch_tiled<16>(l, stream) : launch_tiled<32>(l, stream);
}

}  // namespace modfast
