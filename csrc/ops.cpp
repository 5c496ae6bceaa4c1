// The operators: schemas, argument checks, registration. The only door between PyTorch and the kernels,
// and only through LibTorch's stable ABI, so that one binary serves every PyTorch from 2.11 on.
//
// The Python layer names bad arguments in the caller's words; the checks here keep a direct caller of
// torch.ops.modfast from reading or writing where it must not.
#include "energy.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace {

using modfast::DType;
using modfast::Labels;
using modfast::Operand;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message << "modfast: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// A macro, so that the parts of the message are made only when they are needed.
#define REQUIRE(condition, ...)          \
  do {                                   \
    if (!(condition)) fail(__VA_ARGS__); \
  } while (false)

std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t d = 0; d < tensor.dim(); ++d) text << (d ? ", " : "") << tensor.size(d);
  text << ")";
  return text.str();
}

bool same_shape(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes(), others = b.sizes();
  return std::equal(sizes.begin(), sizes.end(), others.begin(), others.end());
}

DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::Double: return DType::float64;
    case ScalarType::Half: return DType::float16;
    case ScalarType::BFloat16: return DType::bfloat16;
    default: break;
  }
  fail(name, " must be float32, float64, float16 or bfloat16, got ",
       torch::headeronly::toString(tensor.scalar_type()));
}

void check_strided_cpu(const Tensor& tensor, const char* name) {
  REQUIRE(tensor.is_cpu(), name, " must be on the CPU");
  REQUIRE(tensor.layout() == torch::headeronly::Layout::Strided, name, " must be a dense (strided) tensor");
}

// Labels in [-1, num_clusters), with -1 ("in no cluster") renamed to the extra label num_clusters.
std::vector<int32_t> read_labels(const Tensor& labels, int64_t expected, int64_t num_clusters,
                                 const char* name) {
  check_strided_cpu(labels, name);
  REQUIRE(labels.scalar_type() == ScalarType::Long && labels.dim() == 1, name, " must be a 1-D int64 tensor");
  REQUIRE(labels.size(0) == expected, name, " has ", labels.size(0), " labels, the weight needs ", expected);
  std::vector<int32_t> result(expected);
  const auto* data = static_cast<const int64_t*>(labels.const_data_ptr());
  const int64_t stride = expected > 0 ? labels.stride(0) : 1;
  for (int64_t i = 0; i < expected; ++i) {
    const int64_t label = data[i * stride];
    REQUIRE(-1 <= label && label < num_clusters, name, "[", i, "] is ", label, ", allowed is -1 to ",
            num_clusters - 1);
    result[i] = static_cast<int32_t>(label < 0 ? num_clusters : label);
  }
  return result;
}

// A set of tensors of one shape (out, in, *kernel) as labelled matrices. Kernel positions are merged with
// the columns where the memory of every tensor allows it, in either order; else they become planes.
// The matrix is turned so that its lines run along the first tensor's memory.
struct Problem {
  Labels labels;
  std::vector<Operand> operands;
  bool transposed = false;
};

// The stride between successive elements of the dimensions [first, last) in row-major order, if there is one.
bool merged_stride(const Tensor& tensor, int64_t first, int64_t last, int64_t* stride, int64_t* count) {
  *stride = 1;
  *count = 1;
  for (int64_t d = last - 1; d >= first; --d) {
    if (tensor.size(d) == 1) continue;
    if (*count == 1) *stride = tensor.stride(d);
    if (tensor.stride(d) != *stride * *count) return false;
    *count *= tensor.size(d);
  }
  return true;
}

