// The operators on the CPU: schemas, argument checks, registration.
#include "common/binding_cpu.h"
#include "common/kept_memory.h"
#include "energy/binding.h"

#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <type_traits>

namespace modfast {
namespace {

// The labels of a matrix's rows or columns as the caller gave them, in [-1, num_clusters).
template <class Number>
struct Given {
  const Number* data;
  int64_t stride, count;
  const char* name;
};

Given<int64_t> given_labels(const Tensor& labels, int64_t expected, const char* name) {
  check_cpu(labels, name);
  check_labels(labels, expected, name);
  return {const_data_of<int64_t>(labels), expected > 0 ? labels.stride(0) : 1, expected, name};
}

// Checks labels, and gives one to each of the lines; -1 ("in no cluster") becomes the additional label
// num_clusters. These are plain loops, which the compiler turns into vectors: small matrices take hardly
// longer.
template <class Number>
void read_labels(const Given<Number>& given, int64_t num_clusters, const LabelIndex& index, int64_t lines,
                 std::vector<int32_t>* result) {
  const auto [data, stride, count, name] = given;
  using Bits = std::make_unsigned_t<Number>;
  constexpr int kSign = 8 * sizeof(Number) - 1;
  const auto allowed = static_cast<Bits>(num_clusters);
  Bits wrong = 0;  // its highest bit is set by a label out of range
  const auto mark = [&](Number label) {
    const Bits above = static_cast<Bits>(label) + 1;
    wrong |= above | (allowed - above);
  };
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) mark(data[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) mark(data[i * stride]);
  }
  for (int64_t i = 0; i < count && wrong >> kSign != 0; ++i) {
    const int64_t label = data[i * stride];
    REQUIRE(-1 <= label && label < num_clusters, name, "[", i, "] is ", label, ", allowed is -1 to ",
            num_clusters - 1);
  }
  result->resize(lines);
  int32_t* made = result->data();
  const auto none = static_cast<int32_t>(num_clusters);
  const auto made_of = [&](Number label) {
    const auto narrow = static_cast<int32_t>(label);
    return narrow < 0 ? none : narrow;
  };
  if (lines == count && stride == 1) {
    for (int64_t i = 0; i < lines; ++i) made[i] = made_of(data[i]);
  } else {
    for (int64_t i = 0; i < lines; ++i) made[i] = made_of(data[(lines == count ? i : index(i)) * stride]);
  }
}

Operand operand_of(const Tensor& tensor, const Strides& strides) {
  Operand operand;
  operand.data = tensor.data_ptr();
  operand.dtype = dtype_of(tensor, "weight");
  operand.row_stride = strides.row;
  operand.col_stride = strides.col;
  for (const auto& [size, stride] : strides.kernel) {
    std::vector<int64_t> offsets;
    for (int64_t position = 0; position < size; ++position) {
      for (int64_t offset : operand.plane_offsets) offsets.push_back(offset + position * stride);
    }
    operand.plane_offsets = std::move(offsets);
  }
  return operand;
}

// A set of tensors of one shape (out, in, *kernel) as labelled matrices.
struct Problem {
  Labels labels;
  std::vector<Operand> operands;
  bool transposed = false;
};

template <class Number>
Problem make_problem(std::initializer_list<const Tensor*> tensors, const Given<Number>& row_labels,
                     const Given<Number>& col_labels, int64_t num_clusters) {
  const Layout layout = layout_of(tensors.begin(), tensors.size());
  Problem problem;
  problem.transposed = layout.transposed;
  problem.labels.count = static_cast<int32_t>(num_clusters + 1);
  auto* of_rows = layout.transposed ? &problem.labels.cols : &problem.labels.rows;
  auto* of_cols = layout.transposed ? &problem.labels.rows : &problem.labels.cols;
  const auto& row_index = layout.transposed ? layout.col_index : layout.row_index;
  const auto& col_index = layout.transposed ? layout.row_index : layout.col_index;
  const int64_t rows = layout.transposed ? layout.cols : layout.rows;
  const int64_t cols = layout.transposed ? layout.rows : layout.cols;
  read_labels(row_labels, num_clusters, row_index, rows, of_rows);
  read_labels(col_labels, num_clusters, col_index, cols, of_cols);
  problem.operands.reserve(tensors.size());
  for (size_t t = 0; t < tensors.size(); ++t) {
    problem.operands.push_back(operand_of(*tensors.begin()[t], layout.tensors[t]));
  }
  return problem;
}

void check_weights(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* tensor : tensors) {
    check_cpu(*tensor, "weight");
    REQUIRE(tensor->dim() >= 2, "weight must have at least 2 dimensions, got shape ", shape_of(*tensor));
  }
}

