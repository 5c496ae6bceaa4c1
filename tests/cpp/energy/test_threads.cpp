// Tests of the work of the CUDA kernels' threads, called on the CPU for every thread of every item in turn,
// against plain loops: where each thread begins and ends, packs of numbers, labels, products. Only the sums
// over a block of threads, which use CUDA's instructions, are not tested here. `make sanitize` builds and
// runs it.
#include "energy/blocks_threads.h"
#include "energy/loss_threads.h"
#include "energy/plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

namespace {

using namespace modfast;

std::mt19937 random_numbers(0);
int packed = 0, single = 0;  // how many matrices were read in packs, and how many in single numbers

int64_t draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_numbers);
}

void check(bool holds, const char* what, double found, double expected) {
  if (holds) return;
  std::fprintf(stderr, "%s: found %.17g, expected %.17g\n", what, found, expected);
  std::exit(1);
}

// A matrix whose memory ends with its last number, so that an access beyond it is detected.
template <class T>
struct Numbers {
  std::unique_ptr<T[]> data;
  Place place;
  const int64_t* kernel;

  // layout 0: row by row; 1: with a gap after each row; 2: every third column; 3: column by column.
  Numbers(int64_t rows, int64_t cols, const int64_t* kernel, int layout) : kernel(kernel) {
    const int64_t col = layout == 2 ? 3 : layout == 3 ? rows : 1;
    const int64_t row = layout == 3 ? 1 : col * cols + (layout == 1 ? 8 : 0);
    int64_t plane = std::max(row * rows, col * cols), size = (rows - 1) * row + (cols - 1) * col + 1;
    place = {nullptr, row, col, {0, 0, 0}};
    for (int d = 0; d < kKernelDims; ++d) {
      place.kernel[d] = plane;
      size += (kernel[d] - 1) * plane;
      plane *= kernel[d];
    }
    data.reset(new T[size]);
    place.data = data.get();
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < size; ++i) narrow(static_cast<Compute<T>>(normal(random_numbers)), data[i]);
  }

  T& at(int64_t i, int64_t j, int64_t position) {
    int64_t offset = i * place.row + j * place.col;
    for (int d = 0; d < kKernelDims; ++d) {
      offset += position % kernel[d] * place.kernel[d];
      position /= kernel[d];
    }
    return data[offset];
  }
  double value(int64_t i, int64_t j, int64_t position) {
    return static_cast<double>(widen(at(i, j, position)));
  }
};

struct RandomLabels {
  std::vector<int64_t> kept;
  LabelSource source;
  int32_t none;

  // A label for each row or column, or for each channel of a kernel's positions, in either order of memory.
  RandomLabels(int64_t lines, int32_t clusters) : none(clusters) {
    int64_t positions = 1;
    for (int64_t p : {2, 3}) {
      if (lines % p == 0 && draw(0, 2) == 0) positions = p;
    }
    const int64_t channels = lines / positions, stride = draw(1, 2);
    kept.resize(channels * stride);
    for (int64_t& label : kept) label = draw(-1, clusters - 1);
    const bool inside = draw(0, 1);
    source = {kept.data(), stride, {inside ? positions : 1, channels}};
  }
  int64_t of(int64_t line) const {
    const LabelIndex& index = source.index;
    const int64_t label = kept[line / index.divide % index.modulo * source.stride];
    return label < 0 ? none : label;
  }
};

