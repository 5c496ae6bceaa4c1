// How products are cut up for the spectral family's CUDA kernels. The host decides it from the sizes alone.
#pragma once

#include "spectral/products_threads.h"

#include <algorithm>
#include <type_traits>

namespace modfast {

// How many numbers the pieces of a product or of the sums need memory for, before they are added up.
struct PieceRoom {
  int64_t forward, backward;
};

// Splits a width into parts of N = 32, 16 or 8 vectors: calls f(N, first vector, number of parts).
template <class F>
void for_parts(int64_t width, const F& f) {
  const int64_t wide = width / 32, rest = wide * 32;
  if (wide > 0) f(std::integral_constant<int, 32>{}, int64_t{0}, wide);
  if (width & 16) f(std::integral_constant<int, 16>{}, rest, int64_t{1});
  if (width & 8) f(std::integral_constant<int, 8>{}, rest + (width & 16), int64_t{1});
}

// Half of a large GPU's second-level cache.
constexpr int64_t kStripeBytes = 24 << 20;

template <class C>
struct ProductPlan {
  DenseMatrix matrix;
  Similarity similarity;
  Blocks<C> blocks;
  int64_t span, strip;  // the lengths of the pieces of columns and of rows
  int64_t stripe;  // the number of rows that are multiplied forward and then backward before the next ones

  // A stripe is a multiple of the strip, so that the sums and their order do not depend on it.
  ProductPlan(const DenseMatrix& matrix, Similarity similarity, const Blocks<C>& blocks,
              int64_t stripe_bytes = kStripeBytes)
      : matrix(matrix),
        similarity(similarity),
        blocks(blocks),
        span(piece_length(matrix.cols, blocks.width)),
        strip(piece_length(matrix.rows, blocks.width)),
        stripe(std::max<int64_t>(matrix.rows, 1)) {
    if (!blocks.right || !blocks.backward) return;
    const int64_t number = matrix.dtype == DType::float64 ? 8 : matrix.dtype == DType::float32 ? 4 : 2;
    const int64_t fit = stripe_bytes / (std::max<int64_t>(matrix.cols, 1) * number);
    stripe = std::max<int64_t>(1, fit / strip) * strip;
  }

  PieceRoom room() const {
    const int64_t rows = std::min(matrix.rows, stripe);
    return {blocks.right ? parts_of(matrix.cols, span) * rows * blocks.width : 0,
            blocks.backward ? parts_of(matrix.rows, strip) * matrix.cols * blocks.width : 0};
  }

  // Calls multiply(product) and add_up(pieces, number of pieces, numbers in each, out), in this order.
  template <class Multiply, class AddUp>
  void run(C* forward_pieces, C* backward_pieces, const Multiply& multiply, const AddUp& add_up) const {
    const int64_t width = blocks.width;
    for (int64_t begin = 0; begin < matrix.rows; begin += stripe) {
      const int64_t rows = std::min(stripe, matrix.rows - begin);
      Product<C> p;
      p.matrix = matrix;
      p.similarity = similarity;
      p.width = width;
      if (blocks.right) {
        p.vectors = blocks.right;
        p.lines = rows;
        p.first_line = begin;
        p.inner = matrix.cols;
        p.piece = span;
        p.out = forward_pieces;
        multiply(p);
        add_up(forward_pieces, parts_of(matrix.cols, span), rows * width, blocks.forward + begin * width);
      }
      if (blocks.backward) {
        p.back = true;
        p.vectors = blocks.left ? blocks.left : blocks.forward;
        p.scales = blocks.row_weights;
        p.lines = matrix.cols;
        p.first_line = 0;
        p.first_inner = begin;
        p.inner = rows;
        p.piece = strip;
        p.out = backward_pieces + begin / strip * matrix.cols * width;
        multiply(p);
      }
    }
    if (blocks.backward) {
      add_up(backward_pieces, parts_of(matrix.rows, strip), matrix.cols * width, blocks.backward);
    }
  }
};

inline PieceRoom sums_room(const DenseMatrix& matrix) {
  return {parts_of(matrix.cols, kColsOfSums) * matrix.rows,
          parts_of(matrix.rows, piece_length(matrix.rows, 1)) * matrix.cols};
}

}  // namespace modfast
