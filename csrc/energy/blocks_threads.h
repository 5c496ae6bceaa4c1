// The work of one thread of the CUDA kernels for block sums and block scalings; see loss_threads.h.
//
// Rows and columns are cut into segments of kSegment, each sorted by label. A block of threads takes one
// segment of columns, and of several segments of rows those of one label: its threads sum their columns over
// these rows, and the column sums are then added up label by label.
#pragma once

#include "energy/loss_threads.h"

#include <cstdint>

namespace modfast {

constexpr int kSegment = 1024;
constexpr int kColumnsPerThread = kSegment / kThreads;

MODFAST_HD inline int64_t segments_of(int64_t lines) { return (lines + kSegment - 1) / kSegment; }

// The rows or columns of a segment by label: order[starts[b]] to order[starts[b + 1] - 1] have label b. The
// threads count labels, one of them computes starts from the counts, and the threads fill in order.
MODFAST_HD inline void thread_count_labels(const LabelSource& source, int64_t lines, int32_t none,
                                           int64_t segment, int thread, int32_t* starts) {
  const int64_t begin = segment * kSegment;
  const int64_t end = begin + kSegment < lines ? begin + kSegment : lines;
  for (int64_t label = thread; label <= none; label += kThreads) {
    int32_t number = 0;
    for (int64_t line = begin; line < end; ++line) number += source.at(line, none) == label;
    starts[label + 1] = number;
  }
  if (thread == 0) starts[0] = 0;
}

MODFAST_HD inline void add_up_starts(int32_t none, int32_t* starts) {
  for (int64_t label = 0; label <= none; ++label) starts[label + 1] += starts[label];
}

MODFAST_HD inline void thread_fill_order(const LabelSource& source, int64_t lines, int32_t none,
                                         int64_t segment, int thread, const int32_t* starts, int32_t* order) {
  const int64_t begin = segment * kSegment;
  const int64_t end = begin + kSegment < lines ? begin + kSegment : lines;
  for (int64_t label = thread; label <= none; label += kThreads) {
    int32_t next = starts[label];
    for (int64_t line = begin; line < end; ++line) {
      if (source.at(line, none) == label) order[next++] = static_cast<int32_t>(line - begin);
    }
  }
}

// sums[i] += the sum over some rows of weight * weight, or of weight * grad, for the thread's columns of a
// segment: thread, thread + kThreads, and so on. order: the rows, counted from first_row.
template <class T>
MODFAST_HD inline void thread_column_sums(const Matrix& m, bool product, int64_t first_row,
                                          const int32_t* order, int64_t count, int64_t first_col, int thread,
                                          double* sums) {
  for_each_position(m, [&](int64_t weight_offset, int64_t grad_offset) {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = first_row + order[r];
      for (int i = 0; i < kColumnsPerThread; ++i) {
        const int64_t col = first_col + thread + i * kThreads;
        if (col >= m.cols) break;
        const double w = widen(pack_at<T, 1>(m.weight, weight_offset, row, col)->numbers[0]);
        const double v = product ? widen(pack_at<T, 1>(m.grad, grad_offset, row, col)->numbers[0]) : w;
        sums[i] += w * v;
      }
    }
  });
}

// Adds up the column sums of one label; order counts columns from the segment's first column.
MODFAST_HD inline double label_sum(const double* column_sums, const int32_t* order, int32_t begin,
                                   int32_t end) {
  double sum = 0.0;
  for (int32_t i = begin; i < end; ++i) sum += column_sums[order[i]];
  return sum;
}

// grad = weight times its block's factor.
template <class T>
MODFAST_HD inline void thread_block_scale(const Matrix& m, const double* factors, int64_t item, int thread) {
  const Spot spot = spot_of(m, item, thread);
  if (spot.col >= m.cols) return;
  const int32_t col_label = m.col_labels.at(spot.col, m.none);
  for_each_position(m, [&](int64_t weight_offset, int64_t grad_offset) {
    for (int step = 0; step < kSteps; ++step) {
      const int64_t row = spot.row + step * spot.row_step;
      if (row >= m.rows) break;
      const int64_t row_label = m.row_labels.at(row, m.none);
      const double factor = factors[row_label * (int64_t(m.none) + 1) + col_label];
      const T w = pack_at<T, 1>(m.weight, weight_offset, row, spot.col)->numbers[0];
      T& out = pack_at<T, 1>(m.grad, grad_offset, row, spot.col)->numbers[0];
      if (fits_in_float(factor)) {
        put_scaled(w, static_cast<Compute<T>>(factor), false, out);
      } else {
        put_scaled(w, factor, false, out);
      }
    }
  });
}

}  // namespace modfast
