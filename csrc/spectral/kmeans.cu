// k-means on a GPU: what the CPU computes, draw for draw.
//
// Starts run side by side. Each step of k-means++ is two launches for all of them: one updates the points'
// distances, another draws the next centre. An iteration of Lloyd's is three: one labels the points and adds
// them up in pieces, another adds up the pieces, the last moves the centres. All decisions are made on the
// device. The host only learns every few iterations which starts have ended: a kernel of a start that has
// ended returns at once.
//
// An iteration over n points reads each once from the device's memory: 4 n (dims + 2) bytes with the weights
// and labels, and it writes 4 n bytes of squares and the labels that change. A million points of 20
// coordinates are 92 MB; the pieces add 7 MB. The coordinates are read a second time, for the sums, from the
// cache.
#include "spectral/cuda_kmeans.h"
#include "spectral/cuda_kmeans_parts.h"

#include <algorithm>
#include <vector>

namespace modfast {
namespace {

constexpr int kCopyThreads = 256;

// Copies one start to another place; again: as one that has not begun to iterate.
__global__ void __launch_bounds__(kCopyThreads) copy_start(const __grid_constant__ Lloyd from, int64_t start,
                                                           const __grid_constant__ Lloyd to, bool again) {
  const int64_t i = int64_t(blockIdx.x) * kCopyThreads + threadIdx.x, places = from.clusters * from.dims;
  if (i < places) to.centres[i] = from.centres[start * places + i];
  if (!again && i < from.count) to.labels[i] = from.labels[start * from.count + i];
  if (i > 0) return;
  Start state = from.states[start];
  if (again) state.iterations = state.ended = 0;
  *to.states = state;
}

__global__ void __launch_bounds__(kCopyThreads)
    give(const __grid_constant__ Lloyd l, int64_t* labels, double* cost, int64_t* iterations) {
  const int64_t i = int64_t(blockIdx.x) * kCopyThreads + threadIdx.x;
  if (i < l.count) labels[i] = l.labels[i];
  if (i > 0) return;
  *cost = l.states->cost;
  *iterations = l.states->iterations;
}

// --- The host's part

constexpr int64_t kMostPieces = 1024;
constexpr int64_t kPieceBytes = int64_t{1} << 28;  // all pieces together take at most this, or one piece does
constexpr int64_t kMostStarts = 64;                // side by side
constexpr int64_t kStartBytes = int64_t{1} << 27;  // of all starts side by side, but for one
constexpr int64_t kIterationsAtOnce = 4;           // between two looks at the states

// Hands out parts of the memory. Without any, only counts the bytes.
class Memory {
 public:
  explicit Memory(void* begin) : begin_(static_cast<char*>(begin)) {}
  template <class T>
  void take(int64_t numbers, T** part) {
    *part = begin_ ? reinterpret_cast<T*>(begin_ + used_) : nullptr;
    used_ += pieces_of(numbers * static_cast<int64_t>(sizeof(T)), kAlignment) * kAlignment;
  }
  int64_t used() const { return used_; }

 private:
  static constexpr int64_t kAlignment = 16;
  char* begin_;
  int64_t used_ = 0;
};

// All sizes and pointers of a problem. `best` is the best start so far, with room for all points' labels.
struct Plan {
  Draws draws;
  Lloyd tries, best;

  Plan(const KMeans& problem, const float* points, const float* weights, Memory* memory) : draws{}, tries{} {
    draws.points = problem.points;
    draws.count = sample_size(problem);
    draws.dims = problem.dims;
    draws.clusters = std::min(problem.clusters, draws.count);  // each centre is another point
    draws.seed = problem.seed;
    draws.same_place = static_cast<float>(problem.same_place * problem.same_place);
    draws.given = points;
    draws.given_weights = weights;
    tries.count = draws.count;
    tries.dims = draws.dims;
    tries.clusters = draws.clusters;
    tries.max_iterations = problem.max_iterations;
    best = tries;
    best.count = problem.points;
    best.starts = 1;
    const int64_t of_start = 8 * tries.count + 4 * tries.clusters * tries.dims + 16 * tries.numbers();
    tries.starts = std::min({problem.starts, kMostStarts, std::max<int64_t>(1, kStartBytes / of_start)});

    if (is_sample()) {
      memory->take(draws.count * draws.dims, &draws.places);
      memory->take(draws.count, &draws.weights);
    }
    memory->take(draws.count * draws.dims, &draws.turned);
    memory->take(draws.count, &draws.least);
    memory->take(tries.starts * draws.blocks(), &draws.totals);
    take(&tries, memory, true);
    take(&best, memory, is_sample());
    draws.states = tries.states;
    draws.centres = tries.centres;
    draws.squares = tries.squares;
    tries.places = is_sample() ? draws.places : points;
    tries.weights = is_sample() ? draws.weights : weights;
    best.places = points;
    best.weights = weights;
  }
  bool is_sample() const { return draws.count < draws.points; }

