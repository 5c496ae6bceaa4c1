// Moves of single nodes, and the normalised cut, on a GPU.
//
// Nodes move one after the other, as on the CPU, each after those before it. What takes the time is finding
// the nodes that gain by a move, and that runs side by side. A node's edges are added up in the row's order,
// and nodes are added to their cluster in order, as on the CPU: all numbers are those of the CPU, bit for
// bit.
//
// No index, start or label is used before it is known to be in range; see products_threads.h.
#include "spectral/cuda_graph.h"
#include "spectral/kernel_parts.h"

#include <algorithm>

namespace modfast {
namespace {

constexpr int kMostThreads = 1024, kMostWarps = kMostThreads / kWarp;
constexpr int kNodeThreads = 256;  // of kernels with a thread or a warp for each node
constexpr int kNodeWarps = kNodeThreads / kWarp;
constexpr int64_t kChunk = 16384;      // nodes whose cut is added up on its own; as on the CPU
constexpr int64_t kNearBytes = 36864;  // shared memory for ties, of 48 KB

// The least number of all threads of a block; of_warps: shared memory for a number of each warp. All threads
// wait for each other twice.
__device__ int block_least(int number, int* of_warps) {
  const int lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  const auto least_of_warp = [](int least) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const int other = __shfl_xor_sync(0xffffffffu, least, distance);
      if (other < least) least = other;
    }
    return least;
  };
  const int of_warp = least_of_warp(number);
  if (lane == 0) of_warps[threadIdx.x / kWarp] = of_warp;
  __syncthreads();
  const int least = least_of_warp(of_warps[lane < warps ? lane : 0]);
  __syncthreads();
  return least;
}

// --- One side of a bipartite graph: one block, of which each thread watches over one node.

__global__ void __launch_bounds__(kMostThreads) move_nodes_of_side(const __grid_constant__ SideMoves m) {
  __shared__ int of_warps[kMostWarps];
  const int thread = threadIdx.x;
  bool moved = true;
  for (int64_t sweep = 0; sweep < m.max_sweeps && moved; ++sweep) {
    moved = false;
    for (int64_t first = 0; first < m.nodes; first += blockDim.x) {
      const int64_t i = first + thread;
      const double* ties = m.ties + i * m.stride;
      Node node;
      if (i < m.nodes && m.labels[i] >= 0 && m.labels[i] < m.cut.clusters) {
        node = {m.labels[i], m.degrees[i], m.loops ? m.loops[i] : 0.0, ties[m.labels[i]]};
      }
      // The first node that gains by a move is moved; then those behind it are looked at again.
      for (int next = 0;;) {
        int64_t to = node.own;
        if (node.own >= 0 && thread >= next) to = best_move(ties, node, m.least, m.cut).to;
        const int mover = block_least(to != node.own ? thread : kMostThreads, of_warps);
        if (mover == kMostThreads) break;
        if (thread == mover) {
          move(node, to, ties[to], m.cut);
          m.labels[i] = to;
        }
        moved = true;
        next = mover + 1;
        __syncthreads();
      }
    }
  }
}

// --- A graph: one warp for each node.

struct Graph {
  Rows rows;
  Similarity similarity;
  int64_t clusters;
  int32_t* labels;
};

// Stands in the place of a label.
constexpr int32_t kNoEdge = -2, kLoop = -3;

// Calls f(similarity, label of the other end) for each edge of a node, in the row's order, in all threads of
// a warp; the lanes read neighbouring entries.
template <class I, class T, class F>
__device__ void for_each_edge(const Graph& g, int64_t node, const F& f) {
  const int lane = threadIdx.x % kWarp;
  const Entries entries = entries_of<I>(g.rows, node);
  for (int64_t begin = entries.begin; begin < entries.end; begin += kWarp) {
    const int64_t left = entries.end - begin;
    double a = 0.0;
    int32_t label = kNoEdge;
    if (lane < left) {
      const int64_t other = column_of<I>(g.rows, begin + lane);
      if (other >= 0) {
        a = similarity_of<double>(static_cast<const T*>(g.rows.matrix.values)[begin + lane], g.similarity);
        label = other == node ? kLoop : g.labels[other];
      }
    }
    for (int i = 0; i < kWarp && i < left; ++i) {
      const double of_edge = __shfl_sync(0xffffffffu, a, i);
      f(of_edge, __shfl_sync(0xffffffffu, label, i));
    }
  }
}

