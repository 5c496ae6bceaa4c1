#include "optim/keep.h"

#include "common/operand.h"
#include "optim/digits.h"

#include <algorithm>

namespace modfast {
namespace {

constexpr int kNextBits = 11;               // of each further digit
constexpr int64_t kManyCandidates = 65536;  // worth several threads
constexpr int64_t kLine = 1024;
constexpr int64_t kSlack = 16;  // numbers that the loops may write beyond those that they return

// The digit of the smallest magnitude to keep, and how many of that digit stay.
struct Choice {
  int digit = -1;  // -1: fewer were counted
  int64_t stay = 0;
};

// at(d): how many have digit d. Digits of at least `floor` were counted.
template <class At>
Choice choose(int digits, int floor, int64_t keep, const At& at) {
  if (keep == 0) return {digits - 1, 0};
  int64_t above = 0;
  for (int digit = digits - 1; digit >= floor; --digit) {
    const int64_t here = at(digit);
    if (above + here >= keep) return {digit, keep - above};
    above += here;
  }
  return {};
}

// The elements of one item that have the digit of the threshold, in the order of memory.
template <class T>
struct Candidates {
  std::vector<uint32_t> places;
  std::vector<T> numbers;
  int64_t size = 0;
};

}  // namespace

class Kept {
 public:
  Kept(const Stepped& weight, size_t items) : s_(weight), items_(items) {
    const int64_t hint = s_.floor == nullptr ? 0 : *s_.floor;
    floor_ = static_cast<uint32_t>(std::clamp<int64_t>(hint, 0, kDigits - 1));
    if (items > 1) counts_.reset(new std::atomic<uint32_t>[kDigits]());
  }
  virtual ~Kept() = default;

  size_t items() const { return items_; }
  uint32_t floor() const { return floor_; }

  // Threads add what they have counted; or, if the weight is one item, it is chosen from at once.
  void add(const uint32_t* counts) {
    for (int digit = 0; digit < kDigits; ++digit) {
      if (counts[digit]) counts_[digit].fetch_add(counts[digit], std::memory_order_relaxed);
    }
  }
  bool choose_digit() {
    return chosen(choose(kDigits, int(floor_), s_.keep, [&](int d) -> int64_t { return counts_[d]; }));
  }
  bool choose_digit(const uint32_t* counts) {
    return chosen(choose(kDigits, int(floor_), s_.keep, [&](int d) -> int64_t { return counts[d]; }));
  }
  void count_all() {
    floor_ = 0;
    for (int digit = 0; counts_ != nullptr && digit < kDigits; ++digit) counts_[digit] = 0;
  }

  virtual void count(const Item& item, uint32_t* counts) = 0;
  virtual Split take_out(const Item& item, size_t place) = 0;
  virtual void choose_threshold(ParallelFor parallel_for) = 0;
  virtual void put_back(const Item& item, size_t place, Split* energies) = 0;

 protected:
  bool chosen(Choice choice) {
    if (choice.digit < 0) return false;
    choice_ = choice;
    return true;
  }

  const Stepped& s_;
  size_t items_;
  uint32_t floor_;
  Choice choice_;
  std::unique_ptr<std::atomic<uint32_t>[]> counts_;
};

namespace {

template <class T>
class KeptOf : public Kept {
 public:
  KeptOf(const Stepped& weight, size_t items) : Kept(weight, items), candidates_(items) {}

  void count(const Item& item, uint32_t* counts) override {
    for_lines(item, [&](int64_t row, int64_t col, int64_t n, int64_t) {
      lines_.count_digits(line_at<T>(s_.weight, row, col, 0), n, 0, counts);
    });
  }

  Split take_out(const Item& item, size_t place) override {
    Candidates<T>& taken = candidates_[place];
    SplitLanes sums;
    for_lines(item, [&](int64_t row, int64_t col, int64_t n, int64_t at) {
      const auto room = static_cast<size_t>(taken.size + n + kSlack);
      if (taken.places.size() < room) {
        taken.places.resize(2 * room);
        taken.numbers.resize(2 * room);
      }
      T* line = line_at<T>(s_.weight, row, col, 0);
      taken.size += lines_.take_out(line, n, static_cast<uint32_t>(choice_.digit), static_cast<uint32_t>(at),
                                    taken.places.data() + taken.size, taken.numbers.data() + taken.size);
      if (s_.of_loss()) lines_.add_split(line, s_.col_labels + col, s_.row_labels[row], n, &sums);
    });
    return sum_of(sums);
  }

