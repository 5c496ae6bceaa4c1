// A block Krylov solver with thick restarts, for the largest eigenvalues of a symmetric matrix of which only
// products with blocks of vectors are known. modfast/spectral/krylov.py has the same method, with its
// sources, for matrices that are not on the CPU or whose blocks are wide.
#pragma once

#include "spectral/spectral.h"

#include <functional>
#include <vector>

namespace modfast {

// The matrix M has a norm of about one, and is symmetric in the inner product <x, y> = sum of weights x y.
template <class C>
struct Krylov {
  int64_t length = 0;  // of the vectors
  // The vectors have this many numbers more, which are linear in the others: whatever is done to the vectors
  // is done to these, too.
  int64_t carried = 0;
  int64_t width = 0;     // of a block: a multiple of kLanes
  int64_t count = 0;     // how many eigenvectors are wanted, at most width
  int64_t capacity = 0;  // how many vectors the basis may hold, from 3 width to length - width
  int64_t max_products = 0;
  uint64_t seed = 0;           // of random directions, in place of those that the basis contains already
  const C* weights = nullptr;  // (length,), not negative; where they are 0, M x has to be 0
  // Writes M x to the second block, and what it carries to the first.
  std::function<void(C* block, C* product)> product;
  std::function<double(double value)> tolerance;      // the allowed residual of an eigenvalue
  std::function<bool(double least_wanted)> hopeless;  // true stops the solver before it converges
};

struct Eigen {
  std::vector<double> values, residuals;  // of the wanted ones, the largest first
  int64_t products = 0;
  bool converged = false;
};

// vectors (length + carried, width): starting vectors (what they carry is not read), which become the
// eigenvectors, orthonormal in the inner product. Throws std::invalid_argument if numbers are not finite.
template <class C>
Eigen largest_eigenvectors(const Krylov<C>& problem, std::vector<C>* vectors, ParallelFor parallel_for);

}  // namespace modfast