Problem make_problem(std::initializer_list<const Tensor*> tensors, const Tensor& row_labels,
                     const Tensor& col_labels, int64_t num_clusters) {
  check_num_clusters(num_clusters);
  check_weights(tensors);
  const Tensor& first = **tensors.begin();
  return make_problem(tensors, given_labels(row_labels, first.size(0), "row_labels"),
                      given_labels(col_labels, first.size(1), "col_labels"), num_clusters);
}

void transpose(double* square, int64_t n) {
  for (int64_t a = 0; a < n; ++a) {
    for (int64_t b = 0; b < a; ++b) std::swap(square[a * n + b], square[b * n + a]);
  }
}

Tensor block_inner_cpu(const Tensor& weight, const std::optional<Tensor>& other, const Tensor& row_labels,
                       const Tensor& col_labels, int64_t num_clusters) {
  const Problem problem = other ? make_problem({&weight, &*other}, row_labels, col_labels, num_clusters)
                                : make_problem({&weight}, row_labels, col_labels, num_clusters);
  const int64_t count = problem.labels.count;
  Tensor blocks = torch::stable::new_empty(weight, {count, count}, ScalarType::Double);
  auto* data = static_cast<double*>(blocks.mutable_data_ptr());
  block_inner(problem.labels, problem.operands[0], other ? &problem.operands[1] : nullptr, data,
              parallel_for);
  if (problem.transposed) transpose(data, count);
  return blocks;
}

Tensor block_scale_cpu(const Tensor& weight, const Tensor& factors, const Tensor& row_labels,
                       const Tensor& col_labels) {
  check_cpu(factors, "factors");
  check_factors(factors);
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
  block_scale(problem.labels, problem.operands[0], table.data(), problem.operands[1], parallel_for);
  return out;
}

std::vector<Term> make_terms(const std::vector<Tensor>& weights, const std::vector<Tensor>* grads,
                             const std::vector<Tensor>& row_labels, const std::vector<Tensor>& col_labels,
                             const std::vector<int64_t>& num_clusters) {
  check_lists(weights, grads ? *grads : weights, row_labels, col_labels, num_clusters);
  std::vector<Term> terms;
  terms.reserve(weights.size());
  for (size_t t = 0; t < weights.size(); ++t) {
    Problem problem =
        grads ? make_problem({&weights[t], &(*grads)[t]}, row_labels[t], col_labels[t], num_clusters[t])
              : make_problem({&weights[t]}, row_labels[t], col_labels[t], num_clusters[t]);
    terms.push_back({std::move(problem.labels), std::move(problem.operands[0]),
                     grads ? std::move(problem.operands[1]) : Operand()});
  }
  return terms;
}

