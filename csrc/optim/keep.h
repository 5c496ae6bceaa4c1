// Keeping only the largest weights of a matrix, exactly.
//
// From one step to the next the threshold moves little. So while the weights are updated, those above a
// window around the threshold of the step before stay, and the others become 0, except that those within the
// window are written out: among these few the exact threshold is found, and those that stay are put back. No
// further pass over the matrix is needed.
//
// If the threshold lies outside the window (or none is known yet), it is found by counting magnitudes (a
// radix select): first those of the whole matrix by their first digits, then by further digits those that
// have the threshold's. Zeroed weights are known again then: a weight that was 0 before the step is a
// function of its moments, and the others were written out.
#pragma once

#include "optim/digits.h"
#include "optim/items.h"
#include "optim/lines.h"
#include "optim/optim.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

namespace modfast {

// Numbers of one item that were taken out of the weight, in the order of memory, and their places in the
// item.
template <class T>
struct TakenOut {
  std::vector<uint32_t> places;
  std::vector<T> numbers;
  int64_t above = 0;  // how many numbers of the item were above the window

  size_t size() const { return places.size(); }
  void add(uint32_t place, T number) {
    places.push_back(place);
    numbers.push_back(number);
  }
};

// One weight of which the largest elements are kept. The steps are those of Keeping::finish.
class Kept {
 public:
  Kept(const Stepped& weight, size_t items) : s_(weight), items_(items) {}
  virtual ~Kept() = default;

  size_t items() const { return items_; }
  // Whether the weight is sifted while it is updated.
  bool has_window() const { return window_; }

  // Finds the threshold among what was sifted; false if it lies outside the window.
  virtual bool choose_in_window(ParallelFor parallel_for) = 0;
  // Undoes the sieve for an item.
  virtual void restore(const Item& item, size_t place, const AdamWOptions& options, uint32_t weight) = 0;
  // Counts the first digits of an item's magnitudes.
  virtual void count(const Item& item) = 0;
  virtual void choose_digit() = 0;
  virtual void take_out(const Item& item, size_t place) = 0;
  virtual void choose_threshold(ParallelFor parallel_for) = 0;
  virtual void put_back(const Item& item, size_t place) = 0;

 protected:
  const Stepped& s_;
  size_t items_;
  bool window_ = false;
};

template <class T>
class KeptOf final : public Kept {
 public:
  using Bits = BitsOf<T>;

  KeptOf(const Stepped& weight, size_t items);

  // Writes new weights to a line, or takes them out; `at` is the place of the first in the item.
  void sift(const T* made, T* line, int64_t n, int64_t at, size_t place) {
    TakenOut<T>& taken = taken_[place];
    uint32_t places[kSifted + 16];
    T numbers[kSifted + 16];
    for (int64_t begin = 0; begin < n; begin += kSifted) {
      Sifted<T> sifted{places, numbers, 0, 0};
      lines_.sift(made + begin, line + begin, std::min(kSifted, n - begin), low_, high_,
                  static_cast<uint32_t>(at + begin), &sifted);
      taken.places.insert(taken.places.end(), places, places + sifted.found);
      taken.numbers.insert(taken.numbers.end(), numbers, numbers + sifted.found);
      taken.above += sifted.above;
    }
  }

  bool choose_in_window(ParallelFor parallel_for) override;
  void restore(const Item& item, size_t place, const AdamWOptions& options, uint32_t weight) override;
  void count(const Item& item) override;
  void choose_digit() override;
  void take_out(const Item& item, size_t place) override;
  void choose_threshold(ParallelFor parallel_for) override;
  void put_back(const Item& item, size_t place) override;

 private:
  static constexpr int64_t kSifted = 1024;  // numbers that are sifted at once

  Bits smallest_of(int64_t largest, ParallelFor parallel_for);
  void set_threshold(Bits threshold, int64_t stay);
  void remember();

  const OptimLinesOf<T>& lines_ = optim_lines_in_use().of<T>();
  Bits low_ = 0, high_ = 0;  // the window
  std::vector<TakenOut<T>> taken_;
  std::unique_ptr<std::atomic<uint32_t>[]> counts_;
  uint32_t digit_ = 0;  // the first of the threshold
  int64_t stay_ = 0;    // how many of those that were taken out are put back
  Bits threshold_ = 0;
  int64_t equal_stay_ = 0;      // how many exactly at the threshold are put back
  std::vector<int64_t> ranks_;  // how many exactly at the threshold are in the items before
};

class Keeping {
 public:
  Keeping(const std::vector<Stepped>& weights, const Items& items);

  // nullptr for a weight that keeps all.
  Kept* of(size_t weight) { return kept_[weight].get(); }
  // Keeps the largest of a weight that is one item, which has been updated.
  void finish_alone(size_t weight, const Item& item, const AdamWOptions& options);
  // The same for all weights of several items, in parallel.
  void finish(const AdamWOptions& options, ParallelFor parallel_for);

 private:
  std::vector<std::unique_ptr<Kept>> kept_;
  Items items_;                // those of weights with several items
  std::vector<size_t> place_;  // of each among those of its weight
};

}  // namespace modfast
