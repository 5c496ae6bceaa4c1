#include "common/binding_layout.h"

#include <algorithm>
#include <iterator>

namespace modfast {

namespace {

bool same_shape(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes(), others = b.sizes();
  return std::equal(sizes.begin(), sizes.end(), others.begin(), others.end());
}

// The range of bytes from the first to the last element of a tensor. Strides are never negative.
std::pair<const char*, const char*> extent(const Tensor& tensor) {
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) == 0) return {nullptr, nullptr};
    last += (tensor.size(d) - 1) * tensor.stride(d);
  }
  const char* begin = static_cast<const char*>(tensor.data_ptr());
  return {begin, begin + (last + 1) * tensor.element_size()};
}

// The common stride of the dimensions [first, last) in row-major order, if they can be merged into one.
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

}  // namespace

void check_writable(const std::vector<Tensor>& reads, const std::vector<Tensor>& writes,
                    const char* read_name, const char* written_name) {
  std::vector<std::pair<const char*, const char*>> written, read;
  written.reserve(writes.size());
  read.reserve(reads.size());
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (const Tensor& tensor : writes) {
    written.push_back(extent(tensor));
    if (tensor.is_contiguous()) continue;
    dims.clear();
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      if (tensor.size(d) > 1) dims.emplace_back(tensor.stride(d), tensor.size(d));
    }
    std::sort(dims.begin(), dims.end());
    int64_t reached = 0;
    for (const auto& [stride, size] : dims) {
      REQUIRE(stride > reached, "a ", written_name, "'s elements must not share memory");
      reached += stride * (size - 1);
    }
  }
  for (const Tensor& tensor : reads) read.push_back(extent(tensor));
  std::sort(written.begin(), written.end());
  for (size_t i = 1; i < written.size(); ++i) {
    REQUIRE(written[i].first == nullptr || written[i].first >= written[i - 1].second, "two ", written_name,
            "s must not share memory");
  }
  for (const auto& [begin, end] : read) {
    const auto after = std::upper_bound(written.begin(), written.end(), std::make_pair(begin, begin));
    REQUIRE((after == written.end() || after->first >= end) &&
                (after == written.begin() || std::prev(after)->second <= begin),
            "a ", written_name, " must not share memory with a ", read_name);
  }
}

Layout layout_of(const Tensor* const* tensors, size_t count, bool any_dtypes) {
  const Tensor& first = *tensors[0];
  REQUIRE(first.dim() >= 2, "weight must have at least 2 dimensions, got shape ", shape_of(first));
  const DType dtype = dtype_of(first, "weight");
  for (size_t t = 0; t < count; ++t) {
    check_dense(*tensors[t], "weight");
    REQUIRE(dtype_of(*tensors[t], "weight") == dtype || any_dtypes, "the tensors must have one dtype");
    REQUIRE(same_shape(*tensors[t], first), "the tensors must have one shape, got ", shape_of(first), " and ",
            shape_of(*tensors[t]));
  }

  const int64_t dims = first.dim(), in = first.size(1);
  int64_t positions = 1;
  for (int64_t d = 2; d < dims; ++d) positions *= first.size(d);
  // Whether the kernel's positions can be merged with the columns, inside or outside of them in memory.
  bool kernel_inside = true, kernel_outside = true;
  for (size_t t = 0; t < count && positions != 1; ++t) {
    int64_t stride, number, kernel_stride, kernel_number;
    const bool one_line = merged_stride(*tensors[t], 1, dims, &stride, &number);
    const bool kernel = merged_stride(*tensors[t], 2, dims, &kernel_stride, &kernel_number);
    kernel_inside = kernel_inside && one_line;
    kernel_outside =
        kernel_outside && kernel && (kernel_number == 1 || kernel_stride == in * tensors[t]->stride(1));
  }
  const bool merged = kernel_inside || kernel_outside;

  Layout layout;
  layout.rows = first.size(0);
  layout.cols = merged ? in * positions : in;
  layout.col_index = {merged && kernel_inside ? std::max<int64_t>(positions, 1) : 1,
                      std::max<int64_t>(in, 1)};
  layout.row_index.modulo = std::max<int64_t>(layout.rows, 1);
  for (size_t t = 0; t < count; ++t) {
    const Tensor& tensor = *tensors[t];
    Strides strides;
    strides.row = tensor.stride(0);
    strides.col = tensor.stride(1);
    if (positions != 1 && kernel_inside) {
      int64_t number;
      merged_stride(tensor, 1, dims, &strides.col, &number);
    } else if (!merged) {
      for (int64_t d = dims - 1; d >= 2; --d) {
        if (tensor.size(d) != 1) strides.kernel.emplace_back(tensor.size(d), tensor.stride(d));
      }
    }
    layout.tensors.push_back(std::move(strides));
  }

  const Strides& leading = layout.tensors[0];
  if (leading.col != 1 && leading.row < leading.col && layout.rows > 1) {
    layout.transposed = true;
    std::swap(layout.rows, layout.cols);
    std::swap(layout.row_index, layout.col_index);
    for (Strides& strides : layout.tensors) std::swap(strides.row, strides.col);
  }
  return layout;
}

}  // namespace modfast