template <class T>
void try_one(DType dtype, double rounding, double size) {
  const int64_t edges[] = {1, 2, 3, 7, 8, 16, 31, 32, 64, 65, 128, 255, 256, 257, 1024, 1025, 1040};
  const int64_t rows = edges[draw(0, 13)], cols = edges[draw(0, 16)];
  int64_t kernel[kKernelDims] = {1, 1, 1};
  if (draw(0, 3) == 0) {
    for (int64_t& positions : kernel) positions = draw(1, 2);
  }
  const int64_t positions = kernel[0] * kernel[1] * kernel[2];
  const int32_t clusters = static_cast<int32_t>(draw(1, 9));
  const RandomLabels row_labels(rows, clusters), col_labels(cols, clusters);
  const int same_layout = draw(0, 1) ? 0 : -1;
  const auto layout = [&] { return same_layout == 0 ? 0 : int(draw(0, 3)); };
  Numbers<T> w(rows, cols, kernel, layout()), g(rows, cols, kernel, layout());

  Matrix m{};
  m.weight = w.place;
  m.grad = g.place;
  m.row_labels = row_labels.source;
  m.col_labels = col_labels.source;
  m.rows = rows;
  m.cols = cols;
  std::copy(kernel, kernel + kKernelDims, m.kernel_size);
  m.none = clusters;
  m.dtype = dtype;
  plan_items(&m);
  (m.vector > 1 ? packed : single) += 1;

  const int64_t labels = clusters + 1;
  Split expected{0.0, 0.0};
  std::vector<double> squares(labels * labels), products(labels * labels), before;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      for (int64_t p = 0; p < positions; ++p) {
        const int64_t a = row_labels.of(i), b = col_labels.of(j);
        const double square = w.value(i, j, p) * w.value(i, j, p);
        (a == b && a != clusters ? expected.inside : expected.across) += square;
        squares[a * labels + b] += square;
        products[a * labels + b] += w.value(i, j, p) * g.value(i, j, p);
        before.push_back(g.value(i, j, p));
      }
    }
  }
  // Rounding of float64 sums in different orders; the numbers are of size 1.
  const double sum_error = 1e-12 * static_cast<double>(rows * cols * positions);

  Split found{0.0, 0.0};
  for (int64_t item = 0; item < m.items; ++item) {
    for (int thread = 0; thread < kThreads; ++thread) {
      const Split part = thread_energies(m, item, thread);
      found.inside += part.inside;
      found.across += part.across;
    }
  }
  check(std::abs(found.inside - expected.inside) <= sum_error, "inside", found.inside, expected.inside);
  check(std::abs(found.across - expected.across) <= sum_error, "across", found.across, expected.across);

  for (const bool product : {false, true}) {
    const auto& exact = product ? products : squares;
    const int64_t row_segments = segments_of(rows), col_segments = segments_of(cols);
    std::vector<int32_t> orders((row_segments + col_segments) * kSegment);
    std::vector<int32_t> all_starts((row_segments + col_segments) * (labels + 1));
    const auto sort = [&](const LabelSource& source, int64_t lines, int64_t segment, int64_t at) {
      int32_t* starts = all_starts.data() + at * (labels + 1);
      for (int t = 0; t < kThreads; ++t) thread_count_labels(source, lines, clusters, segment, t, starts);
      add_up_starts(clusters, starts);
      for (int t = 0; t < kThreads; ++t) {
        thread_fill_order(source, lines, clusters, segment, t, starts, orders.data() + at * kSegment);
      }
    };
    for (int64_t s = 0; s < row_segments; ++s) sort(m.row_labels, rows, s, s);
    for (int64_t s = 0; s < col_segments; ++s) sort(m.col_labels, cols, s, row_segments + s);
    std::vector<double> blocks(labels * labels), sums(kSegment);
    for (int64_t s = 0; s < row_segments; ++s) {
      for (int64_t tile = 0; tile < col_segments; ++tile) {
        for (int64_t a = 0; a < labels; ++a) {
          const int32_t* starts = all_starts.data() + s * (labels + 1);
          for (int t = 0; t < kThreads; ++t) {
            double own[kColumnsPerThread] = {};
            thread_column_sums<T>(m, product, s * kSegment, orders.data() + s * kSegment + starts[a],
                                  starts[a + 1] - starts[a], tile * kSegment, t, own);
            for (int i = 0; i < kColumnsPerThread; ++i) sums[t + i * kThreads] = own[i];
          }
          const int64_t at = row_segments + tile;
          starts = all_starts.data() + at * (labels + 1);
          for (int64_t b = 0; b < labels; ++b) {
            blocks[a * labels + b] +=
                label_sum(sums.data(), orders.data() + at * kSegment, starts[b], starts[b + 1]);
          }
        }
      }
    }
    for (size_t b = 0; b < blocks.size(); ++b) {
      check(std::abs(blocks[b] - exact[b]) <= sum_error, "block", blocks[b], exact[b]);
    }
  }

  // Factors of a usual size, or factors that only a double can hold.
  std::normal_distribution<double> normal;
  const Split factors{size * normal(random_numbers), size * normal(random_numbers)};
  const auto near = [&](double result, double exact, const char* what) {
    if (std::abs(exact) > 60000.0 || (exact != 0.0 && std::abs(exact) < 1e-4))
      return;  // outside a half's normal range
    check(std::abs(result - exact) <= rounding * std::abs(exact), what, result, exact);
  };
  for (const bool add : {true, false}) {
    for (int64_t item = 0; item < m.items; ++item) {
      for (int thread = 0; thread < kThreads; ++thread) thread_scale(m, item, thread, factors, add);
    }
    size_t next = 0;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        for (int64_t p = 0; p < positions; ++p) {
          const bool same = row_labels.of(i) == col_labels.of(j) && row_labels.of(i) != clusters;
          const double step = w.value(i, j, p) * (same ? factors.inside : factors.across);
          const double old = add ? before[next++] : 0.0, result = g.value(i, j, p);
          if (!add) {
            near(result, step, "fresh");
          } else if (std::abs(old + step) < 60000.0) {
            const double allowed = rounding * (std::abs(old) + 2.0 * std::abs(step)) + 1e-7;
            check(std::abs(result - (old + step)) <= allowed, "added", result, old + step);
          }
        }
      }
    }
  }

  std::vector<double> table(labels * labels);
  for (double& factor : table) factor = size * normal(random_numbers);
  plan_items(&m, 1);
  for (int64_t item = 0; item < m.items; ++item) {
    for (int thread = 0; thread < kThreads; ++thread) thread_block_scale<T>(m, table.data(), item, thread);
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      for (int64_t p = 0; p < positions; ++p) {
        const double factor = table[row_labels.of(i) * labels + col_labels.of(j)];
        near(g.value(i, j, p), w.value(i, j, p) * factor, "block scale");
      }
    }
  }
}

}  // namespace

int main() {
  constexpr int kTrials = 60;
  for (int trial = 0; trial < kTrials; ++trial) {
    const double size = trial % 5 == 0 ? 1e-50 : trial % 7 == 0 ? 1e50 : 1.0;
    try_one<float>(DType::float32, 3e-7, size);
    try_one<double>(DType::float64, 1e-15, size);
    try_one<Half>(DType::float16, 2e-3, size);
    try_one<BFloat>(DType::bfloat16, 1.6e-2, size);
  }
  check(packed > 20 && single > 20, "matrices with and without packs", packed, single);
  std::printf("threads: %d passed, 0 failed\n", 4 * kTrials);
}
