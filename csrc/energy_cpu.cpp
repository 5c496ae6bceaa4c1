// Block sums and block scalings on the CPU.
//
// The rows are taken label by label, in chunks. Within a chunk, sum[j] += w[i, j] * v[i, j] runs along
// memory without a look at the column labels; these are applied once for each chunk, to the sums. The
// chunks depend on the shape and the labels alone, and their results are added in a fixed order, so that
// the same bits come out for any number of threads.
#include "energy.h"

#include "cpu_dispatch.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>

namespace modfast {
namespace {

constexpr int64_t kChunkRows = 128;           // enough rows to hide the cost of applying the column labels
constexpr int64_t kGatheredRows = 4;          // strided lines that are gathered before they are summed
constexpr int64_t kNumbersPerThread = 16384;  // waking a thread for fewer costs more than it saves
constexpr int64_t kTileCols = 1024;  // float64 sums and one line of weights stay in the first-level cache

// Where the numbers of a strided line are gathered, a few at a time, to be worked on as a contiguous one.
template <class T>
struct Line {
  alignas(64) T gathered[kTileCols];

  const T* read(const T* data, int64_t stride, int64_t n) {
    if (stride == 1) return data;
    for (int64_t j = 0; j < n; ++j) gathered[j] = data[j * stride];
    return gathered;
  }

  // Calls make(line) with the place where the line is made, and stores what it made.
  template <class F>
  void write(T* data, int64_t stride, int64_t n, const F& make) {
    if (stride == 1) return make(data);
    read(data, stride, n);
    make(gathered);
    for (int64_t j = 0; j < n; ++j) data[j * stride] = gathered[j];
  }
};

// Rows grouped by label (order), cut into chunks that hold one label each.
struct RowChunks {
  struct Chunk {
    int64_t begin, end;
    int32_t label;
  };
  std::vector<int64_t> order;
  std::vector<Chunk> chunks;

  explicit RowChunks(const Labels& labels) : order(labels.rows.size()) {
    std::vector<int64_t> next(static_cast<size_t>(labels.count) + 1, 0);
    for (int32_t label : labels.rows) ++next[label + 1];
    for (int32_t label = 0; label < labels.count; ++label) next[label + 1] += next[label];
    for (int32_t label = 0; label < labels.count; ++label) {
      for (int64_t begin = next[label]; begin < next[label + 1]; begin += kChunkRows) {
        chunks.push_back({begin, std::min(begin + kChunkRows, next[label + 1]), label});
      }
    }
    for (size_t row = 0; row < labels.rows.size(); ++row) order[next[labels.rows[row]]++] = row;
  }
};

// The columns cut into tiles, and each tile's columns grouped by label.
struct ColumnTiles {
  struct Run {  // columns of one label: order[begin] to order[end - 1], counted from the tile's first
    int32_t label;
    int64_t begin, end;
  };
  std::vector<int32_t> order;
  std::vector<Run> runs;
  std::vector<int64_t> first_run{0};  // of each tile, and at last the number of runs