// A new tensor of numbers on the CPU. Unlike new_empty it is made without PyTorch's dispatcher, which takes
// longer than the loss of a small matrix.
Tensor new_numbers(std::initializer_list<int64_t> shape, bool doubles) {
  int64_t strides[2] = {1, 1};
  if (shape.size() == 2) strides[0] = shape.begin()[1];
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.begin(), strides,
                               doubles ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(),
                               aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

Tensor new_doubles(std::initializer_list<int64_t> shape) { return new_numbers(shape, true); }

std::tuple<Tensor, Tensor> enmeshment_cpu(std::vector<Tensor> weights, std::vector<Tensor> row_labels,
                                          std::vector<Tensor> col_labels, std::vector<int64_t> num_clusters) {
  const auto terms = make_terms(weights, nullptr, row_labels, col_labels, num_clusters);
  const auto count = static_cast<int64_t>(weights.size());
  Tensor losses = new_doubles({count});
  Tensor energies = new_doubles({count, 2});
  auto* split = static_cast<Split*>(energies.mutable_data_ptr());
  split_energies(terms, split, parallel_for);
  auto* loss = static_cast<double*>(losses.mutable_data_ptr());
  for (int64_t t = 0; t < count; ++t) loss[t] = enmeshment_of(split[t]);
  return {losses, energies};
}

std::vector<Split> factors_of(const Tensor& energies, const Tensor& slopes, int64_t count) {
  check_cpu(energies, "energies");
  check_cpu(slopes, "slopes");
  check_numbers(energies, count, 2, "energies");
  check_numbers(slopes, count, 0, "slopes");
  const auto* split = static_cast<const Split*>(energies.const_data_ptr());
  const auto* slope = static_cast<const double*>(slopes.const_data_ptr());
  std::vector<Split> factors;
  for (int64_t t = 0; t < count; ++t) factors.push_back(enmeshment_factors(split[t], slope[t]));
  return factors;
}

// Like empty_like, but reuses memory of the step before.
Tensor gradient_like(const Tensor& weight) {
  const size_t bytes = static_cast<size_t>(weight.numel()) * weight.element_size();
  if (bytes < kKeptFrom || !weight.is_contiguous()) return torch::stable::empty_like(weight);
  return torch::stable::from_blob(take_block(bytes), weight.sizes(), weight.strides(), weight.device(),
                                  weight.scalar_type(), [bytes](void* block) { give_block(block, bytes); });
}

std::vector<Tensor> enmeshment_grad_cpu(std::vector<Tensor> weights, Tensor energies, Tensor slopes,
                                        std::vector<Tensor> row_labels, std::vector<Tensor> col_labels,
                                        std::vector<int64_t> num_clusters) {
  size_t bytes = 0;
  for (const Tensor& weight : weights) bytes += static_cast<size_t>(weight.numel()) * weight.element_size();
  keep_at_most(bytes);
  std::vector<Tensor> grads;
  for (const Tensor& weight : weights) grads.push_back(gradient_like(weight));
  const auto terms = make_terms(weights, &grads, row_labels, col_labels, num_clusters);
  const auto factors = factors_of(energies, slopes, static_cast<int64_t>(weights.size()));
  split_scale(terms, factors.data(), Into::fresh, parallel_for);
  return grads;
}

void add_enmeshment_grad_cpu(std::vector<Tensor> weights, std::vector<Tensor> grads, Tensor energies,
                             Tensor slopes, std::vector<Tensor> row_labels, std::vector<Tensor> col_labels,
                             std::vector<int64_t> num_clusters) {
  const auto terms = make_terms(weights, &grads, row_labels, col_labels, num_clusters);
  check_writable(weights, grads);
  const auto factors = factors_of(energies, slopes, static_cast<int64_t>(weights.size()));
  split_scale(terms, factors.data(), Into::sum, parallel_for);
}

Tensor accumulate_enmeshment_grad_cpu(std::vector<Tensor> weights, std::vector<Tensor> grads,
                                      std::vector<Tensor> row_labels, std::vector<Tensor> col_labels,
                                      std::vector<int64_t> num_clusters, double scale) {
  const auto terms = make_terms(weights, &grads, row_labels, col_labels, num_clusters);
  check_writable(weights, grads);
  Tensor losses = new_doubles({static_cast<int64_t>(weights.size())});
  accumulate_enmeshment(terms, scale, mutable_data_of<double>(losses), parallel_for);
  return losses;
}

// The same with the labels of all weights in one tensor, which takes a fraction of the time to hand over: for
// each weight the number of clusters, the labels of its rows, and those of its columns.
Tensor accumulate_packed_enmeshment_grad_cpu(std::vector<Tensor> weights, std::vector<Tensor> grads,
                                             Tensor labels, double scale, bool mean) {
  REQUIRE(!weights.empty(), "weights must hold at least one tensor");
  REQUIRE(grads.size() == weights.size(), "weights and grads must have one length");
  check_cpu(labels, "labels");
  int64_t expected = 0;
  for (const Tensor& weight : weights) {
    check_weights({&weight});
    expected += 1 + weight.size(0) + weight.size(1);
  }
  const auto* next = const_data_of<int32_t>(check_shaped(labels, ScalarType::Int, {expected}, "labels"));
  std::vector<Term> terms;
  terms.reserve(weights.size());
  bool doubles = false;
  for (size_t t = 0; t < weights.size(); ++t) {
    check_weights({&grads[t]});
    doubles = doubles || weights[t].scalar_type() == ScalarType::Double;
    const int64_t num_clusters = *next++, rows = weights[t].size(0), cols = weights[t].size(1);
    check_num_clusters(num_clusters);
    const Given<int32_t> row_labels{next, 1, rows, "row_labels"},
        col_labels{next + rows, 1, cols, "col_labels"};
    Problem problem = make_problem({&weights[t], &grads[t]}, row_labels, col_labels, num_clusters);
    terms.push_back(
        {std::move(problem.labels), std::move(problem.operands[0]), std::move(problem.operands[1])});
    next += rows + cols;
  }
  check_writable(weights, grads);
  std::vector<double> losses(weights.size());
  accumulate_enmeshment(terms, scale, losses.data(), parallel_for);
  double sum = std::accumulate(losses.begin(), losses.end(), 0.0);
  if (mean) sum /= static_cast<double>(losses.size());
  Tensor reduced = new_numbers({}, doubles);
  if (doubles) {
    *mutable_data_of<double>(reduced) = sum;
  } else {
    *mutable_data_of<float>(reduced) = static_cast<float>(sum);
  }
  return reduced;
}

}  // namespace
}  // namespace modfast

