// The preparation, on the host, of a row's walk for the CUDA kernel.
#pragma once

#include "circuits/moves.h"
#include "circuits/walk_threads.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

namespace modfast {

// Number of threads of the block that walks: whole warps, one thread for each input or for several inputs.
constexpr int64_t kWalkThreads = 1024;
inline int64_t walk_threads(int64_t stride) { return std::min(kWalkThreads, (stride + 31) / 32 * 32); }

class WalkPlan {
 public:
  WalkPlan(const Tail& tail, const Moves& moves, int64_t layer, int64_t row, int64_t begin, int64_t end,
           const Bounds& bounds)
      : changes_(add(moves.changes)),
        hidden_(add(moves.hidden)),
        others_(add(moves.others)),
        own_(add(moves.own)),
        still_(add(moves.still)) {
    const TailLayer& at = tail.layers[layer];
    walk_.after = moves.after;
    walk_.pre = at.pre + row * tail.stride;
    walk_.weights = at.weights + row * at.cols;
    walk_.inputs = inputs_of(tail, layer);
    walk_.begin = begin;
    walk_.end = end;
    walk_.stride = tail.stride;
    walk_.logits = tail.layers.back().pre;
    walk_.still_count = static_cast<int64_t>(moves.still.size());
    walk_.still_before = moves.still_before;
    walk_.bounds = bounds;
  }

  // The tables that the device needs a copy of.
  const std::vector<int64_t>& tables() const { return tables_; }
  // How many numbers the device needs memory for.
  int64_t numbers() const { return still_numbers() + room_of(walk_, walk_threads(walk_.stride)); }

  // The walk, given that copy and that memory.
  Walk walk(const int64_t* tables, double* numbers) const {
    Walk walk = walk_;
    Downstream& after = walk.after;
    after.changes = reinterpret_cast<const Change*>(tables + changes_);
    after.hidden = reinterpret_cast<const Moved*>(tables + hidden_);
    after.others = reinterpret_cast<const Moved*>(tables + others_);
    if (after.own) after.own = reinterpret_cast<const Moved*>(tables + own_);
    walk.still = tables + still_;
    walk.still_sums = numbers;
    after.largest = numbers;
    after.sum = numbers + walk.stride;
    after.logsumexp = numbers + 2 * walk.stride;
    if (walk.bounds.accuracy) {
      after.largest_before = numbers + 3 * walk.stride;
      after.largest_after = numbers + 4 * walk.stride;
    }
    walk.room = numbers + still_numbers();
    return walk;
  }

 private:
  int64_t still_numbers() const { return (walk_.bounds.accuracy ? 5 : 3) * walk_.stride; }

  // Appends a table; returns its position in tables_.
  template <class T>
  int64_t add(const std::vector<T>& table) {
    static_assert(sizeof(T) % sizeof(int64_t) == 0 && std::is_trivially_copyable_v<T>, "copied in words");
    const size_t begin = tables_.size();
    tables_.resize(begin + table.size() * sizeof(T) / sizeof(int64_t));
    if (!table.empty()) std::memcpy(tables_.data() + begin, table.data(), table.size() * sizeof(T));
    return static_cast<int64_t>(begin);
  }

  Walk walk_;
  std::vector<int64_t> tables_;
  int64_t changes_, hidden_, others_, own_, still_;
};

}  // namespace modfast
