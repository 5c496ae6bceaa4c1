// The interface of the CUDA kernels for the nodes of a graph, which move between clusters, and for the
// solver's basis of vectors; see cuda.h. The results are those of the CPU (spectral.h): what moves and the
// cut bit for bit, sums over a basis up to rounding.
#pragma once

#include "spectral/moves.h"
#include "spectral/products_threads.h"

namespace modfast {

// --- A basis of vectors

// One launch takes the whole basis, as a parameter of the kernel.
constexpr int kMostBlocks = 64;

template <class C>
struct BasisBlocks {
  C* blocks[kMostBlocks];
  int64_t ends[kMostBlocks];  // the number of vectors of a block and of those before it
  int count = 0;
  int64_t length = 0;
  MODFAST_HD int64_t width() const { return count == 0 ? 0 : ends[count - 1]; }
};

// How many float64 numbers the pieces of the sums need memory for, before they are added up.
int64_t inner_room(int64_t length, int64_t basis_width, int64_t width);
// products (basis width, width) = basis^T (weights * block); weights null means ones.
template <class C>
const char* cuda_basis_inner(const BasisBlocks<C>& basis, const C* block, const C* weights, int64_t width,
                             double* pieces, double* products, void* stream);

// How many numbers of the basis' type are held while the first vectors are overwritten.
int64_t rotation_room(int64_t length, int64_t width);
// Overwrites the first `width` vectors of the basis by basis factors, factors (basis width, width).
template <class C>
const char* cuda_basis_rotate(const BasisBlocks<C>& basis, const double* factors, int64_t width, C* room,
                              void* stream);

// --- Moves. A label that is out of range counts as -1, and stays as it is.

struct SideMoves {
  int64_t nodes = 0;
  const double* ties = nullptr;  // (nodes, stride)
  int64_t stride = 0;
  const double *degrees = nullptr, *loops = nullptr;  // loops may be null
  double least = 0;
  int64_t max_sweeps = 0;
  int64_t* labels = nullptr;  // is overwritten, as are the terms
  CutTerms cut;
};
const char* cuda_move_side(const SideMoves& moves, void* stream);

// The scratch memory for the cut of a graph's clusters.
struct CutRoom {
  int64_t* sizes = nullptr;   // for each cluster, in all and in each chunk of the nodes
  double* numbers = nullptr;  // two for each node, and two for each cluster in each chunk
  int32_t* labels = nullptr;  // for each node
};
struct CutNumbers {
  int64_t sizes, numbers;  // how many
};
CutNumbers cut_numbers(int64_t nodes, int64_t clusters);
// Computes inside and volume (clusters).
const char* cuda_graph_cut(const Rows& graph, Similarity similarity, int64_t clusters, const int64_t* labels,
                           const CutRoom& room, double* inside, double* volume, void* stream);

// More scratch memory, for moves.
struct MoveRoom {
  CutRoom cut;
  double *inside = nullptr, *volume = nullptr;  // for each cluster
  double* ties = nullptr;                       // ties_room numbers
  char* wants = nullptr;                        // for each node
  int32_t* settled = nullptr;                   // one number
};
// 0 if the ties of as many nodes as are handled at once fit into shared memory.
int64_t ties_room(int64_t clusters);
// Waits for the device, for one number, before each kSweepsAtOnce sweeps but the first ones.
constexpr int64_t kSweepsAtOnce = 32;
const char* cuda_move_graph(const Rows& graph, Similarity similarity, int64_t clusters, double least,
                            int64_t max_sweeps, const int64_t* labels, int64_t* moved, const MoveRoom& room,
                            void* stream);

}  // namespace modfast