  void choose_threshold(ParallelFor parallel_for) override {
    remember();
    int64_t total = 0;
    for (const auto& taken : candidates_) total += taken.size;
    int64_t stay = choice_.stay, equal = total;
    Bits known = 0;  // the digits below the first that are known
    for (int rest = kRestBits<T>; rest > 0 && stay > 0;) {
      const int bits = std::min(rest, kNextBits);
      rest -= bits;
      std::vector<std::atomic<uint32_t>> counts(size_t{1} << bits);
      const auto count_some = [&](int64_t first, int64_t last) {
        std::vector<uint32_t> own(counts.size());
        for (int64_t i = first; i < last; ++i) {
          const auto& taken = candidates_[static_cast<size_t>(i)];
          for (int64_t c = 0; c < taken.size; ++c) {
            const Bits below = magnitude_bits(taken.numbers[c]) & kBelow;
            if (static_cast<Bits>(below >> (rest + bits)) == known) ++own[(below >> rest) & (own.size() - 1)];
          }
        }
        for (size_t d = 0; d < own.size(); ++d) counts[d].fetch_add(own[d], std::memory_order_relaxed);
      };
      for_lists(parallel_for, total, count_some);
      const Choice next = choose(1 << bits, 0, stay, [&](int d) -> int64_t { return counts[d]; });
      known = static_cast<Bits>((known << bits) | static_cast<Bits>(next.digit));
      stay = next.stay;
      equal = counts[next.digit];
    }
    threshold_ = static_cast<Bits>((static_cast<Bits>(choice_.digit) << kRestBits<T>) | known);
    // Usually one weight is exactly at the threshold. If there are more than may stay, the first do.
    ranks_.assign(items_ + 1, 0);
    stay_ = stay;
    if (stay >= equal || stay == 0) return;
    for (size_t i = 0; i < items_; ++i) {
      int64_t here = 0;
      for (int64_t c = 0; c < candidates_[i].size; ++c) {
        here += magnitude_bits(candidates_[i].numbers[c]) == threshold_;
      }
      ranks_[i + 1] = ranks_[i] + here;
    }
  }

  void put_back(const Item& item, size_t place, Split* energies) override {
    Candidates<T>& taken = candidates_[place];
    if (choice_.stay == 0) return;
    int64_t rank = ranks_[place];
    const auto cols = static_cast<uint32_t>(item.last_col - item.first_col);
    for (int64_t c = 0; c < taken.size; ++c) {
      const T number = taken.numbers[c];
      const Bits magnitude = magnitude_bits(number);
      if (magnitude < threshold_ || (magnitude == threshold_ && rank++ >= stay_)) continue;
      const int64_t row = item.first_row + taken.places[c] / cols;
      const int64_t col = item.first_col + taken.places[c] % cols;
      *line_at<T>(s_.weight, row, col, 0) = number;
      if (s_.of_loss()) {
        const double wide = widen(number);
        (s_.row_labels[row] == s_.col_labels[col] ? energies->inside : energies->across) += wide * wide;
      }
    }
    taken = {};
  }

 private:
  using Bits = BitsOf<T>;
  static constexpr Bits kBelow = static_cast<Bits>((Bits{1} << kRestBits<T>)-1);

  // Calls f(row, column, numbers, place in the item) for each line of at most kLine numbers.
  template <class F>
  void for_lines(const Item& item, const F& f) const {
    int64_t at = 0;
    for (int64_t row = item.first_row; row < item.last_row; ++row) {
      for (int64_t col = item.first_col; col < item.last_col; col += kLine) {
        const int64_t n = std::min(kLine, item.last_col - col);
        f(row, col, n, at);
        at += n;
      }
    }
  }

