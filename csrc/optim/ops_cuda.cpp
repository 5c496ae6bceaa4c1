// The optimiser's operators on a GPU: argument checks, the layout of tensors for the kernels, registration.
//
// Nothing here waits for the device, and all memory comes from PyTorch, so a step can be captured in a CUDA
// graph, and each replay is a step.
#include "common/binding_cuda.h"
#include "optim/binding.h"
#include "optim/cuda.h"
#include "optim/cuda_plan.h"

#include <optional>
#include <unordered_set>
#include <vector>

namespace modfast {
namespace {

using namespace optim;

void check_cuda(const Tensor& tensor, const char* name) {
  REQUIRE(tensor.is_cuda(), name, " must be on a CUDA device, like the others");
}

// Requires one device, and of each step that it is shared only by weights that follow one another: the device
// advances all steps at once.
void check_devices_and_steps(const StepArguments& given) {
  const Tensor& first = given.weights[0];
  for (const auto& [list, name] :
       {std::pair<const std::vector<Tensor>*, const char*>(&given.weights, "weights"),
        {&given.grads, "grads"},
        {&given.exp_avgs, "exp_avgs"},
        {&given.exp_avg_sqs, "exp_avg_sqs"},
        {&given.steps, "steps"}}) {
    for (const Tensor& tensor : *list) check_device(tensor, first, name);
  }
  for (const auto& [tensor, name] :
       {std::pair<const std::optional<Tensor>*, const char*>(&given.labels, "labels"),
        {&given.energies, "energies"},
        {&given.new_energies, "new_energies"},
        {&given.lr_tensor, "lr_tensor"},
        {&given.grad_scale, "grad_scale"},
        {&given.found_inf, "found_inf"}}) {
    if (*tensor) check_device(**tensor, first, name);
  }
  std::unordered_set<const void*> seen;
  for (size_t t = 0; t < given.steps.size(); ++t) {
    const void* step = given.steps[t].data_ptr();
    REQUIRE((t > 0 && step == given.steps[t - 1].data_ptr()) || seen.insert(step).second,
            "on CUDA only weights that follow one another may share a step, got weight ", int64_t(t),
            " with the step of an earlier one");
  }
}

// The weight as rows and columns with labels, for a pass over it and the other tensors, if there are any.
void lay_out_labelled(const Tensor* const* tensors, int count, const int32_t* labels, Matrix* matrix) {
  Matrix& m = *matrix;
  const Layout layout = layout_of(tensors, count, true);
  Place* places[kTensors] = {&m.weight, &m.grad, &m.mean, &m.square};
  for (int t = 0; t < count; ++t) {
    const Strides& strides = layout.tensors[t];
    REQUIRE(strides.kernel.size() <= kKernelDims, "on CUDA at most ", kKernelDims,
            " kernel dimensions may lie apart in memory, got shape ", shape_of(*tensors[t]));
    places[t]->row = strides.row;
    places[t]->col = strides.col;
    for (size_t d = 0; d < kKernelDims; ++d) {
      const bool is_there = d < strides.kernel.size();
      places[t]->kernel[d] = is_there ? strides.kernel[d].second : 0;
      m.kernel_size[d] = is_there ? strides.kernel[d].first : 1;
    }
  }
  m.rows = layout.rows;
  m.cols = m.last_cols = layout.cols;
  const int32_t* of_cols = labels + tensors[0]->size(0);
  m.row_labels = {layout.transposed ? of_cols : labels, layout.row_index};
  m.col_labels = {layout.transposed ? labels : of_cols, layout.col_index};
}

// A weight of the loss for a pass over it alone, which sums its energies.
Matrix labelled_matrix(const Tensor& weight, const Tensor& labels, int64_t first_label, int32_t slot) {
  Matrix m{};
  m.dtype = m.grad_dtype = dtype_of(weight, "weights");
  m.weight.data = const_cast<void*>(weight.const_data_ptr());  // only read
  m.slot = slot;
  m.keep = -1;
  m.sums = true;
  const Tensor* const tensors[] = {&weight};
  lay_out_labelled(tensors, 1, const_data_of<int32_t>(labels) + first_label, &m);
  plan_items(&m, true);
  return m;
}

// The weight as rows and columns in the order of its memory.
void lay_out_plain(const Tensor* const (&tensors)[kTensors], Matrix* matrix) {
  std::vector<Dimension> dims;
  for (int64_t d = 0; d < tensors[0]->dim(); ++d) {
    Dimension dim{tensors[0]->size(d), {}};
    for (int t = 0; t < kTensors; ++t) dim.strides[t] = tensors[t]->stride(d);
    dims.push_back(dim);
  }
  REQUIRE(lay_out(dims, matrix), "on CUDA at most ", kKernelDims + 2,
          " dimensions of a weight may lie apart in memory, got shape ", shape_of(*tensors[0]));
}

// The operator on the CPU requires the same.
void check_keep(const Tensor* const (&tensors)[kTensors]) {
  if (lie_alike(tensors)) return;
  const Layout layout = layout_of_stepped(tensors);
  const Strides& strides = layout.tensors[0];
  REQUIRE(strides.kernel.empty() && (layout.cols <= 1 || strides.col == 1) &&
              (layout.rows <= 1 || strides.row >= layout.cols),
          "keep needs weights whose rows follow one another in memory, got shape ", shape_of(*tensors[0]),
          " in another layout");
}

int32_t offset_bits(const Tensor& weight) {
  uint64_t last = 0;
  for (int64_t d = 0; d < weight.dim(); ++d) {
    if (weight.size(d) > 1) last += static_cast<uint64_t>((weight.size(d) - 1) * weight.stride(d));
  }
  int32_t bits = 0;
  for (; last != 0; last /= 2) ++bits;
  return bits;
}

Matrix matrix_of(const StepArguments& given, size_t t, int32_t slot) {
  const Tensor* const tensors[kTensors] = {&given.weights[t], &given.grads[t], &given.exp_avgs[t],
                                           &given.exp_avg_sqs[t]};
  Matrix m{};
  m.dtype = dtype_of(*tensors[0], "weights");
  m.grad_dtype = dtype_of(*tensors[1], "grads");
  m.weight.data = tensors[0]->data_ptr();
  m.grad.data = const_cast<void*>(tensors[1]->const_data_ptr());  // written only if there is a scale
  m.mean.data = tensors[2]->data_ptr();
  m.square.data = tensors[3]->data_ptr();
  m.step = mutable_data_of<float>(given.steps[t]);
  m.leads = t == 0 || m.step != given.steps[t - 1].data_ptr();
  m.place = static_cast<int32_t>(t);
  m.slot = slot;
  if (slot >= 0) {
    lay_out_labelled(tensors, kTensors, const_data_of<int32_t>(*given.labels) + given.first_labels[t], &m);
  } else {
    lay_out_plain(tensors, &m);
  }
  // To keep all is to choose nothing.
  const int64_t numbers = tensors[0]->numel();
  m.keep = given.keep.empty() || given.keep[t] == numbers ? -1 : given.keep[t];
  if (!given.keep.empty() && given.keep[t] >= 0) check_keep(tensors);
  m.offset_bits = offset_bits(*tensors[0]);
  plan_items(&m);
  return m;
}

// Scratch memory for a call; refuses what no launch takes.
Tensor scratch(const Tensor& like, const AdamWCall& call) {
  int64_t items = 0;
  for (const Matrix& m : call.matrices) items += m.items;
  REQUIRE(items <= INT32_MAX, "on CUDA the weights of a call must take at most ", INT32_MAX,
          " blocks of threads, got ", items, ": fewer weights, or layouts that are closer together");
  return torch::stable::new_empty(like, {adamw_room(call.matrices).size}, ScalarType::Byte);
}

void adamw_cuda(std::vector<Tensor> weights, std::vector<Tensor> grads, std::vector<Tensor> exp_avgs,
                std::vector<Tensor> exp_avg_sqs, std::vector<Tensor> steps, std::optional<Tensor> labels,
                std::vector<int64_t> first_labels, std::optional<Tensor> energies,
                std::optional<Tensor> new_energies, double slope, std::vector<int64_t> keep,
                std::optional<Tensor> thresholds, double lr, std::optional<Tensor> lr_tensor, double beta1,
                double beta2, double eps, double weight_decay, std::optional<Tensor> grad_scale,
                std::optional<Tensor> found_inf, bool stochastic_rounding) {
  const StepArguments given{weights,    grads,        exp_avgs,   exp_avg_sqs,  steps,
                            labels,     first_labels, energies,   new_energies, keep,
                            thresholds, lr_tensor,    grad_scale, found_inf};
  const int64_t of_loss = check_step(given, check_cuda);
  check_devices_and_steps(given);
  AdamWCall call;
  call.matrices.reserve(weights.size());
  // The energies have the bits of labelled_energies: where the other tensors, by their layout, change the
  // order of the pass, they need a pass of their own.
  std::vector<Matrix> apart;
  int32_t slots = 0;
  for (size_t t = 0; t < weights.size(); ++t) {
    call.matrices.push_back(matrix_of(given, t, first_labels[t] >= 0 ? slots++ : -1));
    Matrix& m = call.matrices.back();
    if (m.slot < 0) continue;
    const Matrix alone = labelled_matrix(weights[t], *labels, first_labels[t], m.slot);
    m.sums = have_same_items(m, alone);
    if (!m.sums) apart.push_back(alone);
  }
  arrange(&call.matrices);
  arrange(&apart);
  call.options = {lr, beta1, beta2, eps, weight_decay, slope, stochastic_rounding};
  const auto pointer = [](const std::optional<Tensor>& tensor) {
    return tensor ? const_data_of<float>(*tensor) : nullptr;
  };
  call.scalars = {lr_tensor ? lr_tensor->const_data_ptr() : nullptr,
                  lr_tensor && lr_tensor->scalar_type() == ScalarType::Double, pointer(grad_scale),
                  pointer(found_inf)};
  call.energies = of_loss > 0 ? const_data_of<Split>(*energies) : nullptr;
  call.new_energies = of_loss > 0 ? mutable_data_of<Split>(*new_energies) : nullptr;
  const OnDevice device(weights[0]);
  require_success(cuda_adamw(call, scratch(weights[0], call).data_ptr(), device.stream()));
  if (apart.empty()) return;
  call.matrices = std::move(apart);
  require_success(cuda_labelled_energies(call, scratch(weights[0], call).data_ptr(), device.stream()));
}

Tensor labelled_energies_cuda(std::vector<Tensor> weights, Tensor labels, std::vector<int64_t> first_labels) {
  check_labelled(weights, labels, first_labels, check_cuda);
  check_device(labels, weights[0], "labels");
  AdamWCall call{};
  for (size_t t = 0; t < weights.size(); ++t) {
    check_device(weights[t], weights[0], "weights");
    call.matrices.push_back(labelled_matrix(weights[t], labels, first_labels[t], static_cast<int32_t>(t)));
  }
  arrange(&call.matrices);
  const OnDevice device(weights[0]);
  Tensor energies =
      torch::stable::new_empty(weights[0], {static_cast<int64_t>(weights.size()), 2}, ScalarType::Double);
  call.new_energies = mutable_data_of<Split>(energies);
  require_success(cuda_labelled_energies(call, scratch(weights[0], call).data_ptr(), device.stream()));
  return energies;
}

}  // namespace
}  // namespace modfast

STABLE_TORCH_LIBRARY_IMPL(modfast, CUDA, m) {
  m.impl("adamw_", MODFAST_BOX(&modfast::adamw_cuda));
  m.impl("labelled_energies", MODFAST_BOX(&modfast::labelled_energies_cuda));
}
