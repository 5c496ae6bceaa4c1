// The weights of a step, cut into items: several whole rows of one weight, or a part of a long row.
//
// The items depend on the shapes alone, and what they sum is added in their order, so that the result has the
// same bits for any number of threads.
#pragma once

#include "common/numbers.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace modfast {

constexpr int64_t kItemNumbers = 32768;
constexpr int64_t kNumbersPerThread = 32768;  // waking a thread for fewer costs more than it saves

struct Item {
  size_t weight;  // its index
  int64_t first_row, last_row, first_col, last_col;

  int64_t numbers() const { return (last_row - first_row) * (last_col - first_col); }
};

class Items {
 public:
  void add(size_t index, int64_t rows, int64_t cols, int64_t planes) {
    const int64_t tile = std::min(cols, kItemNumbers);
    const int64_t each = std::max<int64_t>(1, kItemNumbers / std::max<int64_t>(1, tile * planes));
    for (int64_t row = 0; row < rows; row += each) {
      for (int64_t col = 0; col < cols; col += tile) {
        push_back({index, row, std::min(row + each, rows), col, std::min(col + tile, cols)}, planes);
      }
    }
  }
  void push_back(const Item& item, int64_t planes) {
    items_.push_back(item);
    ends_.push_back((ends_.empty() ? 0 : ends_.back()) + item.numbers() * planes);
  }
  size_t size() const { return items_.size(); }
  const Item& operator[](size_t i) const { return items_[i]; }

  // Calls f(first, last) for ranges of items, in parallel, such that threads have equal numbers of numbers.
  template <class F>
  void for_ranges(ParallelFor parallel_for, const F& f) const {
    if (items_.empty()) return;
    struct Context {
      const F& f;
      const std::vector<int64_t>& ends;
    } context{f, ends_};
    // An item belongs to the range of numbers in which it ends.
    parallel_for(
        ends_.back(), kNumbersPerThread,
        [](int64_t begin, int64_t end, void* given) {
          const auto& loop = *static_cast<const Context*>(given);
          const auto first = std::upper_bound(loop.ends.begin(), loop.ends.end(), begin);
          const auto last = std::upper_bound(first, loop.ends.end(), end);
          if (first != last) loop.f(first - loop.ends.begin(), last - loop.ends.begin());
        },
        &context);
  }

 private:
  std::vector<Item> items_;
  std::vector<int64_t> ends_;  // the sum of all items' numbers up to the end of each
};

}  // namespace modfast