Problem make_problem(const std::vector<const Tensor*>& tensors, const Tensor& row_labels,
                     const Tensor& col_labels, int64_t num_clusters) {
  const Tensor& first = *tensors[0];
  REQUIRE(first.dim() >= 2, "weight must have at least 2 dimensions, got shape ", shape_of(first));
  REQUIRE(1 <= num_clusters && num_clusters < std::numeric_limits<int32_t>::max(),
          "num_clusters must be a positive 32-bit number, got ", num_clusters);
  const DType dtype = dtype_of(first, "weight");
  for (const Tensor* tensor : tensors) {
    check_strided_cpu(*tensor, "weight");
    REQUIRE(dtype_of(*tensor, "weight") == dtype, "the tensors must have one dtype");
    REQUIRE(same_shape(*tensor, first), "the tensors must have one shape, got ", shape_of(first), " and ",
            shape_of(*tensor));
  }

  Problem problem;
  Labels& labels = problem.labels;
  labels.count = static_cast<int32_t>(num_clusters + 1);
  labels.rows = read_labels(row_labels, first.size(0), num_clusters, "row_labels");
  labels.cols = read_labels(col_labels, first.size(1), num_clusters, "col_labels");

  const int64_t dims = first.dim(), in = first.size(1);
  int64_t positions = 1;
  for (int64_t d = 2; d < dims; ++d) positions *= first.size(d);

  bool kernel_inside = true, kernel_outside = true;  // of the columns, in memory
  for (const Tensor* tensor : tensors) {
    int64_t stride, count, kernel_stride, kernel_count;
    const bool one_line = merged_stride(*tensor, 1, dims, &stride, &count);
    const bool kernel = merged_stride(*tensor, 2, dims, &kernel_stride, &kernel_count);
    kernel_inside = kernel_inside && one_line;
    kernel_outside =
        kernel_outside && kernel && (kernel_count == 1 || kernel_stride == in * tensor->stride(1));
  }

  for (const Tensor* tensor : tensors) {
    Operand operand;
    operand.data = tensor->data_ptr();
    operand.dtype = dtype;
    operand.row_stride = tensor->stride(0);
    operand.col_stride = tensor->stride(1);
    if (kernel_inside) {
      int64_t count;
      merged_stride(*tensor, 1, dims, &operand.col_stride, &count);
    } else if (!kernel_outside) {
      operand.plane_offsets.assign(positions, 0);
      for (int64_t p = 0; p < positions; ++p) {
        for (int64_t d = dims - 1, rest = p; d >= 2; --d) {
          operand.plane_offsets[p] += rest % tensor->size(d) * tensor->stride(d);
          rest /= tensor->size(d);
        }
      }
    }
    problem.operands.push_back(std::move(operand));
  }
  if ((kernel_inside || kernel_outside) && positions != 1) {
    std::vector<int32_t> merged(in * positions);
    for (int64_t j = 0; j < in * positions; ++j)
      merged[j] = labels.cols[kernel_inside ? j / positions : j % in];
    labels.cols = std::move(merged);
  }

  const Operand& leading = problem.operands[0];
  if (leading.col_stride != 1 && leading.row_stride < leading.col_stride && labels.rows.size() > 1) {
    problem.transposed = true;
    std::swap(labels.rows, labels.cols);
    for (Operand& operand : problem.operands) std::swap(operand.row_stride, operand.col_stride);
  }
  return problem;
}

void transpose(double* square, int64_t n) {
  for (int64_t a = 0; a < n; ++a) {
    for (int64_t b = 0; b < a; ++b) std::swap(square[a * n + b], square[b * n + a]);
  }
}

void parallel_for(int64_t count, int64_t grain, modfast::LoopBody body, void* context) {
  torch::stable::parallel_for(0, count, grain,
                              [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

Tensor block_inner(const Tensor& weight, const std::optional<Tensor>& other, const Tensor& row_labels,
                   const Tensor& col_labels, int64_t num_clusters) {
  std::vector<const Tensor*> tensors{&weight};
  if (other) tensors.push_back(&*other);
  const Problem problem = make_problem(tensors, row_labels, col_labels, num_clusters);
  const int64_t count = problem.labels.count;
  Tensor blocks = torch::stable::new_empty(weight, {count, count}, ScalarType::Double);
  auto* data = static_cast<double*>(blocks.mutable_data_ptr());
  modfast::block_inner(problem.labels, problem.operands[0], other ? &problem.operands[1] : nullptr, data,
                       parallel_for);
  if (problem.transposed) transpose(data, count);
  return blocks;
}

Tensor block_scale(const Tensor& weight, const Tensor& factors, const Tensor& row_labels,
                   const Tensor& col_labels) {
  check_strided_cpu(factors, "factors");
  REQUIRE(factors.scalar_type() == ScalarType::Double && factors.dim() == 2 &&
              factors.size(0) == factors.size(1) && factors.size(0) >= 2,
          "factors must be a square float64 matrix with a row for each cluster and one more, got shape ",
          shape_of(factors));
  const int64_t count = factors.size(0);
  Tensor out = torch::stable::empty_like(weight);
  const Problem problem = make_problem({&weight, &out}, row_labels, col_labels, count - 1);
  std::vector<double> table(count * count);
  const auto* data = static_cast<const double*>(factors.const_data_ptr());
  for (int64_t a = 0; a < count; ++a) {
    for (int64_t b = 0; b < count; ++b)
      table[a * count + b] = data[a * factors.stride(0) + b * factors.stride(1)];
  }
  if (problem.transposed) transpose(table.data(), count);
  modfast::block_scale(problem.labels, problem.operands[0], table.data(), problem.operands[1], parallel_for);
  return out;
}

// The bytes from the first to the last element of a tensor. Strides of a tensor are never negative.
std::pair<const char*, const char*> extent(const Tensor& tensor) {
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) == 0) return {nullptr, nullptr};
    last += (tensor.size(d) - 1) * tensor.stride(d);
  }
  const char* begin = static_cast<const char*>(tensor.data_ptr());
  return {begin, begin + (last + 1) * tensor.element_size()};
}

