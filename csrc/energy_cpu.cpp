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
constexpr int64_t kRowsAtOnce = 4;            // lines that are converted before they are summed
constexpr int64_t kNumbersPerThread = 16384;  // waking a thread for fewer costs more than it saves
constexpr int64_t kTileCols = 1024;  // float64 sums and one line of weights stay in the first-level cache

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

// What a dtype is computed in: its products with a factor, not its sums, which are float64 for all.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

void to_compute(const Lines& lines, const Half* in, float* out, int64_t n) {
  lines.half_to_float(reinterpret_cast<const uint16_t*>(in), out, n);
}
void to_compute(const Lines& lines, const BFloat* in, float* out, int64_t n) {
  lines.bfloat_to_float(reinterpret_cast<const uint16_t*>(in), out, n);
}
void from_compute(const Lines& lines, const float* in, Half* out, int64_t n) {
  lines.float_to_half(in, reinterpret_cast<uint16_t*>(out), n);
}
void from_compute(const Lines& lines, const float* in, BFloat* out, int64_t n) {
  lines.float_to_bfloat(in, reinterpret_cast<uint16_t*>(out), n);
}

void add_squares(const Lines& lines, const float* const* rows, int64_t count, double* sum, int64_t n) {
  lines.add_squares_float(rows, count, sum, n);
}
void add_squares(const Lines& lines, const double* const* rows, int64_t count, double* sum, int64_t n) {
  lines.add_squares_double(rows, count, sum, n);
}
void add_product(const Lines& lines, const float* w, const float* v, double* sum, int64_t n) {
  lines.add_product_float(w, v, sum, n);
}
void add_product(const Lines& lines, const double* w, const double* v, double* sum, int64_t n) {
  lines.add_product_double(w, v, sum, n);
}
void scale(const Lines& lines, const float* w, const float* factor, float* out, int64_t n,
           const float* next_w) {
  lines.scale_float(w, factor, out, n, next_w);
}
void scale(const Lines& lines, const double* w, const double* factor, double* out, int64_t n,
           const double* next_w) {
  lines.scale_double(w, factor, out, n, next_w);
}
void add_scaled(const Lines& lines, const float* w, const float* factor, float* out, int64_t n,
                const float* next_w, const float* next_out) {
  lines.add_scaled_float(w, factor, out, n, next_w, next_out);
}
void add_scaled(const Lines& lines, const double* w, const double* factor, double* out, int64_t n,
                const double* next_w, const double* next_out) {
  lines.add_scaled_double(w, factor, out, n, next_w, next_out);
}

// Factors that float cannot hold, as those of very small or very large weights: rare, so without vectors.
void scale(const Lines&, const float* w, const double* factor, float* out, int64_t n, const float*) {
  for (int64_t j = 0; j < n; ++j) out[j] = static_cast<float>(w[j] * factor[j]);
}
void add_scaled(const Lines&, const float* w, const double* factor, float* out, int64_t n, const float*,
                const float*) {
  for (int64_t j = 0; j < n; ++j) out[j] = static_cast<float>(out[j] + w[j] * factor[j]);
}

// Part of one row of a matrix, presented as contiguous numbers of the compute type.
template <class T>
struct Line {
  alignas(64) Compute<T> buffer[kTileCols];
  alignas(64) T gathered[kTileCols];

  const Compute<T>* read(const Lines& lines, const T* data, int64_t stride, int64_t n) {
    if (stride != 1) {
      for (int64_t j = 0; j < n; ++j) gathered[j] = data[j * stride];
      data = gathered;
    }
    if constexpr (std::is_same_v<T, Compute<T>>) {
      return data;
    } else {
      to_compute(lines, data, buffer, n);
      return buffer;
    }
  }

