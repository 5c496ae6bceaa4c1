#include "energy/items.h"
#include "energy/lines.h"

#include <cstddef>
#include <numeric>

namespace modfast {
namespace {

constexpr int64_t kGatheredRows = 4;  // strided rows that are gathered before they are summed

// Memory in which the numbers of a strided row are gathered, a tile at a time, into a contiguous one.
template <class T>
struct Line {
  alignas(64) T gathered[kTileCols];

  const T* read(const T* data, int64_t stride, int64_t n) {
    if (stride == 1) return data;
    for (int64_t j = 0; j < n; ++j) gathered[j] = data[j * stride];
    return gathered;
  }

  // Calls make(line) with memory for a contiguous row, and stores the result in the strided row.
  template <class F>
  void write(T* data, int64_t stride, int64_t n, const F& make) {
    if (stride == 1) return make(data);
    read(data, stride, n);
    make(gathered);
    for (int64_t j = 0; j < n; ++j) data[j * stride] = gathered[j];
  }
};

// sums[j] += w[i, j]^2 over the item's rows i.
template <class T>
void add_squares(const Grid& grid, int64_t item, const Operand& w, double* sums) {
  const auto& lines = lines_in_use().of<T>();
  const auto& chunk = grid.chunk(item);
  const int64_t first = grid.first_col(item), n = grid.num_cols(item);
  // Strided rows have to be gathered, so fewer of them are summed at once.
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
void add_products(const Grid& grid, int64_t item, const Operand& w, const Operand& v, double* sums) {
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

template <class T>
void scale(const Grid& grid, int64_t item, const Operand& w, const double* factor, bool wide,
           const Operand& out) {
  const auto& lines = lines_in_use().of<T>();
  const auto& chunk = grid.chunk(item);
  const int64_t first = grid.first_col(item), n = grid.num_cols(item);
  alignas(64) Compute<T> narrow_factor[kTileCols];
  for (int64_t j = 0; j < n; ++j) narrow_factor[j] = static_cast<Compute<T>>(factor[j]);
  Line<T> w_line, out_line;
  for (size_t plane = 0; plane < w.plane_offsets.size(); ++plane) {
    for (int64_t i = chunk.begin; i < chunk.end; ++i) {
      const int64_t row = grid.rows.order[i];
      const T* line = w_line.read(line_at<T>(w, row, first, plane), w.col_stride, n);
      out_line.write(line_at<T>(out, row, first, plane), out.col_stride, n, [&](T* made) {
        if (!wide) return lines.scale(line, narrow_factor, made, n);
        // Rare (for very small or very large weights), so without vectors.
        for (int64_t j = 0; j < n; ++j) put_scaled(line[j], factor[j], false, made[j]);
      });
    }
  }
}

template <class T>
void scale_split(const Strips& strips, int64_t item, const Labels& labels, const Operand& w, Split factors,
                 const Operand& out, Into into) {
  const auto& lines = lines_in_use().of<T>();
  const auto put = into == Into::sum     ? lines.add_scaled_split
                   : into == Into::fresh ? lines.scale_split
                                         : lines.stream_split;
  const bool wide = !fits_in_float(factors);
  const int32_t none = labels.count - 1;
  const int64_t first_row = strips.first_row(item), last_row = strips.last_row(item);
  const int64_t first_col = strips.first_col(item), last_col = strips.last_col(item);
  const auto inside = static_cast<Compute<T>>(factors.inside),
             across = static_cast<Compute<T>>(factors.across);
  const auto put_rows = [&](const T* from, int64_t from_stride, int64_t row, int64_t rows, int64_t col,
                            int64_t n, T* to, int64_t to_stride) {
    const int32_t *row_labels = labels.rows.data() + row, *col_labels = labels.cols.data() + col;
    if (!wide) {
      return put(from, from_stride, row_labels, rows, none, col_labels, n, inside, across, to, to_stride);
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        const bool same = same_cluster(row_labels[i], col_labels[j], none);
        put_scaled(from[i * from_stride + j], same ? factors.inside : factors.across, into == Into::sum,
                   to[i * to_stride + j]);
      }
    }
  };
  Line<T> w_line, out_line;
  for (size_t plane = 0; plane < w.plane_offsets.size(); ++plane) {
    if (w.col_stride == 1 && out.col_stride == 1) {
      put_rows(line_at<T>(w, first_row, first_col, plane), w.row_stride, first_row, last_row - first_row,
               first_col, last_col - first_col, line_at<T>(out, first_row, first_col, plane), out.row_stride);
      continue;
    }
    // Strided rows are copied to contiguous memory, a tile at a time.
    for (int64_t row = first_row; row < last_row; ++row) {
      for (int64_t col = first_col; col < last_col; col += kTileCols) {
        const int64_t n = std::min(kTileCols, last_col - col);
        const T* line = w_line.read(line_at<T>(w, row, col, plane), w.col_stride, n);
        out_line.write(line_at<T>(out, row, col, plane), out.col_stride, n,
                       [&](T* made) { put_rows(line, 0, row, 1, col, n, made, 0); });
      }
    }
  }
}

}  // namespace

RowChunks::RowChunks(const Labels& labels) : order(labels.rows.size()) {
  const auto rows = int64_t(order.size());
  // Several windows even in a small matrix: a thread then sums rows that lie together, and finds most of them
  // in its own cache when it scales them.
  const int64_t window =
      std::max(std::clamp(rows / 2, kLeastWindowRows, kWindowRows), kRowsOfLabel * int64_t(labels.count));
  const int64_t most = std::clamp(rows / 16, kLeastChunkRows, kChunkRows);
  std::vector<int64_t> next;
  for (int64_t first = 0; first < rows; first += window) {
    const int64_t last = std::min(first + window, rows);
    if (labels.count <= 2 * (last - first)) {
      next.assign(static_cast<size_t>(labels.count) + 1, 0);
      for (int64_t row = first; row < last; ++row) ++next[labels.rows[row] + 1];
      next[0] = first;
      for (int32_t label = 0; label < labels.count; ++label) next[label + 1] += next[label];
      for (int64_t row = first; row < last; ++row) order[next[labels.rows[row]]++] = row;
    } else {  // one counter for each label might not fit into memory
      std::iota(order.begin() + first, order.begin() + last, first);
      std::stable_sort(order.begin() + first, order.begin() + last,
                       [&](int64_t a, int64_t b) { return labels.rows[a] < labels.rows[b]; });
    }
    for (int64_t begin = first, end = first; begin < last; begin = end) {
      const int32_t label = labels.rows[order[begin]];
      while (end < last && labels.rows[order[end]] == label) ++end;
      // Pieces of nearly one size, so that threads have equal work; multiples of the four rows summed at
      // once.
      const int64_t pieces = (end - begin + most - 1) / most;
      const int64_t each = ((end - begin + pieces - 1) / pieces + 3) / 4 * 4;
      for (; begin < end; begin += each) chunks.push_back({begin, std::min(begin + each, end), label});
    }
  }
}

Split item_split(const Grid& grid, int64_t item, const double* sums) {
  const int32_t none = grid.labels.count - 1, row = grid.chunk(item).label;
  double inside[8] = {}, across[8] = {};
  lines_in_use().add_by_kind(sums, grid.labels.cols.data() + grid.first_col(item), row == none ? -1 : row,
                             grid.num_cols(item), inside, across);
  Split sum{0.0, 0.0};
  for (int lane = 0; lane < 8; ++lane) {
    sum.inside += inside[lane];
    sum.across += across[lane];
  }
  return sum;
}

void item_column_sums(const Grid& grid, int64_t item, const Operand& w, const Operand* v, double* sums) {
  std::fill(sums, sums + grid.num_cols(item), 0.0);
  with_dtype(w.dtype, [&](auto type) {
    using T = decltype(type);
    v == nullptr ? add_squares<T>(grid, item, w, sums) : add_products<T>(grid, item, w, *v, sums);
  });
}

void item_scale(const Grid& grid, int64_t item, const Operand& w, const double* factor, bool wide,
                const Operand& out) {
  with_dtype(w.dtype, [&](auto type) { scale<decltype(type)>(grid, item, w, factor, wide, out); });
}

Strips::Strips(const Labels& labels)
    : rows(int64_t(labels.rows.size())),
      cols(int64_t(labels.cols.size())),
      rows_each(std::max({int64_t(1), kStripNumbers / std::clamp<int64_t>(cols, 1, kStripCols), rows / 64})),
      tiles((cols + kStripCols - 1) / kStripCols) {}

void strip_scale_split(const Strips& strips, int64_t item, const Labels& labels, const Operand& w,
                       Split factors, const Operand& out, Into into) {
  with_dtype(w.dtype,
             [&](auto type) { scale_split<decltype(type)>(strips, item, labels, w, factors, out, into); });
}

}  // namespace modfast
