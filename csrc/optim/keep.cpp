#include "optim/keep.h"

#include "common/operand.h"

#include <algorithm>
#include <functional>

namespace modfast {
namespace {

constexpr int kNextBits = 11;     // of each further digit
constexpr int64_t kFew = 4096;    // numbers that are better sorted than counted
constexpr int64_t kMany = 65536;  // numbers that are worth several threads
constexpr int64_t kWindowSteps =
    4;  // how many times as far as before the threshold may move within the window

template <class T>
constexpr int kSignless = kSignlessBits(sizeof(T));
template <class T>
constexpr int kMantissa = std::is_same_v<T, double>  ? 52
                          : std::is_same_v<T, float> ? 23
                          : std::is_same_v<T, Half>  ? 10
                                                     : 7;
// Half the window in units of the last bit: at least 1/128 of the threshold, and 1/16 where nothing is known.
template <class T>
constexpr int64_t kNarrowest = int64_t{1} << (kMantissa<T> > 7 ? kMantissa<T> - 7 : 0);
template <class T>
constexpr int64_t kFirstWidth = int64_t{1} << (kMantissa<T> - 4);

// Calls f(row, column, place in the item) for each element.
template <class F>
void for_elements(const Item& item, const F& f) {
  uint32_t at = 0;
  for (int64_t row = item.first_row; row < item.last_row; ++row) {
    for (int64_t col = item.first_col; col < item.last_col; ++col) f(row, col, at++);
  }
}

// Calls f(first, last) for ranges of [0, count), in parallel if there is much to do.
template <class F>
void in_ranges(ParallelFor parallel_for, size_t count, bool much, const F& f) {
  if (!much || parallel_for == nullptr) return f(0, static_cast<int64_t>(count));
  parallel_for(
      static_cast<int64_t>(count), 1,
      [](int64_t begin, int64_t end, void* given) { (*static_cast<const F*>(given))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

struct Digit {
  int digit;
  int64_t stay;  // how many of this digit are among the largest
};

// The digit of the smallest of the `largest` numbers of which at(d) have digit d. There are that many.
template <class At>
Digit digit_of(int digits, int64_t largest, const At& at) {
  for (int digit = digits - 1; digit > 0; --digit) {
    const int64_t here = at(digit);
    if (here >= largest) return {digit, largest};
    largest -= here;
  }
  return {0, largest};
}

}  // namespace

template <class T>
KeptOf<T>::KeptOf(const Stepped& weight, size_t items) : Kept(weight, items), taken_(items) {
  if (s_.threshold == nullptr || s_.threshold[0] <= 0 || s_.threshold[1] <= 0) {
    counts_.reset(new std::atomic<uint32_t>[kDigits]());
    return;
  }
  // Whatever the caller left there, the window is one.
  constexpr auto most = static_cast<int64_t>(InfinityOf<T>::bits) + 1;
  const int64_t middle = std::min(s_.threshold[0], most), width = std::min(s_.threshold[1], most);
  low_ = static_cast<Bits>(std::max<int64_t>(1, middle - width));
  high_ = static_cast<Bits>(middle > most - width ? most : middle + width);
  window_ = true;
}

template <class T>
bool KeptOf<T>::choose_in_window(ParallelFor parallel_for) {
  int64_t above = 0, total = 0;
  for (const auto& taken : taken_) {
    above += taken.above;
    total += static_cast<int64_t>(taken.size());
  }
  const int64_t stay = s_.keep - above;
  if (stay >= 0 && stay <= total) {
    const Bits threshold = stay == 0 ? high_ : smallest_of(stay, parallel_for);
    if (threshold >= low_) {
      set_threshold(threshold, stay);
      return true;
    }
  }
  counts_.reset(new std::atomic<uint32_t>[kDigits]());
  return false;
}

template <class T>
void KeptOf<T>::restore(const Item& item, size_t place, const AdamWOptions& options, uint32_t weight) {
  using F = Compute<T>;
  const auto factors = adamw_factors<F>(options, s_.number, {0.0, 0.0});
  const uint32_t key = rounding_key(weight, step_bits(s_.number));
  for_elements(item, [&](int64_t row, int64_t col, uint32_t) {
    T& number = *line_at<T>(s_.weight, row, col, 0);
    if (magnitude_bits(number) != 0) return;
    const F mean = *line_at<F>(s_.exp_avg, row, col, 0), square = *line_at<F>(s_.exp_avg_sq, row, col, 0);
    const F made = moved(factors, F{0}, mean, square);
    narrow(made, number);
    if constexpr (std::is_same_v<T, BFloat>) {
      const auto offset = static_cast<uint32_t>(&number - static_cast<const T*>(s_.weight.data));
      if (options.stochastic_rounding) number = round_stochastically(made, offset, key);
    }
  });
  TakenOut<T>& taken = taken_[place];
  const auto cols = static_cast<uint32_t>(item.last_col - item.first_col);
  for (size_t c = 0; c < taken.size(); ++c) {
    *line_at<T>(s_.weight, item.first_row + taken.places[c] / cols, item.first_col + taken.places[c] % cols,
                0) = taken.numbers[c];
  }
  taken.places.clear();
  taken.numbers.clear();
}

template <class T>
void KeptOf<T>::count(const Item& item) {
  uint32_t own[kDigits] = {};
  for (int64_t row = item.first_row; row < item.last_row; ++row) {
    lines_.count_digits(line_at<T>(s_.weight, row, item.first_col, 0), item.last_col - item.first_col, own);
  }
  for (int digit = 0; digit < kDigits; ++digit) {
    if (own[digit]) counts_[digit].fetch_add(own[digit], std::memory_order_relaxed);
  }
}

template <class T>
void KeptOf<T>::choose_digit() {
  if (s_.keep == 0) {
    digit_ = kDigits;
    return;
  }
  const Digit chosen = digit_of(kDigits, s_.keep, [&](int d) -> int64_t { return counts_[d]; });
  digit_ = static_cast<uint32_t>(chosen.digit);
  stay_ = chosen.stay;
}

template <class T>
void KeptOf<T>::take_out(const Item& item, size_t place) {
  TakenOut<T>& taken = taken_[place];
  taken.places.clear();
  taken.numbers.clear();
  for_elements(item, [&](int64_t row, int64_t col, uint32_t at) {
    T& number = *line_at<T>(s_.weight, row, col, 0);
    const uint32_t digit = first_digit(number);
    if (digit > digit_) return;
    if (digit == digit_) {
      taken.add(at, number);
    }
    number = T{};
  });
}

template <class T>
void KeptOf<T>::choose_threshold(ParallelFor parallel_for) {
  if (s_.keep == 0) return set_threshold(0, 0);
  set_threshold(smallest_of(stay_, parallel_for), stay_);
}

// The magnitude of the smallest of the `largest` numbers that were taken out.
template <class T>
BitsOf<T> KeptOf<T>::smallest_of(int64_t largest, ParallelFor parallel_for) {
  int64_t total = 0;
  for (const auto& taken : taken_) total += static_cast<int64_t>(taken.size());
  if (total <= kFew) {
    std::vector<Bits> all;
    all.reserve(static_cast<size_t>(total));
    for (const auto& taken : taken_) {
      for (size_t c = 0; c < taken.size(); ++c) all.push_back(magnitude_bits(taken.numbers[c]));
    }
    const auto wanted = all.begin() + (largest - 1);
    std::nth_element(all.begin(), wanted, all.end(), std::greater<Bits>());
    return *wanted;
  }
  Bits known = 0;  // the upper digits
  for (int rest = kSignless<T>; rest > 0;) {
    const int bits = std::min(rest, kNextBits);
    rest -= bits;
    const uint32_t digits = 1u << bits;
    std::vector<std::atomic<uint32_t>> counts(digits);
    in_ranges(parallel_for, items_, total >= kMany, [&](int64_t first, int64_t last) {
      std::vector<uint32_t> own(digits);
      for (int64_t i = first; i < last; ++i) {
        const auto& taken = taken_[static_cast<size_t>(i)];
        for (size_t c = 0; c < taken.size(); ++c) {
          const uint64_t magnitude = magnitude_bits(taken.numbers[c]);
          if (magnitude >> (rest + bits) == known) ++own[(magnitude >> rest) & (digits - 1)];
        }
      }
      for (uint32_t d = 0; d < digits; ++d) {
        if (own[d]) counts[d].fetch_add(own[d], std::memory_order_relaxed);
      }
    });
    const Digit next =
        digit_of(static_cast<int>(digits), largest, [&](int d) -> int64_t { return counts[d]; });
    known = static_cast<Bits>((uint64_t{known} << bits) | static_cast<uint64_t>(next.digit));
    largest = next.stay;
  }
  return known;
}

// Usually one number is exactly at the threshold. If there are more than may stay, the first in memory do.
template <class T>
void KeptOf<T>::set_threshold(Bits threshold, int64_t stay) {
  threshold_ = threshold;
  stay_ = stay;
  ranks_.assign(items_, 0);
  int64_t above = 0, equal = 0;
  for (size_t i = 0; stay > 0 && i < items_; ++i) {
    ranks_[i] = equal;
    for (size_t c = 0; c < taken_[i].size(); ++c) {
      const Bits magnitude = magnitude_bits(taken_[i].numbers[c]);
      above += magnitude > threshold;
      equal += magnitude == threshold;
    }
  }
  equal_stay_ = stay - above;
  remember();
}

template <class T>
void KeptOf<T>::put_back(const Item& item, size_t place) {
  TakenOut<T>& taken = taken_[place];
  const auto cols = static_cast<uint32_t>(item.last_col - item.first_col);
  int64_t rank = ranks_[place];
  for (size_t c = 0; stay_ > 0 && c < taken.size(); ++c) {
    const Bits magnitude = magnitude_bits(taken.numbers[c]);
    if (magnitude < threshold_ || (magnitude == threshold_ && rank++ >= equal_stay_)) continue;
    *line_at<T>(s_.weight, item.first_row + taken.places[c] / cols, item.first_col + taken.places[c] % cols,
                0) = taken.numbers[c];
  }
}

template <class T>
void KeptOf<T>::remember() {
  if (s_.threshold == nullptr) return;
  const auto now = static_cast<int64_t>(threshold_), before = s_.threshold[0];
  const bool known = before > 0 && before <= static_cast<int64_t>(InfinityOf<T>::bits) + 1;
  const int64_t moved = now > before ? now - before : before - now;
  s_.threshold[0] = now;
  s_.threshold[1] =
      known ? std::max(kNarrowest<T>, std::min(moved, kFirstWidth<T>) * kWindowSteps) : kFirstWidth<T>;
}

Keeping::Keeping(const std::vector<Stepped>& weights, const Items& items) {
  std::vector<size_t> count(weights.size(), 0);
  for (size_t i = 0; i < items.size(); ++i) ++count[items[i].weight];
  for (size_t t = 0; t < weights.size(); ++t) {
    const Stepped& s = weights[t];
    kept_.emplace_back();
    if (s.keep < 0 || s.keep >= s.rows * s.cols) continue;
    with_dtype(s.weight.dtype,
               [&](auto type) { kept_.back() = std::make_unique<KeptOf<decltype(type)>>(s, count[t]); });
    if (count[t] == 1) continue;
    items_.add(t, s.rows, s.cols, 1);
    for (size_t i = 0; i < count[t]; ++i) place_.push_back(i);
  }
}

void Keeping::finish_alone(size_t weight, const Item& item, const AdamWOptions& options) {
  Kept& kept = *kept_[weight];
  if (!kept.has_window() || !kept.choose_in_window(nullptr)) {
    if (kept.has_window()) kept.restore(item, 0, options, static_cast<uint32_t>(weight));
    kept.count(item);
    kept.choose_digit();
    kept.take_out(item, 0);
    kept.choose_threshold(nullptr);
  }
  kept.put_back(item, 0);
}

void Keeping::finish(const AdamWOptions& options, ParallelFor parallel_for) {
  if (items_.size() == 0) return;
  std::vector<char> counted(kept_.size(), 0);
  const auto several = [&](size_t t) { return kept_[t] != nullptr && kept_[t]->items() > 1; };
  const auto for_counted = [&](const auto& f) {
    items_.for_ranges(parallel_for, [&](size_t first, size_t last) {
      for (size_t i = first; i < last; ++i) {
        if (counted[items_[i].weight]) f(*kept_[items_[i].weight], items_[i], place_[i]);
      }
    });
  };
  bool any = false;
  for (size_t t = 0; t < kept_.size(); ++t) {
    if (!several(t)) continue;
    counted[t] = !kept_[t]->has_window() || !kept_[t]->choose_in_window(parallel_for);
    any = any || counted[t];
  }
  if (any) {
    for_counted([&](Kept& kept, const Item& item, size_t place) {
      if (kept.has_window()) kept.restore(item, place, options, static_cast<uint32_t>(item.weight));
      kept.count(item);
    });
    for (size_t t = 0; t < kept_.size(); ++t) {
      if (counted[t]) kept_[t]->choose_digit();
    }
    for_counted([&](Kept& kept, const Item& item, size_t place) { kept.take_out(item, place); });
    for (size_t t = 0; t < kept_.size(); ++t) {
      if (counted[t]) kept_[t]->choose_threshold(parallel_for);
    }
  }
  items_.for_ranges(parallel_for, [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) kept_[items_[i].weight]->put_back(items_[i], place_[i]);
  });
}

template class KeptOf<float>;
template class KeptOf<double>;
template class KeptOf<Half>;
template class KeptOf<BFloat>;

}  // namespace modfast
