// Spectral clustering of matrices of similarities: the products of an eigensolver in one pass over the
// matrix, the sums over its basis, k-means, and moves that lower the normalised cut.
//
// A similarity is a function of a weight (Affinity), computed as the weight is read. A block of vectors is
// row-major, (nodes, width), and its width a multiple of kLanes. Every function gives the same bits for any
// number of threads: what is summed, and in which order, depends on sizes alone.
//
// Nothing here knows PyTorch: pointers, sizes, and a function that runs a loop in parallel.
#pragma once

#include "common/half.h"
#include "common/numbers.h"

#include <cstdint>
#include <type_traits>
#include <vector>

namespace modfast {

constexpr int64_t kLanes = 8;

enum class Affinity { abs, square, given };

// What a weight w stands for: |scale w|, (scale w)^2 or scale w.
struct Similarity {
  Affinity affinity = Affinity::abs;
  double scale = 1.0;
};

// From double to float the scale comes first, lest the number be too large for a float.
template <class C, class T>
MODFAST_HD inline C similarity_of(T weight, Similarity similarity) {
  using Wide = std::conditional_t<std::is_same_v<T, double>, double, C>;
  const C w = static_cast<C>(static_cast<Wide>(widen(weight)) * static_cast<Wide>(similarity.scale));
  if (similarity.affinity == Affinity::square) return w * w;
  return similarity.affinity == Affinity::abs && w < 0 ? -w : w;
}

struct DenseMatrix {
  const void* data = nullptr;  // rows lie row_stride numbers apart, each contiguous
  DType dtype = DType::float32;
  int64_t rows = 0, cols = 0, row_stride = 0;
};

// Compressed sparse rows: entry e of row i, starts[i] <= e < starts[i + 1], is values[e] in column
// indices[e]. The caller has checked the starts. Indices are checked as they are used: what meets one outside
// of [0, cols) throws std::out_of_range.
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

// forward = A right, and where backward is asked for, in the same pass,
//   backward = A^T left, or, without left, A^T (row_weights * forward).
template <class C>
struct Blocks {
  int64_t width = 0;
  const C* right = nullptr;  // (cols, width), or null: there is no forward
  const C* left = nullptr;   // (rows, width)
  const C* row_weights = nullptr;
  C* forward = nullptr;   // (rows, width)
  C* backward = nullptr;  // (cols, width), or null
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

// Several blocks of vectors, side by side, of one length.
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

// products (basis.width(), width) = basis^T (weights * block); no weights stand for ones.
template <class C>
void basis_inner(const Basis<C>& basis, const C* block, const C* weights, int64_t width, double* products,
                 ParallelFor parallel_for);
// The first width vectors of the basis become basis factors, with factors (basis.width(), width); width is
// that of some of its first blocks.
template <class C>
void basis_rotate(const Basis<C>& basis, const double* factors, int64_t width, ParallelFor parallel_for);

// k-means: the tightest of several k-means++ starts (on a sample where there are many points), then Lloyd's
// iterations on all points. Each point counts as much as its weight says. Points are one place if their
// distance is no more than same_place times their distance from the origin.
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

// The clusters of a graph, as its normalised cut sees them; nodes of label -1 are in none. For a graph, all
// indices have been checked.
struct Cut {
  std::vector<double> inside, volume;  // of each cluster
  std::vector<int64_t> sizes;
};

// Moves nodes that are not tied to each other (but may be to themselves: loops, or null), one after the
// other, to where each lowers the normalised cut most, if by more than least, sweep after sweep until none
// does. ties (nodes, clusters): of each node to each cluster. Returns how many moved.
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
