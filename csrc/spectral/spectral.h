// Spectral clustering of matrices of similarities: the products of an eigensolver in one pass over the
// matrix, the sums over its basis, k-means, and moves that lower the normalised cut.
//
// A similarity is a function of a weight (Affinity), computed when the weight is read. A block of vectors is
// row-major, (nodes, width), and its width is a multiple of kLanes. Every function gives the same bits for
// any number of threads: the sums and their order depend on the sizes alone.
//
// Nothing here depends on PyTorch: pointers, sizes, and a function that runs a loop in parallel.
#pragma once

#include "common/half.h"
#include "common/numbers.h"

#include <cstdint>
#include <type_traits>
#include <vector>

namespace modfast {

constexpr int64_t kLanes = 8;

enum class Affinity { abs, square, given };

// The similarity of a weight w: |scale w|, (scale w)^2 or scale w.
struct Similarity {
  Affinity affinity = Affinity::abs;
  double scale = 1.0;
};

// From double to float, scales before the conversion, since the number may be too large for a float.
template <class C, class T>
MODFAST_HD inline C similarity_of(T weight, Similarity similarity) {
  using Wide = std::conditional_t<std::is_same_v<T, double>, double, C>;
  const C w = static_cast<C>(static_cast<Wide>(widen(weight)) * static_cast<Wide>(similarity.scale));
  if (similarity.affinity == Affinity::square) return w * w;
  return similarity.affinity == Affinity::abs && w < 0 ? -w : w;
}

struct DenseMatrix {
  const void* data = nullptr;  // contiguous rows, row_stride numbers apart
  DType dtype = DType::float32;
  int64_t rows = 0, cols = 0, row_stride = 0;
};

// Compressed sparse rows: entry e of row i, starts[i] <= e < starts[i + 1], is values[e] in column
// indices[e]. The caller has checked the starts. Indices are checked when they are used: one outside of
// [0, cols) throws std::out_of_range.
struct SparseMatrix {
  const void* starts = nullptr;
  const void* indices = nullptr;
  bool wide = true;  // indices are int64, else int32
  const void* values = nullptr;
  DType dtype = DType::float32;
  int64_t rows = 0, cols = 0;
};

// The sums of A's rows and columns, in float64; either may be null. With probes (one for each column and
// row): A right, left A.
void similarity_sums(const DenseMatrix& matrix, Similarity similarity, const double* right,
                     const double* left, double* row_sums, double* col_sums, ParallelFor parallel_for);
void similarity_sums(const SparseMatrix& matrix, Similarity similarity, const double* right,
                     const double* left, double* row_sums, double* col_sums, ParallelFor parallel_for);

// The transpose of A, with the entries of each of its rows in the order of A's rows. The results are of the
// types of A's arrays: starts, with one number more than A has columns, indices and values.
void sparse_transpose(const SparseMatrix& matrix, void* starts, void* indices, void* values);

// forward = A right and, if backward is not null, in the same pass,
//   backward = A^T left, or, without left, A^T (row_weights * forward).
template <class C>
struct Blocks {
  int64_t width = 0;
  const C* right = nullptr;  // (cols, width), or null: no forward product
  const C* left = nullptr;   // (rows, width)
  const C* row_weights = nullptr;
  C* forward = nullptr;   // (rows, width)
  C* backward = nullptr;  // (cols, width), or null: no backward product
};
template <class C>
void similarity_product(const DenseMatrix& matrix, Similarity similarity, const Blocks<C>& blocks,
                        ParallelFor parallel_for);
template <class C>
void similarity_product(const SparseMatrix& matrix, Similarity similarity, const Blocks<C>& blocks,
                        ParallelFor parallel_for);
// out = row_weights * (A right), for a graph.
template <class C>
void graph_product(const SparseMatrix& graph, Similarity similarity, const C* right, const C* row_weights,
                   int64_t width, C* out, ParallelFor parallel_for);

// A basis of vectors: several blocks of one length, side by side.
template <class C>
struct Basis {
  std::vector<C*> blocks;
  std::vector<int64_t> widths;
  int64_t length = 0;
  int64_t width() const {
    int64_t sum = 0;
    for (int64_t each : widths) sum += each;
    return sum;
  }
};

// products (basis.width(), width) = basis^T (weights * block); weights null means ones.
template <class C>
void basis_inner(const Basis<C>& basis, const C* block, const C* weights, int64_t width, double* products,
                 ParallelFor parallel_for);
// Overwrites the first `width` vectors of the basis by the product of basis and factors, (basis.width(),
// width). These vectors must be whole blocks.
template <class C>
void basis_rotate(const Basis<C>& basis, const double* factors, int64_t width, ParallelFor parallel_for);

// k-means with weighted points: the best of several k-means++ starts (on a sample if there are many points),
// then Lloyd's iterations on all points. Points count as equal if their distance is at most same_place times
// their distance from the origin.
struct KMeans {
  int64_t points = 0, dims = 0, clusters = 0, starts = 0, max_iterations = 0;
  uint64_t seed = 0;
  double same_place = 0;
};
struct Tightness {
  double cost = 0;  // the weighted sum of squared distances from the clusters' means
  int64_t iterations = 0;
};
Tightness k_means(const KMeans& problem, const float* points, const float* weights, int64_t* labels,
                  ParallelFor parallel_for);

// The terms of the normalised cut of a graph's clusters; nodes with label -1 are in none. The caller has
// checked the indices of the graph.
struct Cut {
  std::vector<double> inside, volume;  // of each cluster
  std::vector<int64_t> sizes;
};

// Moves nodes without edges to each other (but perhaps to themselves: loops, or null), one after the other,
// to the cluster that lowers the normalised cut most, if by more than least; sweep after sweep until none
// moves. ties (nodes, clusters): the weight of the edges from each node to the other nodes of each cluster.
// Returns the number of moves.
int64_t move_side(int64_t nodes, const double* ties, int64_t ties_stride, const double* degrees,
                  const double* loops, double least, int64_t max_sweeps, int64_t* labels, Cut* cut);
// The same for the nodes of a symmetric graph.
int64_t move_graph(const SparseMatrix& graph, Similarity similarity, int64_t clusters, double least,
                   int64_t max_sweeps, int64_t* labels, ParallelFor parallel_for);
Cut graph_cut(const SparseMatrix& graph, Similarity similarity, int64_t clusters, const int64_t* labels,
              ParallelFor parallel_for);

// grad[i, j] = sign(w) (row_terms[i] + col_terms[j] - 2 sum over e of row_vectors[i, e] col_vectors[j, e]), 0
// where w is 0: the derivative of eigenvalues by a weight. vectors (nodes, width).
void edge_gradient(const DenseMatrix& weight, const double* row_terms, const double* col_terms,
                   const double* row_vectors, const double* col_vectors, int64_t width, void* grad,
                   ParallelFor parallel_for);

}  // namespace modfast
