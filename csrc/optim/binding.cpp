#include "optim/binding.h"

#include <algorithm>

namespace modfast {
namespace {

void check_number(const std::optional<Tensor>& tensor, bool double_too, const char* name,
                  void (*check_place)(const Tensor&, const char*)) {
  if (!tensor) return;
  check_place(*tensor, name);
  check_dense(*tensor, name);
  const auto type = tensor->scalar_type();
  REQUIRE(type == ScalarType::Float || (double_too && type == ScalarType::Double), name,
          " must be float32, got ", torch::headeronly::toString(type));
  REQUIRE(tensor->numel() == 1, name, " must have one element, got shape ", shape_of(*tensor));
}

void check_shape_of(const Tensor& tensor, const Tensor& weight, const char* name) {
  check_dense(tensor, name);
  const auto sizes = tensor.sizes(), wanted = weight.sizes();
  REQUIRE(std::equal(sizes.begin(), sizes.end(), wanted.begin(), wanted.end()), name,
          " must have the shape of its weight, ", shape_of(weight), ", got ", shape_of(tensor));
}

// The place after the last label of a weight of the loss.
int64_t end_of_labels(const Tensor& weight, int64_t first) {
  REQUIRE(weight.dim() >= 2, "a weight of the loss must be (out, in, *kernel), got shape ", shape_of(weight));
  const int64_t lines = weight.size(0) + weight.size(1);
  REQUIRE(0 <= first && first <= INT64_MAX - lines, "first_labels must be the place of a label, got ", first);
  return first + lines;
}

void check_holds(const Tensor& labels, int64_t needed, void (*check_place)(const Tensor&, const char*)) {
  check_place(labels, "labels");
  check_shaped(labels, ScalarType::Int, {-1}, "labels");
  REQUIRE(labels.size(0) >= needed, "labels must hold ", needed, " numbers, got ", labels.size(0));
}

}  // namespace

void check_labelled(const std::vector<Tensor>& weights, const Tensor& labels,
                    const std::vector<int64_t>& first_labels,
                    void (*check_place)(const Tensor&, const char*)) {
  REQUIRE(!weights.empty(), "weights must hold at least one tensor");
  REQUIRE(first_labels.size() == weights.size(), "weights and first_labels must have one length");
  int64_t needed = 0;
  for (size_t t = 0; t < weights.size(); ++t) {
    check_place(weights[t], "weights");
    check_dense(weights[t], "weights");
    dtype_of(weights[t], "weights");
    needed = std::max(needed, end_of_labels(weights[t], first_labels[t]));
  }
  check_holds(labels, needed, check_place);
}

int64_t check_step(const StepArguments& given, void (*check_place)(const Tensor&, const char*)) {
  const size_t count = given.weights.size();
  REQUIRE(count > 0, "weights must hold at least one tensor");
  REQUIRE(given.grads.size() == count && given.exp_avgs.size() == count &&
              given.exp_avg_sqs.size() == count && given.steps.size() == count &&
              given.first_labels.size() == count && (given.keep.empty() || given.keep.size() == count),
          "weights, grads, exp_avgs, exp_avg_sqs, steps, first_labels and keep must have one length");
  int64_t of_loss = 0, needed = 0;
  for (size_t t = 0; t < count; ++t) {
    const Tensor& weight = given.weights[t];
    check_place(weight, "weights");
    check_dense(weight, "weights");
    const bool is_double = dtype_of(weight, "weights") == DType::float64;
    check_place(given.grads[t], "grads");
    check_shape_of(given.grads[t], weight, "grads");
    REQUIRE((dtype_of(given.grads[t], "grads") == DType::float64) == is_double,
            "grads must be float64 for a float64 weight and another type for others");
    for (const auto& [moment, name] :
         {std::pair<const Tensor&, const char*>(given.exp_avgs[t], "exp_avgs"),
          std::pair<const Tensor&, const char*>(given.exp_avg_sqs[t], "exp_avg_sqs")}) {
      check_place(moment, name);
      check_shape_of(moment, weight, name);
      REQUIRE(moment.scalar_type() == (is_double ? ScalarType::Double : ScalarType::Float), name,
              " must be float64 for a float64 weight and float32 for others, got ",
              torch::headeronly::toString(moment.scalar_type()));
    }
    check_place(given.steps[t], "steps");
    check_shaped(given.steps[t], ScalarType::Float, {}, "steps");
    REQUIRE(given.first_labels[t] >= -1, "first_labels must be -1 or the place of a label, got ",
            given.first_labels[t]);
    if (given.first_labels[t] >= 0) {
      ++of_loss;
      needed = std::max(needed, end_of_labels(weight, given.first_labels[t]));
    }
    if (!given.keep.empty()) {
      REQUIRE(-1 <= given.keep[t] && given.keep[t] <= weight.numel(), "keep must be -1 to ", weight.numel(),
              " for its weight, got ", given.keep[t]);
    }
  }
  if (of_loss > 0) {
    REQUIRE(given.labels && given.energies && given.new_energies,
            "labels, energies and new_energies are needed for weights of the loss");
    check_holds(*given.labels, needed, check_place);
    check_place(*given.energies, "energies");
    check_shaped(*given.energies, ScalarType::Double, {of_loss, 2}, "energies");
    check_place(*given.new_energies, "new_energies");
    check_shaped(*given.new_energies, ScalarType::Double, {of_loss, 2}, "new_energies");
  }
  if (given.thresholds) {
    check_place(*given.thresholds, "thresholds");
    check_shaped(*given.thresholds, ScalarType::Long, {static_cast<int64_t>(count), 2}, "thresholds");
  }
  check_number(given.lr_tensor, true, "lr_tensor", check_place);
  check_number(given.grad_scale, false, "grad_scale", check_place);
  check_number(given.found_inf, false, "found_inf", check_place);

  std::vector<Tensor> written, read;
  written.reserve(4 * count);
  for (const auto* list : {&given.weights, &given.exp_avgs, &given.exp_avg_sqs}) {
    written.insert(written.end(), list->begin(), list->end());
  }
  (given.grad_scale ? written : read)
      .insert((given.grad_scale ? written : read).end(), given.grads.begin(), given.grads.end());
  check_writable(read, written, "gradient", "weight or moment");
  return of_loss;
}

double number_of(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? *const_data_of<double>(tensor)
                                                    : *const_data_of<float>(tensor);
}

bool lie_alike(const Tensor* const (&tensors)[4]) {
  bool contiguous = true;
  for (const Tensor* tensor : tensors) contiguous = contiguous && tensor->is_contiguous();
  if (contiguous) return true;
  const Tensor& first = *tensors[0];
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (int64_t d = 0; d < first.dim(); ++d) {
    if (first.size(d) == 1) continue;
    for (const Tensor* tensor : tensors) {
      if (tensor->stride(d) != first.stride(d)) return false;
    }
    dims.emplace_back(first.stride(d), first.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t next = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != next) return false;
    next *= size;
  }
  return true;
}

Layout layout_of_stepped(const Tensor* const (&tensors)[4]) {
  if (tensors[0]->dim() >= 2) return layout_of(tensors, 4, true);
  Layout layout;
  layout.rows = 1;
  layout.cols = tensors[0]->numel();
  for (const Tensor* tensor : tensors) {
    layout.tensors.push_back({layout.cols, tensor->dim() == 0 ? 1 : tensor->stride(0), {}});
  }
  return layout;
}

}  // namespace modfast
