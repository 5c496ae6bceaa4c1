// One pass over the weights, a thousand numbers at a time: these stay in the first-level cache while they are
// read, updated, rounded, summed and counted, each by a loop of its own.
#include "common/operand.h"
#include "optim/items.h"
#include "optim/keep.h"
#include "optim/lines.h"
#include "optim/optim.h"

#include <algorithm>

namespace modfast {
namespace {

constexpr int64_t kChunk = 1024;

// A place in a matrix where a line of n numbers begins.
struct Spot {
  int64_t row, col, plane;
};

// Numbers of type T, read from a strided line as numbers of type F, and written back.
template <class T, class F>
struct Line {
  T* memory;
  int64_t stride;
  alignas(64) F numbers[kChunk];

  // The line's numbers, in memory of which the caller may write n.
  F* read(const Placed& operand, const Spot& spot, int64_t n) {
    memory = line_at<T>(operand, spot.row, spot.col, spot.plane);
    stride = n == 1 ? 1 : operand.col_stride;
    if (stride != 1) {
      for (int64_t j = 0; j < n; ++j) numbers[j] = static_cast<F>(widen(memory[j * stride]));
      return numbers;
    }
    if constexpr (std::is_same_v<T, F>) {
      return memory;
    } else {
      optim_lines_in_use().of<T>().widen(memory, numbers, n);
      return numbers;
    }
  }
  // Writes what read returned, if that is not the memory itself.
  void write(int64_t n) {
    if (stride == 1) return;
    for (int64_t j = 0; j < n; ++j) narrow(numbers[j], memory[j * stride]);
  }
};

// Divides a line of gradients by the scale, in place.
template <class G>
void unscale(const Placed& grad, const Spot& spot, float scale, int64_t n) {
  G* line = line_at<G>(grad, spot.row, spot.col, spot.plane);
  for (int64_t j = 0; j < n; ++j) {
    G& number = line[j * grad.col_stride];
    narrow(widen(number) / scale, number);
  }
}

// The work on one weight's items. T: the type of its numbers.
template <class T>
class Pass {
 public:
  using F = Compute<T>;

  Pass(const Stepped& weight, const AdamWOptions& options, Split slopes, uint32_t place, float grad_scale)
      : s_(weight),
        slopes_(slopes),
        wide_(!fits_in_float(slopes)),
        factors_(adamw_factors<F>(options, weight.number, slopes)),
        stochastic_(options.stochastic_rounding && std::is_same_v<T, BFloat>),
        key_(rounding_key(place, step_bits(weight.number))),
        grad_scale_(grad_scale) {}

  // Updates an item; adds the energies of the new weights to sums, and counts their digits, unless these are
  // nullptr.
  void update(const Item& item, SplitLanes* sums, uint32_t floor, uint32_t* counts) {
    for (int64_t plane = 0; plane < s_.planes; ++plane) {
      for (int64_t row = item.first_row; row < item.last_row; ++row) {
        for (int64_t col = item.first_col; col < item.last_col; col += kChunk) {
          update_chunk({row, col, plane}, std::min(kChunk, item.last_col - col), sums, floor, counts);
        }
      }
    }
  }

 private:
  void update_chunk(const Spot& spot, int64_t n, SplitLanes* sums, uint32_t floor, uint32_t* counts) {
    const auto& lines = optim_lines_in_use().of<T>();
    F* mean = mean_.read(s_.exp_avg, spot, n);
    F* square = square_.read(s_.exp_avg_sq, spot, n);
    const F* grad = read_grad(spot, n);
    F* weight = weight_.read(s_.weight, spot, n);
    const bool of_loss = s_.of_loss();
    const int32_t* cols = of_loss ? s_.col_labels + spot.col : nullptr;
    const int32_t label = of_loss ? s_.row_labels[spot.row] : 0;
    if (of_loss && wide_) {
      // Rare (for very small or very large weights), so without vectors.
      for (int64_t j = 0; j < n; ++j) {
        const double factor = cols[j] == label ? slopes_.inside : slopes_.across;
        own_grad_[j] = static_cast<F>(double(grad[j]) + double(weight[j]) * factor);
      }
      optim_lines_in_use().in<F>().step(weight, own_grad_, mean, square, nullptr, 0, factors_, n);
    } else {
      optim_lines_in_use().in<F>().step(weight, grad, mean, square, cols, label, factors_, n);
    }
    mean_.write(n);
    square_.write(n);
    const T* stored = write_weight(spot, weight, n);
    if (sums != nullptr) lines.add_split(stored, cols, label, n, sums);
    if (counts != nullptr) lines.count_digits(stored, n, floor, counts);
  }