// The node's edges, and, unless ties is null, the weight of those to the clusters lane, lane + kWarp, and so
// on: each lane writes and reads only these. The node must be in a cluster.
__device__ Node node_of(const Graph& g, int64_t i, double* ties) {
  const int lane = threadIdx.x % kWarp;
  if (ties) {
    for (int64_t c = lane; c < g.clusters; c += kWarp) ties[c] = 0.0;
  }
  Node node;
  node.own = g.labels[i];
  with_types(g.rows.matrix, [&](auto index, auto value) {
    for_each_edge<decltype(index), decltype(value)>(g, i, [&](double a, int32_t label) {
      if (label == kNoEdge) return;
      node.degree += a;
      if (label == kLoop) node.loop += a;
      if (label == node.own) node.own_tie += a;
      if (ties && label >= 0 && label % kWarp == lane) ties[label] += a;
    });
  });
  return node;
}

// One thread for each node.
__global__ void __launch_bounds__(kNodeThreads)
    read_labels(const int64_t* labels, int64_t nodes, int64_t clusters, int32_t* out, int32_t* settled) {
  const int64_t i = int64_t(blockIdx.x) * kNodeThreads + threadIdx.x;
  if (i == 0 && settled) *settled = 0;
  if (i < nodes) out[i] = static_cast<int32_t>(0 <= labels[i] && labels[i] < clusters ? labels[i] : -1);
}

__global__ void __launch_bounds__(kNodeThreads)
    write_labels(const int32_t* found, const int64_t* labels, int64_t nodes, int64_t* out) {
  const int64_t i = int64_t(blockIdx.x) * kNodeThreads + threadIdx.x;
  if (i < nodes) out[i] = found[i] >= 0 ? found[i] : labels[i];
}

// What each node adds to its cluster.
__global__ void __launch_bounds__(kNodeThreads)
    cut_of_nodes(const __grid_constant__ Graph g, double* inside, double* volume) {
  const int64_t i = (int64_t(blockIdx.x) * kNodeThreads + threadIdx.x) / kWarp;
  if (i >= g.rows.matrix.rows || g.labels[i] < 0) return;
  const Node node = node_of(g, i, nullptr);
  if (threadIdx.x % kWarp > 0) return;
  inside[i] = node.own_tie + node.loop;
  volume[i] = node.degree;
}

// Blocks of threads for each chunk of the nodes, one thread for each cluster, which adds up its nodes in
// order. All threads read the same numbers.
__global__ void __launch_bounds__(kNodeThreads)
    cut_of_chunks(const __grid_constant__ Graph g, const double* inside, const double* volume, int64_t parts,
                  CutTerms of_chunks) {
  const int64_t chunk = blockIdx.x / parts, c = blockIdx.x % parts * blockDim.x + threadIdx.x;
  if (c >= g.clusters) return;
  const int64_t first = chunk * kChunk, left = g.rows.matrix.rows - first;
  const int count = static_cast<int>(left < kChunk ? left : kChunk);
  double sum_inside = 0.0, sum_volume = 0.0;
  int64_t size = 0;
#if defined(__CUDA_ARCH__)
#pragma unroll 8
#endif
  for (int i = 0; i < count; ++i) {
    const int32_t label = g.labels[first + i];
    // Read in any case: the loads need not wait for the label. Those of nodes in no cluster are not used.
    const double of_inside = inside[first + i], of_volume = volume[first + i];
    if (label == c) {
      sum_inside += of_inside;
      sum_volume += of_volume;
      ++size;
    }
  }
  const int64_t place = chunk * g.clusters + c;
  of_chunks.inside[place] = sum_inside;
  of_chunks.volume[place] = sum_volume;
  of_chunks.sizes[place] = size;
}