  explicit ColumnTiles(const Labels& labels) : order(labels.cols.size()) {
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

// The work of one matrix: every pair of a row chunk and a column tile is an item.
struct Grid {
  const Labels& labels;
  RowChunks rows;
  ColumnTiles cols;
  int64_t tiles;

  explicit Grid(const Labels& labels)
      : labels(labels), rows(labels), cols(labels), tiles(int64_t(cols.first_run.size()) - 1) {}

  int64_t numbers() const { return int64_t(labels.rows.size()) * int64_t(labels.cols.size()); }
  int64_t items() const { return int64_t(rows.chunks.size()) * tiles; }
  int64_t sums() const { return int64_t(rows.chunks.size() * cols.runs.size()); }
  const RowChunks::Chunk& chunk(int64_t item) const { return rows.chunks[item / tiles]; }
  int64_t first_col(int64_t item) const { return item % tiles * kTileCols; }
  int64_t num_cols(int64_t item) const {
    return std::min(kTileCols, int64_t(labels.cols.size()) - first_col(item));
  }
};

// Calls f(item) for each of the items, which together hold so many numbers.
template <class F>
void for_each(ParallelFor parallel_for, int64_t items, int64_t numbers, const F& f) {
  parallel_for(
      items, std::max<int64_t>(1, items * kNumbersPerThread / std::max<int64_t>(1, numbers)),
      [](int64_t begin, int64_t end, void* context) {
        for (int64_t i = begin; i < end; ++i) (*static_cast<const F*>(context))(i);
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}

template <class F>
void with_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float32: return f(float{});
    case DType::float64: return f(double{});
    case DType::float16: return f(Half{});
    case DType::bfloat16: return f(BFloat{});
  }
}

template <class T>
T* line_at(const Operand& operand, int64_t row, int64_t col, size_t plane) {
  return static_cast<T*>(operand.data) + operand.plane_offsets[plane] + row * operand.row_stride +
         col * operand.col_stride;
}

// sums[j] += w[i, j]^2 over the item's rows i.
template <class T>
void add_item_squares(const Grid& grid, int64_t item, const Operand& w, double* sums) {
  const auto& lines = lines_in_use().of<T>();
  const auto& chunk = grid.chunk(item);
  const int64_t first = grid.first_col(item), n = grid.num_cols(item);
  // Strided lines have to be gathered, so fewer of them are at hand at once.
  const int64_t at_once = w.col_stride == 1 ? kChunkRows : kGatheredRows;
  Line<T> gathered[kGatheredRows];
  const T* rows[kChunkRows];
  for (size_t plane = 0; plane < w.plane_offsets.size(); ++plane) {
    for (int64_t i = chunk.begin; i < chunk.end; i += at_once) {
      const int64_t count = std::min(at_once, chunk.end - i);
      for (int64_t r = 0; r < count; ++r) {
        const T* line = line_at<T>(w, grid.rows.order[i + r], first, plane);
        rows[r] = w.col_stride == 1 ? line : gathered[r].read(line, w.col_stride, n);
      }
      lines.add_squares(rows, count, sums, n);
    }
  }
}

// sums[j] += w[i, j] * v[i, j] over the item's rows i.
template <class T>
void add_item_products(const Grid& grid, int64_t item, const Operand& w, const Operand& v, double* sums) {
  const auto& lines = lines_in_use().of<T>();
  const auto& chunk = grid.chunk(item);
  const int64_t first = grid.first_col(item), n = grid.num_cols(item);
  Line<T> w_line, v_line;
  for (size_t plane = 0; plane < w.plane_offsets.size(); ++plane) {
    for (int64_t i = chunk.begin; i < chunk.end; ++i) {
      const int64_t row = grid.rows.order[i];
      lines.add_products(w_line.read(line_at<T>(w, row, first, plane), w.col_stride, n),
                         v_line.read(line_at<T>(v, row, first, plane), v.col_stride, n), sums, n);
    }
  }
}

// For each run of the item's columns, the sum of w * v over it and the item's rows; no v means w itself.
template <class T>
void item_inner(const Grid& grid, int64_t item, const Operand& w, const Operand* v, double* all_sums) {
  alignas(64) double column_sums[kTileCols];
  std::fill(column_sums, column_sums + grid.num_cols(item), 0.0);
  if (v == nullptr) {
    add_item_squares<T>(grid, item, w, column_sums);
  } else {
    add_item_products<T>(grid, item, w, *v, column_sums);
  }
  const int64_t tile = item % grid.tiles;
  double* sums = all_sums + item / grid.tiles * int64_t(grid.cols.runs.size());
  for (int64_t r = grid.cols.first_run[tile]; r < grid.cols.first_run[tile + 1]; ++r) {
    const auto& run = grid.cols.runs[r];
    const int32_t* order = grid.cols.order.data();
    double parts[4] = {};  // four sums, since each addition waits for the one before
    int64_t j = run.begin;
    for (; j + 4 <= run.end; j += 4) {
      for (int64_t part = 0; part < 4; ++part) parts[part] += column_sums[order[j + part]];
    }
    for (; j < run.end; ++j) parts[0] += column_sums[order[j]];
    sums[r] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
  }
}

// Whether float holds every factor with all its digits.
bool fit_in_float(const double* factors, int64_t n) {
  using Limits = std::numeric_limits<float>;
  return std::all_of(factors, factors + n, [](double factor) {
    const double size = std::abs(factor);
    return !std::isfinite(factor) || size == 0.0 || (size >= Limits::min() && size <= Limits::max());
  });
}

enum class Into { fresh, sum };

// Products with factors that float cannot hold, as those of very small or very large weights: rare, so
// without vectors. A half goes through float, as everywhere.
template <class T>
void scale_wide(const T* w, const double* factor, T* out, int64_t n, Into into) {
  for (int64_t j = 0; j < n; ++j) {
    const double product = widen(w[j]) * factor[j];
    narrow(static_cast<Compute<T>>(into == Into::sum ? widen(out[j]) + product : product), out[j]);
  }
}

// out = w * factors[row label, column label] on the item's rows and columns, or that added to it.
template <class T>
void item_scale(const Grid& grid, int64_t item, const Operand& w, const double* factors, bool wide,
                const Operand& out, Into into) {
  const auto& lines = lines_in_use().of<T>();
  const auto& chunk = grid.chunk(item);
  const int64_t first = grid.first_col(item), n = grid.num_cols(item);
  alignas(64) double factor[kTileCols];
  alignas(64) Compute<T> narrow_factor[kTileCols];
  const double* of_row = factors + int64_t(chunk.label) * grid.labels.count;
  for (int64_t j = 0; j < n; ++j) {
    factor[j] = of_row[grid.labels.cols[first + j]];
    narrow_factor[j] = static_cast<Compute<T>>(factor[j]);
  }
  Line<T> w_line, out_line;
  for (size_t plane = 0; plane < w.plane_offsets.size(); ++plane) {
    for (int64_t i = chunk.begin; i < chunk.end; ++i) {
      const int64_t row = grid.rows.order[i];
      const int64_t next_row = grid.rows.order[i + 1 < chunk.end ? i + 1 : i];
      const T* line = w_line.read(line_at<T>(w, row, first, plane), w.col_stride, n);
      // What is gathered is in the cache already.
      const T* next_w = w.col_stride == 1 ? line_at<T>(w, next_row, first, plane) : line;
      out_line.write(line_at<T>(out, row, first, plane), out.col_stride, n, [&](T* made) {
        const T* next_out = out.col_stride == 1 ? line_at<T>(out, next_row, first, plane) : made;
        if (wide) {
          scale_wide(line, factor, made, n, into);
        } else if (into == Into::sum) {
          lines.add_scaled(line, narrow_factor, made, n, next_w, next_out);
        } else {
          lines.scale(line, narrow_factor, made, n, next_w);
        }
      });
    }
  }
}

// The items' sums, added in a fixed order into the count x count matrix of blocks.
void add_up(const Grid& grid, const double* sums, double* blocks) {
  const int64_t count = grid.labels.count;
  std::fill(blocks, blocks + count * count, 0.0);
  for (const auto& chunk : grid.rows.chunks) {
    for (const auto& run : grid.cols.runs) blocks[chunk.label * count + run.label] += *sums++;
  }
}

// The enmeshment of block energies whose last row and column are "in no cluster", and its derivative
// with respect to each weight of a block, divided by that weight: 2 (C - [same cluster]) / total.
double enmeshment(const std::vector<double>& blocks, int64_t count, double scale,
                  std::vector<double>& factors) {
  double total = 0.0, crossing = 0.0;
  for (int64_t a = 0; a < count; ++a) {
    for (int64_t b = 0; b < count; ++b) {
      const double energy = blocks[a * count + b];
      total += energy;
      // Infinity times zero is NaN, so that an infinite weight inside a cluster is not hidden.
      crossing += energy * (a == b && a + 1 < count ? 0.0 : 1.0);
    }
  }
  if (total == 0.0) total = 1.0;  // no weight: enmeshment 0 and, times weights of zero, gradient 0
  const double loss = crossing / total;
  for (int64_t a = 0; a < count; ++a) {
    for (int64_t b = 0; b < count; ++b) {
      const bool same = a == b && a + 1 < count;
      factors[a * count + b] = scale * 2.0 * (same ? -loss : 1.0 - loss) / total;
    }
  }
  return loss;
}

}  // namespace

void block_inner(const Labels& labels, const Operand& w, const Operand* v, double* blocks,
                 ParallelFor parallel_for) {
  const Grid grid(labels);
  std::vector<double> sums(grid.sums());
  with_dtype(w.dtype, [&](auto type) {
    for_each(parallel_for, grid.items(), grid.numbers(),
             [&](int64_t item) { item_inner<decltype(type)>(grid, item, w, v, sums.data()); });
  });
  add_up(grid, sums.data(), blocks);
}

void block_scale(const Labels& labels, const Operand& w, const double* factors, const Operand& out,
                 ParallelFor parallel_for) {
  const Grid grid(labels);
  const bool wide = !fit_in_float(factors, int64_t(labels.count) * labels.count);
  with_dtype(w.dtype, [&](auto type) {
    for_each(parallel_for, grid.items(), grid.numbers(), [&](int64_t item) {
      item_scale<decltype(type)>(grid, item, w, factors, wide, out, Into::fresh);
    });
  });
}

void accumulate_enmeshment(const std::vector<EnmeshmentTerm>& terms, double scale, double* losses,
                           ParallelFor parallel_for) {
  // Room for the factors first: a number of clusters that asks for too much fails before any work.
  std::vector<std::vector<double>> factors;
  factors.reserve(terms.size());
  for (const auto& term : terms) factors.emplace_back(int64_t(term.labels.count) * term.labels.count);

  // All terms' items stand in one row, so that many small matrices fill the threads as one large one does.
  std::vector<Grid> grids;
  std::vector<int64_t> first_item{0}, first_sum{0};
  int64_t numbers = 0;
  grids.reserve(terms.size());
  for (const auto& term : terms) {
    grids.emplace_back(term.labels);
    numbers += grids.back().numbers();
    first_item.push_back(first_item.back() + grids.back().items());
    first_sum.push_back(first_sum.back() + grids.back().sums());
  }
  const auto for_each_item = [&](const auto& f) {
    for_each(parallel_for, first_item.back(), numbers, [&](int64_t item) {
      const size_t t = std::upper_bound(first_item.begin(), first_item.end(), item) - first_item.begin() - 1;
      with_dtype(terms[t].weight.dtype, [&](auto type) { f(type, t, item - first_item[t]); });
    });
  };

  std::vector<double> sums(first_sum.back());
  for_each_item([&](auto type, size_t t, int64_t item) {
    item_inner<decltype(type)>(grids[t], item, terms[t].weight, nullptr, sums.data() + first_sum[t]);
  });

  std::vector<char> wide(terms.size());  // not bool, whose vector packs bits
  for (size_t t = 0; t < terms.size(); ++t) {
    const int64_t count = terms[t].labels.count;
    std::vector<double> blocks(count * count);
    add_up(grids[t], sums.data() + first_sum[t], blocks.data());
    losses[t] = enmeshment(blocks, count, scale, factors[t]);
    wide[t] = !fit_in_float(factors[t].data(), count * count);
  }

  for_each_item([&](auto type, size_t t, int64_t item) {
    item_scale<decltype(type)>(grids[t], item, terms[t].weight, factors[t].data(), wide[t], terms[t].grad,
                               Into::sum);
  });
}

}  // namespace modfast
