// The part of the spectral family's bindings that is the same on every device: conversion of arguments for
// the kernels. Each binding checks the device of the tensors.
#pragma once

#include "common/binding.h"
#include "spectral/spectral.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

namespace modfast {

inline Similarity similarity_of(int64_t affinity, double scale) {
  REQUIRE(0 <= affinity && affinity <= 2, "affinity must be 0 (abs), 1 (square) or 2 (given), got ",
          affinity);
  REQUIRE(std::isfinite(scale), "scale must be finite, got ", scale);
  return {static_cast<Affinity>(affinity), scale};
}

inline DenseMatrix dense_of(const Tensor& weight) {
  check_dense(weight, "weight");
  DenseMatrix matrix;
  matrix.dtype = dtype_of(weight, "weight");
  REQUIRE(weight.dim() == 2, "weight must have two dimensions, got shape ", shape_of(weight));
  REQUIRE(weight.size(1) <= 1 || weight.stride(1) == 1, "weight's rows must be contiguous");
  matrix.data = weight.const_data_ptr();
  matrix.rows = weight.size(0);
  matrix.cols = weight.size(1);
  matrix.row_stride = weight.stride(0);
  return matrix;
}

// Does not check the values of starts and indices. checked: check_shaped, and a check of the device.
template <class Checked>
SparseMatrix sparse_of(const Tensor& starts, const Tensor& indices, const Tensor& values, int64_t cols,
                       const Checked& checked) {
  const ScalarType index = indices.scalar_type();
  REQUIRE(index == ScalarType::Long || index == ScalarType::Int, "indices must be int32 or int64");
  checked(starts, index, {-1}, "starts");
  checked(indices, index, {-1}, "indices");
  const ScalarType value = values.scalar_type();
  REQUIRE(value == ScalarType::Float || value == ScalarType::Double, "values must be float32 or float64");
  checked(values, value, {indices.size(0)}, "values");
  REQUIRE(starts.size(0) >= 1, "starts must hold at least one number");
  REQUIRE(cols >= 0, "cols must not be negative, got ", cols);
  SparseMatrix matrix;
  matrix.wide = index == ScalarType::Long;
  matrix.starts = starts.const_data_ptr();
  matrix.indices = indices.const_data_ptr();
  matrix.values = values.const_data_ptr();
  matrix.dtype = dtype_of(values, "values");
  matrix.rows = starts.size(0) - 1;
  matrix.cols = cols;
  return matrix;
}

// The transpose has the rows as indices.
inline void check_rows_of_index(const SparseMatrix& matrix) {
  REQUIRE(matrix.wide || matrix.rows <= INT32_MAX, "indices must be int64 for ", matrix.rows, " rows");
}

template <class Checked>
const double* probe_of(const std::optional<Tensor>& probe, int64_t size, const char* name,
                       const Checked& checked) {
  return probe ? const_data_of<double>(checked(*probe, ScalarType::Double, {size}, name)) : nullptr;
}

template <class Checked>
KMeans k_means_of(const Tensor& points, const Tensor& weights, int64_t num_clusters, int64_t n_init,
                  int64_t seed, int64_t max_iter, double same_place, const Checked& checked) {
  checked(points, ScalarType::Float, {-1, -1}, "points");
  REQUIRE(points.size(0) >= 1, "points must hold at least one");
  checked(weights, ScalarType::Float, {points.size(0)}, "weights");
  REQUIRE(num_clusters >= 1 && n_init >= 1 && max_iter >= 1,
          "num_clusters, n_init and max_iter must be positive, got ", num_clusters, ", ", n_init, ", ",
          max_iter);
  REQUIRE(same_place >= 0, "same_place must not be negative, got ", std::to_string(same_place));
  KMeans problem;
  problem.points = points.size(0);
  problem.dims = points.size(1);
  problem.clusters = std::min(num_clusters, problem.points);
  problem.starts = n_init;
  problem.max_iterations = max_iter;
  problem.seed = static_cast<uint64_t>(seed);
  problem.same_place = same_place;
  return problem;
}

// Calls f(float{}) for a float32 tensor, f(double{}) for a float64 one.
template <class F>
auto with_compute(const Tensor& block, const char* name, const F& f) {
  if (block.scalar_type() == ScalarType::Float) return f(float{});
  REQUIRE(block.scalar_type() == ScalarType::Double, name, " must be float32 or float64");
  return f(double{});
}

inline int64_t width_of(const Tensor& block, const char* name) {
  REQUIRE(block.dim() == 2 && block.size(1) % kLanes == 0 && block.size(1) > 0, name,
          " must have a width that is a multiple of ", kLanes, ", got shape ", shape_of(block));
  return block.size(1);
}

template <class C, class Checked>
Basis<C> basis_of(const std::vector<Tensor>& blocks, ScalarType type, int64_t length,
                  const Checked& checked) {
  REQUIRE(!blocks.empty(), "basis must hold at least one block");
  Basis<C> basis;
  basis.length = length;
  for (const Tensor& block : blocks) {
    basis.widths.push_back(width_of(block, "basis"));
    basis.blocks.push_back(mutable_data_of<C>(checked(block, type, {length, -1}, "basis")));
  }
  return basis;
}

template <class C>
void check_covers(const Basis<C>& basis, int64_t width) {
  int64_t covered = 0;
  for (size_t b = 0; b < basis.widths.size() && covered < width; ++b) covered += basis.widths[b];
  REQUIRE(covered == width, "factors must be as wide as some of the first blocks together, got ", width);
}

// Replaces null, which stands for no tensor, by another pointer: an empty tensor's data may be null.
template <class C>
C* there(C* data) {
  static std::remove_const_t<C> nothing;
  return data ? data : &nothing;
}

// Allocates the results of a product with a matrix (rows, cols), and calls run(blocks) to compute them.
template <class Checked, class Run>
std::tuple<Tensor, Tensor> product_of(int64_t rows, int64_t cols, const std::optional<Tensor>& right,
                                      const std::optional<Tensor>& left,
                                      const std::optional<Tensor>& row_weights, const Checked& checked,
                                      const Run& run) {
  REQUIRE(right || left, "right or left must be given");
  REQUIRE(!(row_weights && (left || !right)), "row_weights go with right, without left");
  const Tensor& given = right ? *right : *left;
  const ScalarType type = given.scalar_type();
  return with_compute(given, "the block", [&](auto compute) -> std::tuple<Tensor, Tensor> {
    using C = decltype(compute);
    Blocks<C> blocks;
    blocks.width = width_of(given, "the block");
    if (right) blocks.right = there(const_data_of<C>(checked(*right, type, {cols, blocks.width}, "right")));
    if (left) blocks.left = there(const_data_of<C>(checked(*left, type, {rows, blocks.width}, "left")));
    if (row_weights) {
      blocks.row_weights = there(const_data_of<C>(checked(*row_weights, type, {rows}, "row_weights")));
    }
    const bool back = left || row_weights;
    Tensor forward = torch::stable::new_empty(given, {right ? rows : 0, blocks.width});
    Tensor backward = torch::stable::new_empty(given, {back ? cols : 0, blocks.width});
    if (right) blocks.forward = there(mutable_data_of<C>(forward));
    if (back) blocks.backward = there(mutable_data_of<C>(backward));
    run(blocks);
    return {forward, backward};
  });
}

}  // namespace modfast