// One thread for each cluster.
__global__ void __launch_bounds__(kNodeThreads)
    add_chunks(const __grid_constant__ CutTerms of_chunks, int64_t chunks, CutTerms cut) {
  const int64_t c = int64_t(blockIdx.x) * kNodeThreads + threadIdx.x;
  if (c >= cut.clusters) return;
  double inside = 0.0, volume = 0.0;
  int64_t size = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    inside += of_chunks.inside[chunk * cut.clusters + c];
    volume += of_chunks.volume[chunk * cut.clusters + c];
    size += of_chunks.sizes[chunk * cut.clusters + c];
  }
  cut.inside[c] = inside;
  cut.volume[c] = volume;
  cut.sizes[c] = size;
}

struct GraphMoves {
  Graph graph;
  CutTerms cut;
  double least;
  double* ties;      // of all warps; null if these are in shared memory
  char* wants;       // whether a node gained by a move when the sweep began
  int32_t* settled;  // set once no node moves
};

// The ties of the warp's node.
__device__ double* ties_of_warp(const GraphMoves& m) {
  const int64_t warp = threadIdx.x / kWarp;
  if (!m.ties) return dynamic_shared<double>() + warp * m.cut.clusters;
  return m.ties + (int64_t(blockIdx.x) * (blockDim.x / kWarp) + warp) * m.cut.clusters;
}

// As best_move; all threads of a warp get the same result. The first of equally good clusters wins.
__device__ int64_t warp_best(const GraphMoves& m, const Node& node, const double* ties) {
  BestMove best = best_move(ties, node, m.least, m.cut, threadIdx.x % kWarp, kWarp);
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const double gain = __shfl_xor_sync(0xffffffffu, best.gain, distance);
    const int64_t to = __shfl_xor_sync(0xffffffffu, best.to, distance);
    // A lane that knows no better cluster has the gain that a move must exceed.
    if (gain > best.gain || (gain == best.gain && to < best.to)) best = {gain, to};
  }
  return best.to;
}

// At least four blocks to a multiprocessor: left to itself, the compiler spills on some architectures.
__global__ void __launch_bounds__(kNodeThreads, 4)
    find_nodes_that_gain(const __grid_constant__ GraphMoves m) {
  if (*m.settled) return;
  double* ties = ties_of_warp(m);
  const int64_t warps = blockDim.x / kWarp, first = blockIdx.x * warps + threadIdx.x / kWarp;
  for (int64_t i = first; i < m.graph.rows.matrix.rows; i += gridDim.x * warps) {
    bool gains = false;
    if (m.graph.labels[i] >= 0) {
      const Node node = node_of(m.graph, i, ties);
      gains = warp_best(m, node, ties) != node.own;
    }
    if (threadIdx.x % kWarp == 0) m.wants[i] = gains;
  }
}

// The list of the nodes, of the kListed nodes from `first` on, that gained by a move, in order. Returns how
// many they are.
constexpr int kListed = 4096;
__device__ int list_nodes(const GraphMoves& m, int64_t first, uint16_t* list, int* of_warps) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int each = kListed / blockDim.x, begin = threadIdx.x * each;
  const int64_t left = m.graph.rows.matrix.rows - first;
  int count = 0;
  for (int i = begin; i < begin + each && i < left; ++i) count += m.wants[first + i] != 0;
  int before = count;  // those of the lanes before this one, and its own
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, before, distance);
    if (lane >= distance) before += other;
  }
  if (lane == kWarp - 1) of_warps[warp] = before;
  __syncthreads();
  before -= count;
  int all = 0;
  for (int w = 0; w < warps; ++w) {
    if (w < warp) before += of_warps[w];
    all += of_warps[w];
  }
  for (int i = begin; i < begin + each && i < left; ++i) {
    if (m.wants[first + i]) list[before++] = static_cast<uint16_t>(i);
  }
  __syncthreads();
  return all;
}