  // Calls compute(line) with the place where the line is made, and stores what it made.
  template <class F>
  void write(const Lines& lines, T* data, int64_t stride, int64_t n, bool keep, const F& compute) {
    if constexpr (std::is_same_v<T, Compute<T>>) {
      if (stride == 1) return compute(data);
    }
    if (keep) {
      const Compute<T>* old = read(lines, data, stride, n);
      if (old != buffer) std::copy(old, old + n, buffer);
    }
    compute(buffer);
    T* made = stride == 1 ? data : gathered;
    if constexpr (std::is_same_v<T, Compute<T>>) {
      std::copy(buffer, buffer + n, made);
    } else {
      from_compute(lines, buffer, made, n);
    }
    if (stride != 1) {
      for (int64_t j = 0; j < n; ++j) data[j * stride] = gathered[j];
    }
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

// Where the line of that row will be read, if it is read where it lies; else a place that is in the cache.
template <class T>
const Compute<T>* next_line(const Operand& operand, int64_t row, int64_t col, size_t plane,
                            const Compute<T>* current) {
  if constexpr (std::is_same_v<T, Compute<T>>) {
    if (operand.col_stride == 1) return line_at<T>(operand, row, col, plane);
  }
  return current;
}

// sums[j] += w[i, j]^2 over the item's rows i.
template <class T>
void add_item_squares(const Grid& grid, int64_t item, const Operand& w, double* sums) {
  const Lines& lines = lines_in_use();
  const auto& chunk = grid.chunk(item);
  const int64_t first = grid.first_col(item), n = grid.num_cols(item);
  const int64_t* order = grid.rows.order.data() + chunk.begin;
  const int64_t count = chunk.end - chunk.begin;
  const Compute<T>* rows[kChunkRows];
  for (size_t plane = 0; plane < w.plane_offsets.size(); ++plane) {
    if constexpr (std::is_same_v<T, Compute<T>>) {
      if (w.col_stride == 1) {
        for (int64_t i = 0; i < count; ++i) rows[i] = line_at<T>(w, order[i], first, plane);
        add_squares(lines, rows, count, sums, n);
        continue;
      }
    }
    Line<T> made[kRowsAtOnce];
    for (int64_t i = 0; i < count; i += kRowsAtOnce) {
      const int64_t some = std::min(kRowsAtOnce, count - i);
      for (int64_t r = 0; r < some; ++r) {
        rows[r] = made[r].read(lines, line_at<T>(w, order[i + r], first, plane), w.col_stride, n);
      }
      add_squares(lines, rows, some, sums, n);
    }
  }
}

// sums[j] += w[i, j] * v[i, j] over the item's rows i.
template <class T>
void add_item_products(const Grid& grid, int64_t item, const Operand& w, const Operand& v, double* sums) {
  const Lines& lines = lines_in_use();
  const auto& chunk = grid.chunk(item);
  const int64_t first = grid.first_col(item), n = grid.num_cols(item);
  Line<T> w_line, v_line;
  for (size_t plane = 0; plane < w.plane_offsets.size(); ++plane) {
    for (int64_t i = chunk.begin; i < chunk.end; ++i) {
      const int64_t row = grid.rows.order[i];
      const auto* a = w_line.read(lines, line_at<T>(w, row, first, plane), w.col_stride, n);
      const auto* b = v_line.read(lines, line_at<T>(v, row, first, plane), v.col_stride, n);
      add_product(lines, a, b, sums, n);
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

// out = (add ? out : 0) + w * factors[row label, column label] on the item's rows and columns.
template <class T, class Factor>
void item_scale(const Grid& grid, int64_t item, const Operand& w, const double* factors, const Operand& out,
                bool add) {
  const Lines& lines = lines_in_use();
  const auto& chunk = grid.chunk(item);
  const int64_t first = grid.first_col(item), n = grid.num_cols(item);
  alignas(64) Factor factor[kTileCols];
  const double* of_row = factors + int64_t(chunk.label) * grid.labels.count;
  for (int64_t j = 0; j < n; ++j) factor[j] = static_cast<Factor>(of_row[grid.labels.cols[first + j]]);
  Line<T> w_line, out_line;
  for (size_t plane = 0; plane < w.plane_offsets.size(); ++plane) {
    for (int64_t i = chunk.begin; i < chunk.end; ++i) {
      const int64_t row = grid.rows.order[i];
      const int64_t next_row = grid.rows.order[i + 1 < chunk.end ? i + 1 : i];
      const auto* a = w_line.read(lines, line_at<T>(w, row, first, plane), w.col_stride, n);
      const auto* next_a = next_line<T>(w, next_row, first, plane, a);
      const auto write = [&](auto* made) {
        if (add) {
          add_scaled(lines, a, factor, made, n, next_a, next_line<T>(out, next_row, first, plane, made));
        } else {
          scale(lines, a, factor, made, n, next_a);
        }
      };
      out_line.write(lines, line_at<T>(out, row, first, plane), out.col_stride, n, add, write);
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
  const bool narrow = fit_in_float(factors, int64_t(labels.count) * labels.count);
  with_dtype(w.dtype, [&](auto type) {
    using T = decltype(type);
    const auto scale_item = narrow ? item_scale<T, Compute<T>> : item_scale<T, double>;
    for_each(parallel_for, grid.items(), grid.numbers(),
             [&](int64_t item) { scale_item(grid, item, w, factors, out, /*add=*/false); });
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

  std::vector<char> narrow(terms.size());  // not bool, whose vector packs bits
  for (size_t t = 0; t < terms.size(); ++t) {
    const int64_t count = terms[t].labels.count;
    std::vector<double> blocks(count * count);
    add_up(grids[t], sums.data() + first_sum[t], blocks.data());
    losses[t] = enmeshment(blocks, count, scale, factors[t]);
    narrow[t] = fit_in_float(factors[t].data(), count * count);
  }

  for_each_item([&](auto type, size_t t, int64_t item) {
    using T = decltype(type);
    const auto scale_item = narrow[t] ? item_scale<T, Compute<T>> : item_scale<T, double>;
    scale_item(grids[t], item, terms[t].weight, factors[t].data(), terms[t].grad, /*add=*/true);
  });
}

}  // namespace modfast
