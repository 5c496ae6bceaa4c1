// Keeping only the largest weights of a matrix: an exact selection by counting magnitudes (a radix select).
//
// While the weights are updated, the first digits of their magnitudes are counted. The digit that the
// smallest weight to keep has is then known: a second pass sets all weights below it to 0, and takes out
// those that have it, few as they are. Among these, the further digits are counted in turn, until the
// threshold is exact. Those that stay are put back.
#pragma once

#include "optim/items.h"
#include "optim/lines.h"
#include "optim/optim.h"

#include <atomic>
#include <memory>
#include <vector>

namespace modfast {

// One weight of which the largest elements are kept.
class Kept;

class Keeping {
 public:
  Keeping(const std::vector<Stepped>& weights, const Items& items);
  ~Keeping();

  bool keeps(size_t weight) const { return kept_[weight] != nullptr; }
  // Zeroes the weights that do not stay, once all digits are counted, and sets the energies of each item's.
  void finish(ParallelFor parallel_for, Split* energies);

 private:
  friend class Counted;
  std::vector<std::unique_ptr<Kept>> kept_;  // nullptr for weights that keep all
  Items items_;                              // those of weights with several items
  std::vector<size_t> places_;               // of these among all items
};

// What a thread counts in the items of one weight.
class Counted {
 public:
  Counted(Keeping* keeping, size_t weight);
  ~Counted();
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

  uint32_t floor() const;
  uint32_t* counts() { return kept_ == nullptr ? nullptr : counts_; }
  // Keeps the largest of a weight that is one item, and returns the energies of what stays; nothing to do for
  // others.
  Split finish(const Item& item);

 private:
  Kept* kept_;
  uint32_t counts_[kDigits];
};

}  // namespace modfast
