// The work on labelled matrices, cut into items, and the two passes over an item: sums and scalings.
//
// For sums, rows are grouped by label into chunks, and columns are cut into tiles; an item is a chunk and a
// tile. Within an item, sum[j] += w[i, j] * v[i, j] runs along memory without reading the column labels;
// these are applied once for each item, to the sums. The items depend on the shape and the labels alone, and
// their results are added in a fixed order, so the result has the same bits for any number of threads.
//
// Scaling by the two factors of the loss reads the label of each weight instead. Then rows can be taken in
// the order of memory, which is far faster if they are not in the cache.
#pragma once

#include "common/parallel.h"
#include "energy/energy.h"

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace modfast {

constexpr int64_t kChunkRows = 128;      // enough rows to make the cost of applying the column labels small
constexpr int64_t kLeastChunkRows = 32;  // of small matrices, so that threads can share them evenly
constexpr int64_t kTileCols = 4096;  // long runs of memory; the float64 sums stay in the second-level cache
constexpr int64_t kWindowRows =
    512;  // or more, to hold kRowsOfLabel rows of each label, so that chunks are not too small
constexpr int64_t kLeastWindowRows = 64;
constexpr int64_t kRowsOfLabel = 32;
constexpr int64_t kNumbersPerThread = 65536;  // waking a thread for fewer costs more than it saves
constexpr int64_t kSmallNumbers = 1 << 20;    // one thread takes less than a millisecond for them
constexpr int64_t kStridedCost = 16;      // gathering numbers that lie apart can take this many times as long
constexpr int64_t kStripNumbers = 16384;  // the least numbers of a strip
constexpr int64_t kStripCols = 16384;     // a strip's maximum number of columns

// Rows grouped by label within windows of the matrix (order), cut into chunks that hold one label each.
struct RowChunks {
  struct Chunk {
    int64_t begin, end;
    int32_t label;
  };
  std::vector<int64_t> order;
  std::vector<Chunk> chunks;

  explicit RowChunks(const Labels& labels);
};

struct Grid {
  const Labels& labels;
  RowChunks rows;
  int64_t tiles;

  explicit Grid(const Labels& labels)
      : labels(labels), rows(labels), tiles((int64_t(labels.cols.size()) + kTileCols - 1) / kTileCols) {}

  int64_t items() const { return int64_t(rows.chunks.size()) * tiles; }
  const RowChunks::Chunk& chunk(int64_t item) const { return rows.chunks[item / tiles]; }
  int64_t first_col(int64_t item) const { return item % tiles * kTileCols; }
  int64_t num_cols(int64_t item) const {
    return std::min(kTileCols, int64_t(labels.cols.size()) - first_col(item));
  }
  int64_t numbers(int64_t item) const { return (chunk(item).end - chunk(item).begin) * num_cols(item); }
};

// The sum of an item's column sums by kind: of columns with the label of its rows, and of the others.
Split item_split(const Grid& grid, int64_t item, const double* sums);

// sums[j] = the sum of w * v over the item's rows, for each of its columns; without v, of w * w.
void item_column_sums(const Grid& grid, int64_t item, const Operand& w, const Operand* v, double* sums);

// out = w * factor[j] on the item's rows and columns; wide: whether some factor needs a double.
void item_scale(const Grid& grid, int64_t item, const Operand& w, const double* factor, bool wide,
                const Operand& out);

// The same matrix cut into strips: several whole rows, or part of a very long row.
struct Strips {
  int64_t rows, cols, rows_each, tiles;

  explicit Strips(const Labels& labels);
  int64_t items() const { return (rows + rows_each - 1) / rows_each * tiles; }
  int64_t first_row(int64_t item) const { return item / tiles * rows_each; }
  int64_t last_row(int64_t item) const { return std::min(first_row(item) + rows_each, rows); }
  int64_t first_col(int64_t item) const { return item % tiles * kStripCols; }
  int64_t last_col(int64_t item) const { return std::min(first_col(item) + kStripCols, cols); }
  int64_t numbers(int64_t item) const {
    return (last_row(item) - first_row(item)) * (last_col(item) - first_col(item));
  }
};

// out = w times the factor of its kind, on a strip's rows and columns; or out += that.
void strip_scale_split(const Strips& strips, int64_t item, const Labels& labels, const Operand& w,
                       Split factors, const Operand& out, Into into);
// The items of one pass over one or several matrices, numbered in one sequence, so that many small matrices
// occupy all threads as one large one does. Each item has a cost, by which threads share the items evenly.
class Items {
 public:
  // Appends the items of a matrix, which is one plane of numbers or several, read or written where these
  // operands are.
  template <class Cut>
  void add(const Cut& cut, std::initializer_list<const Operand*> operands) {
    int64_t each = int64_t((*operands.begin())->plane_offsets.size());
    const auto is_strided = [](const Operand* operand) { return operand->col_stride != 1; };
    if (std::any_of(operands.begin(), operands.end(), is_strided)) each *= kStridedCost;
    for (int64_t item = 0; item < cut.items(); ++item) {
      costs_.push_back(costs_.back() + std::max<int64_t>(1, cut.numbers(item) * each));
    }
    first_.push_back(size());
  }
  int64_t size() const { return int64_t(costs_.size()) - 1; }
  int64_t cost() const { return costs_.back(); }
  int64_t first(size_t matrix) const { return first_[matrix]; }
  size_t matrix_of(int64_t item) const {
    return static_cast<size_t>(std::upper_bound(first_.begin(), first_.end(), item) - first_.begin() - 1);
  }
  // The first item that begins at this cost or later.
  int64_t from(int64_t cost) const {
    return std::lower_bound(costs_.begin(), costs_.end(), cost) - costs_.begin();
  }

 private:
  std::vector<int64_t> costs_{0};  // the cost of all items before each one, and finally of all
  std::vector<int64_t> first_{0};
};

// Calls f(item) for each item. If backward is set, a thread takes its items from the last to the first: those
// that the pass before read last are still in the cache.
template <class F>
void for_each_item(ParallelFor parallel_for, const Items& items, bool backward, const F& f) {
  struct Context {
    const Items& items;
    const F& f;
    bool backward;
  } context{items, f, backward};
  const LoopBody body = [](int64_t from, int64_t to, void* given) {
    const auto& loop = *static_cast<const Context*>(given);
    // Every range but the last ends where the next begins, so that each item is taken once.
    const int64_t begin = loop.items.from(from);
    const int64_t end = to == loop.items.cost() ? loop.items.size() : loop.items.from(to);
    for (int64_t i = begin; i < end; ++i) loop.f(loop.backward ? begin + end - 1 - i : i);
  };
  if (items.cost() <= kSmallNumbers) {
    small_parallel_for(parallel_for, items.cost(), kNumbersPerThread, body, &context);
  } else {
    parallel_for(items.cost(), kNumbersPerThread, body, &context);
  }
}

}  // namespace modfast
