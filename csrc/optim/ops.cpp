// The optimiser's operators on the CPU: schema, argument checks, registration.
#include "common/binding_cpu.h"
#include "common/binding_layout.h"
#include "optim/binding.h"
#include "optim/optim.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <vector>

namespace modfast {
namespace {

// Memory for what the matrices of a call point to.
struct CallMemory {
  std::deque<std::vector<int32_t>> labels;
  std::deque<std::vector<int64_t>> offsets;
};

// The labels of a matrix's lines; `count` of them are at `labels`, one for each channel.
const int32_t* line_labels(const int32_t* labels, int64_t count, const LabelIndex& index, int64_t lines,
                           CallMemory* memory) {
  if (lines == count) return labels;
  std::vector<int32_t> result(static_cast<size_t>(lines));
  for (int64_t i = 0; i < lines; ++i) result[i] = labels[index(i)];
  memory->labels.push_back(std::move(result));
  return memory->labels.back().data();
}

Placed placed_of(const Tensor& tensor, const Strides& strides, CallMemory* memory) {
  Placed placed{tensor.data_ptr(), dtype_of(tensor, "weights"), strides.row, strides.col, nullptr};
  if (strides.kernel.empty()) return placed;
  std::vector<int64_t> all{0};
  for (const auto& [size, stride] : strides.kernel) {
    std::vector<int64_t> offsets;
    for (int64_t position = 0; position < size; ++position) {
      for (int64_t offset : all) offsets.push_back(offset + position * stride);
    }
    all = std::move(offsets);
  }
  memory->offsets.push_back(std::move(all));
  placed.plane_offsets = memory->offsets.back().data();
  return placed;
}

// Labels at `labels`, or nullptr for a weight outside the loss.
void set_labels(const int32_t* labels, const Tensor& weight, const Layout& layout, Stepped* s,
                CallMemory* memory) {
  if (labels == nullptr) return;
  const int32_t* of_rows = labels;
  const int32_t* of_cols = labels + weight.size(0);
  int64_t rows = weight.size(0), cols = weight.size(1);
  if (layout.transposed) {
    std::swap(of_rows, of_cols);
    std::swap(rows, cols);
  }
  s->row_labels = line_labels(of_rows, rows, layout.row_index, s->rows, memory);
  s->col_labels = line_labels(of_cols, cols, layout.col_index, s->cols, memory);
}

Stepped stepped_of(const Tensor* const (&tensors)[4], const int32_t* labels, CallMemory* memory) {
  Stepped s;
  Placed* const places[4] = {&s.weight, &s.grad, &s.exp_avg, &s.exp_avg_sq};
  const Tensor& weight = *tensors[0];
  if (labels == nullptr && lie_alike(tensors)) {
    s.rows = 1;
    s.cols = weight.numel();
    for (int i = 0; i < 4; ++i) *places[i] = placed_of(*tensors[i], {s.cols, 1, {}}, memory);
    return s;
  }
  const Layout layout = layout_of_stepped(tensors);
  s.rows = layout.rows;
  s.cols = layout.cols;
  for (int i = 0; i < 4; ++i) *places[i] = placed_of(*tensors[i], layout.tensors[i], memory);
  for (const auto& [size, stride] : layout.tensors[0].kernel) s.planes *= size;
  set_labels(labels, weight, layout, &s, memory);
  return s;
}

Tensor labelled_energies_cpu(std::vector<Tensor> weights, Tensor labels, std::vector<int64_t> first_labels) {
  check_labelled(weights, labels, first_labels,
                 [](const Tensor& tensor, const char* name) { check_cpu(tensor, name); });
  CallMemory memory;
  std::vector<Stepped> stepped;
  for (size_t t = 0; t < weights.size(); ++t) {
    const Tensor* const tensors[1] = {&weights[t]};
    const Layout layout = layout_of(tensors, 1);
    Stepped s;
    s.rows = layout.rows;
    s.cols = layout.cols;
    s.weight = placed_of(weights[t], layout.tensors[0], &memory);
    for (const auto& [size, stride] : layout.tensors[0].kernel) s.planes *= size;
    set_labels(const_data_of<int32_t>(labels) + first_labels[t], weights[t], layout, &s, &memory);
    stepped.push_back(s);
  }
  std::vector<Split> sums;
  labelled_energies(stepped, &sums, parallel_for);
  Tensor energies =
      torch::stable::new_empty(weights[0], {static_cast<int64_t>(weights.size()), 2}, ScalarType::Double);
  std::copy(sums.begin(), sums.end(), mutable_data_of<Split>(energies));
  return energies;
}

void adamw_cpu(std::vector<Tensor> weights, std::vector<Tensor> grads, std::vector<Tensor> exp_avgs,
               std::vector<Tensor> exp_avg_sqs, std::vector<Tensor> steps, std::optional<Tensor> labels,
               std::vector<int64_t> first_labels, std::optional<Tensor> energies,
               std::optional<Tensor> new_energies, double slope, std::vector<int64_t> keep,
               std::optional<Tensor> thresholds, double lr, std::optional<Tensor> lr_tensor, double beta1,
               double beta2, double eps, double weight_decay, std::optional<Tensor> grad_scale,
               std::optional<Tensor> found_inf, bool stochastic_rounding) {
  const StepArguments given{weights,    grads,        exp_avgs,   exp_avg_sqs,  steps,
                            labels,     first_labels, energies,   new_energies, keep,
                            thresholds, lr_tensor,    grad_scale, found_inf};
  const auto of_loss =
      check_step(given, [](const Tensor& tensor, const char* name) { check_cpu(tensor, name); });
  const auto* old = of_loss ? const_data_of<Split>(*energies) : nullptr;
  auto* made = of_loss ? mutable_data_of<Split>(*new_energies) : nullptr;
  if (found_inf && *const_data_of<float>(*found_inf) != 0.0f) {
    for (int64_t t = 0; t < of_loss; ++t) made[t] = old[t];
    return;
  }
  AdamWOptions options{lr, beta1, beta2, eps, weight_decay, slope, stochastic_rounding};
  if (lr_tensor) options.lr = number_of(*lr_tensor);

  CallMemory memory;
  std::vector<Stepped> stepped;
  std::vector<Split> slopes, sums;
  stepped.reserve(weights.size());
  int64_t place = 0;
  for (size_t t = 0; t < weights.size(); ++t) {
    const Tensor* const tensors[4] = {&weights[t], &grads[t], &exp_avgs[t], &exp_avg_sqs[t]};
    const bool has_labels = first_labels[t] >= 0;
    stepped.push_back(stepped_of(
        tensors, has_labels ? const_data_of<int32_t>(*labels) + first_labels[t] : nullptr, &memory));
    Stepped& s = stepped.back();
    s.keep = keep.empty() ? -1 : keep[t];
    s.threshold = thresholds ? mutable_data_of<int64_t>(*thresholds) + 2 * t : nullptr;
    REQUIRE(s.keep < 0 || can_keep(s),
            "keep needs weights whose rows follow one another in memory, got shape ", shape_of(weights[t]),
            " in another layout");
    slopes.push_back(has_labels ? enmeshment_factors(old[place++], slope) : Split{0.0, 0.0});
  }
  // Nothing is changed before all arguments are known to be right.
  for (size_t t = 0; t < weights.size(); ++t) {
    auto* step = mutable_data_of<float>(steps[t]);
    if (t == 0 || step != steps[t - 1].data_ptr()) *step += 1.0f;
    stepped[t].number = *step;
  }
  adamw(stepped, slopes, options, grad_scale ? *const_data_of<float>(*grad_scale) : 1.0f, &sums,
        parallel_for);
  place = 0;
  for (size_t t = 0; t < weights.size(); ++t) {
    if (first_labels[t] >= 0) made[place++] = sums[t];
  }
}

}  // namespace
}  // namespace modfast

// clang-format off
STABLE_TORCH_LIBRARY_FRAGMENT(modfast, m) {
  m.def("adamw_(Tensor(a!)[] weights, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
        "Tensor(e!)[] steps, Tensor? labels, int[] first_labels, Tensor? energies, Tensor(f!)? new_energies, "
        "float slope, int[] keep, Tensor(g!)? thresholds, float lr, Tensor? lr_tensor, float beta1, float beta2, "
        "float eps, float weight_decay, Tensor? grad_scale, Tensor? found_inf, bool stochastic_rounding) -> ()");
  m.def("labelled_energies(Tensor[] weights, Tensor labels, int[] first_labels) -> Tensor");
}
// clang-format on

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) {
  m.impl("adamw_", MODFAST_BOX(&modfast::adamw_cpu));
  m.impl("labelled_energies", MODFAST_BOX(&modfast::labelled_energies_cpu));
}
