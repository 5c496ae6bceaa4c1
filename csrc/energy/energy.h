// Energies and scalings of labelled matrices: the operations behind the enmeshment loss.
//
// Every row and every column of a matrix has a label in [0, labels). Let B[a, b] be the sum of
// W[i, j] * V[i, j] over rows i of label a and columns j of label b (block energy if V is W). Clusterability,
// enmeshment and their derivatives are functions of B, and the derivative of any function of B is W scaled
// block by block (arXiv 2409.15747; see modfast/reference). The loss needs only two sums of B, inside
// clusters and across them, however many clusters there are.
//
// Nothing here depends on PyTorch: pointers, sizes, strides, and a function that runs a loop in parallel.
#pragma once

#include "common/enmeshment.h"
#include "common/operand.h"

#include <cstdint>
#include <vector>

namespace modfast {

struct Labels {
  std::vector<int32_t> rows;
  std::vector<int32_t> cols;
  int32_t count = 0;  // every label is in [0, count); the last one means "in no cluster"
};

// blocks (count x count, row-major) = B[a, b] = sum of w * v over the block (a, b); without v, of w * w. The
// operands have one dtype. Products and sums are float64; for narrower dtypes only the sums round.
void block_inner(const Labels& labels, const Operand& w, const Operand* v, double* blocks,
                 ParallelFor parallel_for);

// out[i, j] = w[i, j] * factors[label of i, label of j]; factors is count x count, row-major.
void block_scale(const Labels& labels, const Operand& w, const double* factors, const Operand& out,
                 ParallelFor parallel_for);

// One matrix of a model, and its gradient if one is needed; both have one dtype.
struct Term {
  Labels labels;
  Operand weight;
  Operand grad;
};

// energies[t] = the sums of squares of term t inside clusters and across them.
void split_energies(const std::vector<Term>& terms, Split* energies, ParallelFor parallel_for);

enum class Into { fresh, sum, streamed };  // streamed: like fresh, but larger than the cache

// grad = weight times the factor of its kind, or grad += that, for all terms.
void split_scale(const std::vector<Term>& terms, const Split* factors, Into into, ParallelFor parallel_for);

// losses[t] = enmeshment of term t, and grad += slope * d(enmeshment)/d(weight), for all terms at once.
void accumulate_enmeshment(const std::vector<Term>& terms, double slope, double* losses,
                           ParallelFor parallel_for);

}  // namespace modfast
