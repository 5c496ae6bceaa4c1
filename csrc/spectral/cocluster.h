// The steps of co-clustering the rows and columns of a dense matrix, each whole: singular vectors, and moves
// of rows and columns between clusters. modfast/spectral has the same steps for all other matrices.
#pragma once

#include "spectral/spectral.h"

namespace modfast {

// The largest singular values of N = D_row^-1/2 A D_col^-1/2, with the degrees D, the sums of A's rows and
// columns.
struct SingularProblem {
  DenseMatrix matrix;
  Similarity similarity;
  const double *row_degrees = nullptr, *col_degrees = nullptr;
  const float* random = nullptr;  // (cols, width) numbers from 0 to 1, for the starting vectors
  int64_t count = 0, width = 0;   // the wanted ones, and the width of a block that holds so many
  int64_t capacity = 0;           // of the basis, in vectors
  int64_t max_passes = 0;         // in each precision
  double tol = 0;                 // the allowed |N^T u - s v| / s
  uint64_t seed = 0;
};
struct SingularOutcome {
  int64_t passes = 0;
  bool converged = false;
  bool in_double = false;  // whether float32 was not accurate enough
};

// vectors (rows + cols, count): D_row^-1/2 times the left ones, then D_col^-1/2 times the right ones; values
// and residuals (count,). Throws std::invalid_argument if the solver meets numbers that are not finite.
SingularOutcome singular_vectors(const SingularProblem& problem, double* vectors, double* values,
                                 double* residuals, ParallelFor parallel_for);

// Moves rows, then columns, in turn to the clusters that lower the normalised cut, until none moves; labels
// are those of the rows, then of the columns. C: the type of the sums of similarities.
template <class C>
void move_sides(const DenseMatrix& matrix, Similarity similarity, const double* row_degrees,
                const double* col_degrees, int64_t clusters, double least, int64_t max_sweeps,
                int64_t* labels, ParallelFor parallel_for);

// Renumbers clusters in the order of their first node; -1 stays.
void number_as_met(int64_t nodes, int64_t clusters, int64_t* labels);

}  // namespace modfast