  const F* read_grad(const Spot& spot, int64_t n) {
    if constexpr (std::is_same_v<F, double>) {
      if (grad_scale_ != 1.0f) unscale<double>(s_.grad, spot, grad_scale_, n);
      return double_grad_.read(s_.grad, spot, n);
    } else {
      switch (s_.grad.dtype) {
        case DType::float16: return read_grad_of(half_grad_, spot, n);
        case DType::bfloat16: return read_grad_of(bfloat_grad_, spot, n);
        default: return read_grad_of(double_grad_, spot, n);
      }
    }
  }
  template <class G>
  const F* read_grad_of(Line<G, F>& line, const Spot& spot, int64_t n) {
    if (grad_scale_ != 1.0f) unscale<G>(s_.grad, spot, grad_scale_, n);
    return line.read(s_.grad, spot, n);
  }

  // Rounds the new weights to memory, and returns them as they are stored.
  const T* write_weight(const Spot& spot, const F* made, int64_t n) {
    T* to = weight_.stride == 1 ? weight_.memory : stored_;
    if constexpr (std::is_same_v<T, F>) {
      if (weight_.stride != 1) to = weight_.numbers;
    } else if (stochastic_) {
      if constexpr (std::is_same_v<T, BFloat>) {
        const int64_t first =
            line_at<T>(s_.weight, spot.row, spot.col, spot.plane) - static_cast<const T*>(s_.weight.data);
        for (int64_t j = 0; j < n; ++j) {
          to[j] =
              round_stochastically(made[j], static_cast<uint32_t>(first + j * s_.weight.col_stride), key_);
        }
      }
    } else {
      optim_lines_in_use().of<T>().narrow(made, to, n);
    }
    if (weight_.stride != 1) {
      for (int64_t j = 0; j < n; ++j) weight_.memory[j * weight_.stride] = to[j];
    }
    return to;
  }

  const Stepped& s_;
  Split slopes_;
  bool wide_;
  AdamWFactors<F> factors_;
  bool stochastic_;
  uint32_t key_;
  float grad_scale_;
  Line<T, F> weight_;
  Line<F, F> mean_, square_, double_grad_;
  Line<Half, F> half_grad_;
  Line<BFloat, F> bfloat_grad_;
  alignas(64) F own_grad_[kChunk];
  alignas(64) T stored_[kChunk];
};

}  // namespace

void adamw(const std::vector<Stepped>& weights, const std::vector<Split>& slopes, const AdamWOptions& options,
           float grad_scale, std::vector<Split>* energies, ParallelFor parallel_for) {
  Items items;
  for (size_t t = 0; t < weights.size(); ++t) {
    items.add(t, weights[t].rows, weights[t].cols, weights[t].planes);
  }
  Keeping keeping(weights, items);
  std::vector<Split> partial(items.size(), Split{0.0, 0.0});
  items.for_ranges(parallel_for, [&](size_t first, size_t last) {
    for (size_t i = first; i < last;) {
      const size_t t = items[i].weight;
      size_t next = i;
      while (next < last && items[next].weight == t) ++next;
      with_dtype(weights[t].weight.dtype, [&](auto type) {
        Pass<decltype(type)> pass(weights[t], options, slopes[t], static_cast<uint32_t>(t), grad_scale);
        Counted counted(&keeping, t);
        for (; i < next; ++i) {
          SplitLanes lanes;
          const bool sums = weights[t].of_loss() && !keeping.keeps(t);
          pass.update(items[i], sums ? &lanes : nullptr, counted.floor(), counted.counts());
          partial[i] = sums ? sum_of(lanes) : counted.finish(items[i]);
        }
      });
    }
  });
  keeping.finish(parallel_for, partial.data());
  energies->assign(weights.size(), Split{0.0, 0.0});
  for (size_t i = 0; i < items.size(); ++i) {
    Split& sum = (*energies)[items[i].weight];
    sum.inside += partial[i].inside;
    sum.across += partial[i].across;
  }
}

}  // namespace modfast
