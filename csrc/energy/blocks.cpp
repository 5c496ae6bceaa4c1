// Sums and scalings by pair of clusters: block energies, and the derivatives of functions of them.
#include "energy/items.h"

#include <algorithm>

namespace modfast {
namespace {

// The columns of each tile grouped by label.
struct ColumnRuns {
  struct Run {  // columns of one label: order[begin] to order[end - 1], counted from the tile's first column
    int32_t label;
    int64_t begin, end;
  };
  std::vector<int32_t> order;
  std::vector<Run> runs;
  std::vector<int64_t> first_run{0};  // for each tile, and finally the number of runs

  explicit ColumnRuns(const Labels& labels) : order(labels.cols.size()) {
    std::vector<int64_t> next(static_cast<size_t>(labels.count) + 1);
    for (int64_t first = 0; first < int64_t(order.size()); first += kTileCols) {
      const int64_t last = std::min(first + kTileCols, int64_t(order.size()));
      std::fill(next.begin(), next.end(), 0);
      for (int64_t j = first; j < last; ++j) ++next[labels.cols[j] + 1];
      next[0] = first;
      for (int32_t label = 0; label < labels.count; ++label) {
        next[label + 1] += next[label];
        if (next[label + 1] > next[label]) runs.push_back({label, next[label], next[label + 1]});
      }
      for (int64_t j = first; j < last; ++j) order[next[labels.cols[j]]++] = static_cast<int32_t>(j - first);
      first_run.push_back(int64_t(runs.size()));
    }
  }
};

// Adds up the column sums of a run, in four sums at once, since each addition waits for the one before.
double run_sum(const double* column_sums, const int32_t* order, const ColumnRuns::Run& run) {
  double parts[4] = {};
  int64_t j = run.begin;
  for (; j + 4 <= run.end; j += 4) {
    for (int64_t part = 0; part < 4; ++part) parts[part] += column_sums[order[j + part]];
  }
  for (; j < run.end; ++j) parts[0] += column_sums[order[j]];
  return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

}  // namespace

void block_inner(const Labels& labels, const Operand& w, const Operand* v, double* blocks,
                 ParallelFor parallel_for) {
  const Grid grid(labels);
  const ColumnRuns columns(labels);
  const int64_t num_runs = int64_t(columns.runs.size()), count = labels.count;
  std::vector<double> sums(grid.rows.chunks.size() * columns.runs.size());
  Items items;
  items.add(grid, {&w, v == nullptr ? &w : v});
  for_each_item(parallel_for, items, false, [&](int64_t item) {
    alignas(64) double column_sums[kTileCols];
    item_column_sums(grid, item, w, v, column_sums);
    const int64_t tile = item % grid.tiles, chunk = item / grid.tiles;
    for (int64_t r = columns.first_run[tile]; r < columns.first_run[tile + 1]; ++r) {
      sums[chunk * num_runs + r] = run_sum(column_sums, columns.order.data(), columns.runs[r]);
    }
  });
  std::fill(blocks, blocks + count * count, 0.0);
  const double* next = sums.data();
  for (const auto& chunk : grid.rows.chunks) {
    for (const auto& run : columns.runs) blocks[chunk.label * count + run.label] += *next++;
  }
}

void block_scale(const Labels& labels, const Operand& w, const double* factors, const Operand& out,
                 ParallelFor parallel_for) {
  const Grid grid(labels);
  const int64_t count = labels.count;
  const bool wide =
      !std::all_of(factors, factors + count * count, [](double factor) { return fits_in_float(factor); });
  Items items;
  items.add(grid, {&w, &out});
  for_each_item(parallel_for, items, false, [&](int64_t item) {
    alignas(64) double factor[kTileCols];
    const double* of_row = factors + grid.chunk(item).label * count;
    const int32_t* cols = labels.cols.data() + grid.first_col(item);
    for (int64_t j = 0; j < grid.num_cols(item); ++j) factor[j] = of_row[cols[j]];
    item_scale(grid, item, w, factor, wide, out);
  });
}

}  // namespace modfast
