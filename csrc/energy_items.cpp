#include "energy_items.h"

#include "cpu_dispatch.h"

#include <cstddef>
#include <numeric>

namespace modfast {
namespace {

constexpr int64_t kGatheredRows = 4;  // strided lines that are gathered before they are summed

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
void add_squares(const Grid& grid, int64_t item, const Operand& w, double* sums) {
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
           const Operand& out, Into into) {
  const auto& lines = lines_in_use().of<T>();
  const auto& chunk = grid.chunk(item);
  const int64_t first = grid.first_col(item), n = grid.num_cols(item);
  alignas(64) Compute<T> narrow_factor[kTileCols];
  for (int64_t j = 0; j < n; ++j) narrow_factor[j] = static_cast<Compute<T>>(factor[j]);
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
          // Rare, as for very small or very large weights, so without vectors.
          for (int64_t j = 0; j < n; ++j) put_scaled(line[j], factor[j], into == Into::sum, made[j]);
        } else if (into == Into::sum) {
          lines.add_scaled(line, narrow_factor, made, n, next_w, next_out);
        } else {
          lines.scale(line, narrow_factor, made, n, next_w);
        }
      });
    }
  }
}

}  // namespace

RowChunks::RowChunks(const Labels& labels) : order(labels.rows.size()) {
  const auto rows = int64_t(order.size());
  if (labels.count <= 2 * rows) {
    std::vector<int64_t> next(static_cast<size_t>(labels.count) + 1, 0);
    for (int32_t label : labels.rows) ++next[label + 1];
    for (int32_t label = 0; label < labels.count; ++label) next[label + 1] += next[label];
    for (int64_t row = 0; row < rows; ++row) order[next[labels.rows[row]]++] = row;
  } else {  // as many counters as labels could be more than memory holds
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return labels.rows[a] < labels.rows[b]; });
  }
  for (int64_t begin = 0, end = 0; begin < rows; begin = end) {
    const int32_t label = labels.rows[order[begin]];
    while (end < rows && end < begin + kChunkRows && labels.rows[order[end]] == label) ++end;
    chunks.push_back({begin, end, label});
  }
}

void item_column_sums(const Grid& grid, int64_t item, const Operand& w, const Operand* v, double* sums) {
  std::fill(sums, sums + grid.num_cols(item), 0.0);
  with_dtype(w.dtype, [&](auto type) {
    using T = decltype(type);
    v == nullptr ? add_squares<T>(grid, item, w, sums) : add_products<T>(grid, item, w, *v, sums);
  });
}

void item_scale(const Grid& grid, int64_t item, const Operand& w, const double* factor, bool wide,
                const Operand& out, Into into) {
  with_dtype(w.dtype, [&](auto type) { scale<decltype(type)>(grid, item, w, factor, wide, out, into); });
}

}  // namespace modfast
