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

  // Updates an item, whose place among those of its weight is given. The energies of the new weights are
  // added to sums, unless that is nullptr; what is not among the largest may be taken out, unless kept is
  // nullptr.
  void update(const Item& item, size_t place, SplitLanes* sums, KeptOf<T>* kept) {
    int64_t at = 0;
    for (int64_t plane = 0; plane < s_.planes; ++plane) {
      for (int64_t row = item.first_row; row < item.last_row; ++row) {
        for (int64_t col = item.first_col; col < item.last_col; col += kChunk) {
          const int64_t n = std::min(kChunk, item.last_col - col);
          const T* stored = update_chunk({row, col, plane}, n, sums, kept != nullptr);
          if (kept != nullptr) kept->sift(stored, line_at<T>(s_.weight, row, col, plane), n, at, place);
          at += n;
        }
      }
    }
  }

 private:
  // Returns the new weights; unless they are to be sifted, they are in place.
  const T* update_chunk(const Spot& spot, int64_t n, SplitLanes* sums, bool sifted) {
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
      grad = own_grad_;
    }
    F* made = sifted ? made_ : weight;
    // Where the numbers are not rounded again, their squares are summed at once.
    SplitLanes* at_once = std::is_same_v<T, F> ? sums : nullptr;
    optim_lines_in_use().in<F>().step(weight, grad, mean, square, cols, label, factors_, of_loss && !wide_, n,
                                      made, at_once);
    mean_.write(n);
    square_.write(n);
    const T* stored = rounded(spot, made, n, sifted);
    if (sums != at_once) optim_lines_in_use().of<T>().add_split(stored, cols, label, n, sums);
    return stored;
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

  // Rounds the new weights, to memory unless they are to be sifted, and returns them.
  const T* rounded(const Spot& spot, F* made, int64_t n, bool sifted) {
    const bool in_place = !sifted && weight_.stride == 1;
    T* to = in_place ? weight_.memory : stored_;
    if constexpr (std::is_same_v<T, F>) {
      to = made;
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
    for (int64_t j = 0; !sifted && !in_place && j < n; ++j) weight_.memory[j * weight_.stride] = to[j];
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
  alignas(64) F made_[kChunk];
  alignas(64) T stored_[kChunk];
};

// The energies of an item's weights, as they are.
template <class T>
Split energies_of(const Stepped& s, const Item& item) {
  const auto& lines = optim_lines_in_use().of<T>();
  alignas(64) T gathered[kChunk];
  SplitLanes sums;
  for (int64_t plane = 0; plane < s.planes; ++plane) {
    for (int64_t row = item.first_row; row < item.last_row; ++row) {
      for (int64_t col = item.first_col; col < item.last_col; col += kChunk) {
        const int64_t n = std::min(kChunk, item.last_col - col);
        const T* line = line_at<T>(s.weight, row, col, plane);
        if (s.weight.col_stride != 1) {
          for (int64_t j = 0; j < n; ++j) gathered[j] = line[j * s.weight.col_stride];
          line = gathered;
        }
        lines.add_split(line, s.col_labels + col, s.row_labels[row], n, &sums);
      }
    }
  }
  return sum_of(sums);
}

Items items_of(const std::vector<Stepped>& weights) {
  Items items;
  for (size_t t = 0; t < weights.size(); ++t) {
    items.add(t, weights[t].rows, weights[t].cols, weights[t].planes);
  }
  return items;
}

// The sums of what was found of the items, in their order.
std::vector<Split> by_weight(const Items& items, const std::vector<Split>& partial, size_t weights) {
  std::vector<Split> sums(weights, Split{0.0, 0.0});
  for (size_t i = 0; i < items.size(); ++i) {
    sums[items[i].weight].inside += partial[i].inside;
    sums[items[i].weight].across += partial[i].across;
  }
  return sums;
}

}  // namespace

void adamw(const std::vector<Stepped>& weights, const std::vector<Split>& slopes, const AdamWOptions& options,
           float grad_scale, std::vector<Split>* energies, ParallelFor parallel_for) {
  const Items items = items_of(weights);
  std::vector<size_t> place(items.size(), 0);  // of each among those of its weight
  for (size_t i = 1; i < items.size(); ++i) {
    place[i] = items[i].weight == items[i - 1].weight ? place[i - 1] + 1 : 0;
  }
  Keeping keeping(weights, items);
  std::vector<Split> partial(items.size(), Split{0.0, 0.0});
  items.for_ranges(parallel_for, [&](size_t first, size_t last) {
    for (size_t i = first, next = first; i < last; i = next) {
      const size_t t = items[i].weight;
      const Stepped& s = weights[t];
      Kept* kept = keeping.of(t);
      while (next < last && items[next].weight == t) ++next;
      with_dtype(s.weight.dtype, [&](auto type) {
        using T = decltype(type);
        Pass<T> pass(s, options, slopes[t], static_cast<uint32_t>(t), grad_scale);
        auto* sieve = kept != nullptr && kept->has_window() ? static_cast<KeptOf<T>*>(kept) : nullptr;
        for (size_t j = i; j < next; ++j) {
          SplitLanes lanes;
          const bool sums = s.of_loss() && kept == nullptr;
          pass.update(items[j], place[j], sums ? &lanes : nullptr, sieve);
          if (sums) partial[j] = sum_of(lanes);
        }
        if (kept == nullptr || kept->items() > 1) return;
        keeping.finish_alone(t, items[i], options);
        if (s.of_loss()) partial[i] = energies_of<T>(s, items[i]);
      });
    }
  });
  keeping.finish(options, parallel_for);
  // What is kept is known only now.
  Items again;
  std::vector<size_t> from;
  for (size_t i = 0; i < items.size(); ++i) {
    Kept* kept = keeping.of(items[i].weight);
    if (kept != nullptr && kept->items() > 1 && weights[items[i].weight].of_loss()) {
      again.push_back(items[i], 1);
      from.push_back(i);
    }
  }
  again.for_ranges(parallel_for, [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      const Stepped& s = weights[again[i].weight];
      with_dtype(s.weight.dtype,
                 [&](auto type) { partial[from[i]] = energies_of<decltype(type)>(s, again[i]); });
    }
  });
  *energies = by_weight(items, partial, weights.size());
}

void labelled_energies(const std::vector<Stepped>& weights, std::vector<Split>* energies,
                       ParallelFor parallel_for) {
  const Items items = items_of(weights);
  std::vector<Split> partial(items.size());
  items.for_ranges(parallel_for, [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      const Stepped& s = weights[items[i].weight];
      with_dtype(s.weight.dtype, [&](auto type) { partial[i] = energies_of<decltype(type)>(s, items[i]); });
    }
  });
  *energies = by_weight(items, partial, weights.size());
}

}  // namespace modfast