// Whether a node has an edge to another one; all threads of a warp get the same result.
__device__ bool has_edge(const Graph& g, int64_t node, int64_t other) {
  bool found = false;
  with_types(g.rows.matrix, [&](auto index, auto) {
    using I = decltype(index);
    const Entries entries = entries_of<I>(g.rows, node);
    for (int64_t e = entries.begin + threadIdx.x % kWarp; e < entries.end; e += kWarp) {
      found |= column_of<I>(g.rows, e) == other;
    }
  });
  return __any_sync(0xffffffffu, found);
}

// Moves the nodes that gained by a move when the sweep began, one after the other, each if it still gains.
//
// One block, which may take as many registers as it likes. Each warp has one of the next nodes of the list,
// and keeps its ties until the node is done. The first node that gains is moved. Those behind it are judged
// again, with the new cut; their edges are added up again only if they have an edge to the node that moved.
__global__ void __launch_bounds__(kNodeThreads, 1)
    move_nodes_that_gain(const __grid_constant__ GraphMoves m) {
  if (*m.settled) return;
  __shared__ uint16_t list[kListed];
  __shared__ int least_of_warps[kNodeWarps];
  __shared__ int64_t just_moved;
  __shared__ int count_of_warps[kNodeWarps];
  double* ties = ties_of_warp(m);
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  bool any = false;
  for (int64_t first = 0; first < m.graph.rows.matrix.rows; first += kListed) {
    const int count = list_nodes(m, first, list, count_of_warps);
    Node node;
    int held = -1;       // the place in the list of the warp's node
    int64_t moved = -1;  // the node that moved last
    for (int done = 0; done < count;) {
      const int place = done + (warp - done % warps + warps) % warps;
      int64_t i = -1, to = -1;
      if (place < count) {
        i = first + list[place];
        if (place != held || (moved >= 0 && has_edge(m.graph, i, moved))) node = node_of(m.graph, i, ties);
        held = place;
        to = warp_best(m, node, ties);
      }
      const bool gains = place < count && to != node.own;
      const int mover = block_least(gains ? place : count, least_of_warps);
      if (mover == count) {  // no node of all warps gains
        done += warps;
        moved = -1;
        continue;
      }
      // The lane that has the tie to the new cluster.
      if (place == mover && threadIdx.x % kWarp == to % kWarp) {
        move(node, to, ties[to], m.cut);
        m.graph.labels[i] = static_cast<int32_t>(to);
        just_moved = i;
      }
      any = true;
      done = mover + 1;
      __syncthreads();
      moved = just_moved;
    }
  }
  if (threadIdx.x == 0) *m.settled = !any;
}

// How many warps, a power of two, have their ties in shared memory; 0 if not even one has.
int warps_near(int64_t clusters, int most) {
  for (int warps = most; warps > 0; warps /= 2) {
    if (clusters <= kNearBytes / int64_t(sizeof(double)) / warps) return warps;
  }
  return 0;
}

int64_t chunks_of(int64_t nodes) { return parts_of(nodes, kChunk); }

// A warp takes several nodes if there are many: a launch that finds nothing to do should be small.
constexpr int64_t kMostNodeBlocks = 4096, kFarNodeBlocks = 64;

// The cut of the labels in room.labels, which are in range.
void launch_cut(const Graph& g, const CutRoom& room, const CutTerms& cut, cudaStream_t stream) {
  const int64_t nodes = g.rows.matrix.rows, chunks = chunks_of(nodes);
  double *inside = room.numbers, *volume = room.numbers + nodes;
  CutTerms of_chunks;
  of_chunks.inside = room.numbers + 2 * nodes;
  of_chunks.volume = of_chunks.inside + chunks * g.clusters;
  of_chunks.sizes = room.sizes + g.clusters;
  of_chunks.clusters = g.clusters;
  if (nodes > 0) {
    launch(cut_of_nodes, parts_of(nodes, kNodeWarps), kNodeThreads, 0, stream, g, inside, volume);
    const int64_t threads = std::min<int64_t>(rounded_up(g.clusters, kWarp), kNodeThreads);
    const int64_t parts = parts_of(g.clusters, threads);
    launch(cut_of_chunks, chunks * parts, threads, 0, stream, g, inside, volume, parts, of_chunks);
  }
  launch(add_chunks, parts_of(g.clusters, kNodeThreads), kNodeThreads, 0, stream, of_chunks, chunks, cut);
}