 private:
  static void take(Lloyd* l, Memory* memory, bool iterates) {
    const int64_t tiles = pieces_of(l->count, kTilePoints);
    const int64_t fit = kPieceBytes / (8 * l->numbers() * l->starts);
    const int64_t most = std::max<int64_t>(1, std::min(kMostPieces / l->starts, fit));
    l->tiles_of_piece = pieces_of(tiles, most);
    l->pieces = pieces_of(tiles, l->tiles_of_piece);
    memory->take(l->starts, &l->states);
    memory->take(l->starts * l->clusters * l->dims, &l->centres);
    memory->take(l->starts * l->count, &l->labels);
    if (!iterates) return;
    memory->take(l->starts * l->count, &l->squares);
    memory->take(l->starts * l->pieces * l->numbers(), &l->records);
    memory->take(l->starts * l->numbers(), &l->totals);
  }
};

// Runs iterations until all starts have ended, and reads their states.
const char* iterate(const Lloyd& l, std::vector<Start>* states, cudaStream_t stream) {
  states->resize(l.starts);
  while (true) {
    for (int64_t i = 0; i < std::min(kIterationsAtOnce, l.max_iterations); ++i) {
      launch_iteration(l, stream);
    }
    cudaMemcpyAsync(states->data(), l.states, l.starts * sizeof(Start), cudaMemcpyDeviceToHost, stream);
    cudaStreamSynchronize(stream);
    if (const char* error = outcome()) return error;
    if (std::all_of(states->begin(), states->end(), [](const Start& state) { return state.ended; })) break;
  }
  return nullptr;
}

}  // namespace

int64_t k_means_room(const KMeans& problem) {
  Memory memory(nullptr);
  Plan(problem, nullptr, nullptr, &memory);
  return memory.used();
}

const char* cuda_k_means(const KMeans& problem, const float* points, const float* weights, void* room,
                         int64_t* labels, double* cost, int64_t* iterations, void* given_stream) {
  const auto stream = static_cast<cudaStream_t>(given_stream);
  Memory memory(room);
  Plan plan(problem, points, weights, &memory);
  launch_sample(plan.draws, stream);
  std::vector<Start> states;
  double least = 0;
  for (int64_t first = 0; first < problem.starts; first += plan.tries.starts) {
    Lloyd tries = plan.tries;
    tries.starts = std::min(plan.tries.starts, problem.starts - first);
    plan.draws.starts = tries.starts;
    plan.draws.first_start = first;
    launch_first_centres(plan.draws, stream);
    if (const char* error = iterate(tries, &states, stream)) return error;
    const auto best = std::min_element(states.begin(), states.end(),
                                       [](const Start& a, const Start& b) { return a.cost < b.cost; });
    if (first > 0 && !(best->cost < least)) continue;
    least = best->cost;
    const int64_t copied = std::max(tries.count, tries.clusters * tries.dims);
    launch(copy_start, pieces_of(copied, kCopyThreads), kCopyThreads, 0, stream, tries,
           int64_t(best - states.begin()), plan.best, plan.is_sample());
  }
  if (plan.is_sample()) {
    if (const char* error = iterate(plan.best, &states, stream)) return error;
  }
  launch(give, pieces_of(plan.best.count, kCopyThreads), kCopyThreads, 0, stream, plan.best, labels, cost,
         iterations);
  return outcome();
}

}  // namespace modfast