// Each gradient is written by several threads, so none may share memory with itself, another or a weight.
void check_writable(const std::vector<Tensor>& weights, const std::vector<Tensor>& grads) {
  std::vector<std::pair<const char*, const char*>> written, read;
  for (const Tensor& grad : grads) {
    std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
    for (int64_t d = 0; d < grad.dim(); ++d) {
      if (grad.size(d) > 1) dims.emplace_back(grad.stride(d), grad.size(d));
    }
    std::sort(dims.begin(), dims.end());
    int64_t reached = 0;
    for (const auto& [stride, size] : dims) {
      REQUIRE(stride > reached, "a gradient's elements must not share memory");
      reached += stride * (size - 1);
    }
    written.push_back(extent(grad));
  }
  for (const Tensor& weight : weights) read.push_back(extent(weight));
  std::sort(written.begin(), written.end());
  for (size_t i = 1; i < written.size(); ++i) {
    REQUIRE(written[i].first == nullptr || written[i].first >= written[i - 1].second,
            "gradients of different weights must not share memory");
  }
  for (const auto& [begin, end] : read) {
    const auto after = std::upper_bound(written.begin(), written.end(), std::make_pair(begin, begin));
    REQUIRE((after == written.end() || after->first >= end) &&
                (after == written.begin() || std::prev(after)->second <= begin),
            "a gradient must not share memory with a weight");
  }
}

Tensor accumulate_enmeshment_grad_(std::vector<Tensor> weights, std::vector<Tensor> grads,
                                   std::vector<Tensor> row_labels, std::vector<Tensor> col_labels,
                                   std::vector<int64_t> num_clusters, double scale) {
  const size_t count = weights.size();
  REQUIRE(count > 0, "weights must hold at least one tensor");
  REQUIRE(grads.size() == count && row_labels.size() == count && col_labels.size() == count &&
              num_clusters.size() == count,
          "weights, grads, row_labels, col_labels and num_clusters must have one length");
  std::vector<modfast::EnmeshmentTerm> terms;
  terms.reserve(count);
  for (size_t t = 0; t < count; ++t) {
    Problem problem = make_problem({&weights[t], &grads[t]}, row_labels[t], col_labels[t], num_clusters[t]);
    terms.push_back(
        {std::move(problem.labels), std::move(problem.operands[0]), std::move(problem.operands[1])});
  }
  check_writable(weights, grads);
  Tensor losses = torch::stable::new_empty(weights[0], {static_cast<int64_t>(count)}, ScalarType::Double);
  modfast::accumulate_enmeshment(terms, scale, static_cast<double*>(losses.mutable_data_ptr()), parallel_for);
  return losses;
}

}  // namespace

STABLE_TORCH_LIBRARY(modfast, m) {
  m.def(
      "block_inner(Tensor weight, Tensor? other, Tensor row_labels, Tensor col_labels, int num_clusters) -> "
      "Tensor");
  m.def("block_scale(Tensor weight, Tensor factors, Tensor row_labels, Tensor col_labels) -> Tensor");
  m.def(
      "accumulate_enmeshment_grad_(Tensor[] weights, Tensor(a!)[] grads, Tensor[] row_labels, Tensor[] "
      "col_labels, "
      "int[] num_clusters, float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) {
  m.impl("block_inner", TORCH_BOX(&block_inner));
  m.impl("block_scale", TORCH_BOX(&block_scale));
  m.impl("accumulate_enmeshment_grad_", TORCH_BOX(&accumulate_enmeshment_grad_));
}