void launch_read_labels(const int64_t* labels, int64_t nodes, int64_t clusters, int32_t* out,
                        int32_t* settled, cudaStream_t stream) {
  if (nodes == 0) return;
  launch(read_labels, parts_of(nodes, kNodeThreads), kNodeThreads, 0, stream, labels, nodes, clusters, out,
         settled);
}

// Whether the flag is set, once all work before is done.
bool read_flag(const int32_t* flag, cudaStream_t stream) {
  int32_t value = 0;
  cudaMemcpyAsync(&value, flag, sizeof value, cudaMemcpyDeviceToHost, stream);
  cudaStreamSynchronize(stream);
  return value != 0;
}

}  // namespace

const char* cuda_move_side(const SideMoves& moves, void* stream) {
  if (moves.nodes == 0) return outcome();
  const int64_t threads = std::min<int64_t>(rounded_up(moves.nodes, kWarp), kMostThreads);
  launch(move_nodes_of_side, 1, threads, 0, static_cast<cudaStream_t>(stream), moves);
  return outcome();
}

CutNumbers cut_numbers(int64_t nodes, int64_t clusters) {
  return {clusters * (1 + chunks_of(nodes)), 2 * (nodes + chunks_of(nodes) * clusters)};
}

const char* cuda_graph_cut(const Rows& graph, Similarity similarity, int64_t clusters, const int64_t* labels,
                           const CutRoom& room, double* inside, double* volume, void* given_stream) {
  const auto stream = static_cast<cudaStream_t>(given_stream);
  launch_read_labels(labels, graph.matrix.rows, clusters, room.labels, nullptr, stream);
  launch_cut({graph, similarity, clusters, room.labels}, room, {inside, volume, room.sizes, clusters},
             stream);
  return outcome();
}

int64_t ties_room(int64_t clusters) {
  return warps_near(clusters, 1) ? 0 : kFarNodeBlocks * kNodeWarps * clusters;
}

const char* cuda_move_graph(const Rows& graph, Similarity similarity, int64_t clusters, double least,
                            int64_t max_sweeps, const int64_t* labels, int64_t* moved, const MoveRoom& room,
                            void* given_stream) {
  const auto stream = static_cast<cudaStream_t>(given_stream);
  const int64_t nodes = graph.matrix.rows;
  if (nodes == 0) return outcome();
  const Graph g{graph, similarity, clusters, room.cut.labels};
  const CutTerms cut{room.inside, room.volume, room.cut.sizes, clusters};
  launch_read_labels(labels, nodes, clusters, room.cut.labels, room.settled, stream);
  launch_cut(g, room.cut, cut, stream);

  const bool near = warps_near(clusters, 1) > 0;
  const GraphMoves m{g, cut, least, near ? nullptr : room.ties, room.wants, room.settled};
  const int64_t warps = near ? warps_near(clusters, kNodeWarps) : kNodeWarps;
  const int64_t blocks = std::min(parts_of(nodes, warps), near ? kMostNodeBlocks : kFarNodeBlocks);
  const size_t bytes = near ? warps * clusters * sizeof(double) : 0;
  for (int64_t sweep = 0; sweep < max_sweeps; ++sweep) {
    // Sweeps after the last one that moved a node do nothing, and take less time than to wait for it.
    if (sweep > 0 && sweep % kSweepsAtOnce == 0 && read_flag(room.settled, stream)) break;
    launch(find_nodes_that_gain, blocks, warps * kWarp, bytes, stream, m);
    launch(move_nodes_that_gain, 1, warps * kWarp, bytes, stream, m);
    if (const char* error = outcome()) return error;
  }
  launch(write_labels, parts_of(nodes, kNodeThreads), kNodeThreads, 0, stream, room.cut.labels, labels, nodes,
         moved);
  return outcome();
}

}  // namespace modfast