  // Calls f(first, last) for ranges of the items' candidates, in parallel if there are many.
  template <class F>
  void for_lists(ParallelFor parallel_for, int64_t total, const F& f) {
    const auto lists = static_cast<int64_t>(items_);
    if (total < kManyCandidates || parallel_for == nullptr) return f(0, lists);
    parallel_for(
        lists, 1,
        [](int64_t begin, int64_t end, void* given) { (*static_cast<const F*>(given))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

  // The next step counts no digit that is far below the threshold: as the weights move little, neither does
  // it.
  void remember() {
    constexpr int margin = std::is_same_v<T, double> ? 1 : std::is_same_v<T, Half> ? 32 : 4;  // 1/4 octave
    if (s_.floor != nullptr) *s_.floor = std::max(0, choice_.digit - margin);
  }

  const OptimLinesOf<T>& lines_ = optim_lines_in_use().of<T>();
  std::vector<Candidates<T>> candidates_;  // of each item
  Bits threshold_ = 0;
  int64_t stay_ = 0;            // how many of those exactly at the threshold stay
  std::vector<int64_t> ranks_;  // how many exactly at the threshold are in the items before
};

std::unique_ptr<Kept> make_kept(const Stepped& weight, size_t items) {
  std::unique_ptr<Kept> made;
  with_dtype(weight.weight.dtype,
             [&](auto type) { made = std::make_unique<KeptOf<decltype(type)>>(weight, items); });
  return made;
}

}  // namespace

Keeping::Keeping(const std::vector<Stepped>& weights, const Items& items) {
  std::vector<size_t> first(weights.size()), count(weights.size(), 0);
  for (size_t i = 0; i < items.size(); ++i) {
    if (count[items[i].weight]++ == 0) first[items[i].weight] = i;
  }
  for (size_t t = 0; t < weights.size(); ++t) {
    const Stepped& s = weights[t];
    const bool keeps = s.keep >= 0 && s.keep < s.rows * s.cols && count[t] > 0;
    kept_.push_back(keeps ? make_kept(s, count[t]) : nullptr);
    if (!keeps || count[t] == 1) continue;
    items_.add(t, s.rows, s.cols, 1);
    for (size_t i = first[t]; i < first[t] + count[t]; ++i) places_.push_back(i);
  }
}

Keeping::~Keeping() = default;

void Keeping::finish(ParallelFor parallel_for, Split* energies) {
  if (items_.size() == 0) return;
  std::vector<size_t> own(items_.size());  // the place of each item among those of its weight
  for (size_t i = 1; i < items_.size(); ++i)
    own[i] = items_[i].weight == items_[i - 1].weight ? own[i - 1] + 1 : 0;

  std::vector<char> again(kept_.size(), 0);
  bool any = false;
  for (size_t t = 0; t < kept_.size(); ++t) {
    if (kept_[t] == nullptr || kept_[t]->items() == 1 || kept_[t]->choose_digit()) continue;
    kept_[t]->count_all();
    again[t] = 1;
    any = true;
  }
  if (any) {  // the threshold has fallen by much: all digits are counted
    items_.for_ranges(parallel_for, [&](size_t first, size_t last) {
      for (size_t i = first; i < last; ++i) {
        if (!again[items_[i].weight]) continue;
        uint32_t counts[kDigits] = {};
        kept_[items_[i].weight]->count(items_[i], counts);
        kept_[items_[i].weight]->add(counts);
      }
    });
    for (size_t t = 0; t < kept_.size(); ++t) {
      if (again[t]) kept_[t]->choose_digit();
    }
  }

  items_.for_ranges(parallel_for, [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      energies[places_[i]] = kept_[items_[i].weight]->take_out(items_[i], own[i]);
    }
  });
  for (const auto& kept : kept_) {
    if (kept != nullptr && kept->items() > 1) kept->choose_threshold(parallel_for);
  }
  items_.for_ranges(parallel_for, [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      kept_[items_[i].weight]->put_back(items_[i], own[i], &energies[places_[i]]);
    }
  });
}

Counted::Counted(Keeping* keeping, size_t weight) : kept_(keeping->kept_[weight].get()) {
  if (kept_ != nullptr) std::fill(counts_, counts_ + kDigits, 0);
}

Counted::~Counted() {
  if (kept_ != nullptr && kept_->items() > 1) kept_->add(counts_);
}

uint32_t Counted::floor() const { return kept_ == nullptr ? 0 : kept_->floor(); }

Split Counted::finish(const Item& item) {
  if (kept_ == nullptr || kept_->items() > 1) return {0.0, 0.0};
  if (!kept_->choose_digit(counts_)) {
    kept_->count_all();
    std::fill(counts_, counts_ + kDigits, 0);
    kept_->count(item, counts_);
    kept_->choose_digit(counts_);
  }
  Split energies = kept_->take_out(item, 0);
  kept_->choose_threshold(nullptr);
  kept_->put_back(item, 0, &energies);
  return energies;
}

}  // namespace modfast