// clang-format off
STABLE_TORCH_LIBRARY(modfast, m) {
  m.def("block_inner(Tensor weight, Tensor? other, Tensor row_labels, Tensor col_labels, int num_clusters) "
        "-> Tensor");
  m.def("block_scale(Tensor weight, Tensor factors, Tensor row_labels, Tensor col_labels) -> Tensor");
  m.def("enmeshment(Tensor[] weights, Tensor[] row_labels, Tensor[] col_labels, int[] num_clusters) "
        "-> (Tensor, Tensor)");
  m.def("enmeshment_grad(Tensor[] weights, Tensor energies, Tensor slopes, Tensor[] row_labels, "
        "Tensor[] col_labels, int[] num_clusters) -> Tensor[]");
  m.def("add_enmeshment_grad_(Tensor[] weights, Tensor(a!)[] grads, Tensor energies, Tensor slopes, "
        "Tensor[] row_labels, Tensor[] col_labels, int[] num_clusters) -> ()");
  m.def("accumulate_enmeshment_grad_(Tensor[] weights, Tensor(a!)[] grads, Tensor[] row_labels, "
        "Tensor[] col_labels, int[] num_clusters, float scale) -> Tensor");
  m.def("accumulate_packed_enmeshment_grad_(Tensor[] weights, Tensor(a!)[] grads, Tensor labels, float scale, "
        "bool mean) -> Tensor");
}
// clang-format on

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) {
  m.impl("block_inner", MODFAST_BOX(&modfast::block_inner_cpu));
  m.impl("block_scale", MODFAST_BOX(&modfast::block_scale_cpu));
  m.impl("enmeshment", MODFAST_BOX(&modfast::enmeshment_cpu));
  m.impl("enmeshment_grad", MODFAST_BOX(&modfast::enmeshment_grad_cpu));
  m.impl("add_enmeshment_grad_", MODFAST_BOX(&modfast::add_enmeshment_grad_cpu));
  m.impl("accumulate_enmeshment_grad_", MODFAST_BOX(&modfast::accumulate_enmeshment_grad_cpu));
  m.impl("accumulate_packed_enmeshment_grad_", MODFAST_BOX(&modfast::accumulate_packed_enmeshment_grad_cpu));
}
