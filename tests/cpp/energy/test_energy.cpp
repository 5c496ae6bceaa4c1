// Tests of the energy kernels alone, against plain loops, on sizes around those of chunks and tiles, in every
// layout. `make sanitize` builds and runs it under the address and undefined-behaviour sanitizers: each
// matrix is in a block of its own that ends with its last element, so that an access beyond it is detected.
#include "common/half.h"
#include "common/instruction_set.h"
#include "common/parallel.h"
#include "energy/energy.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

namespace {

using namespace modfast;

void in_turn(int64_t count, int64_t grain, LoopBody body, void* context) {
  for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(begin + grain, count), context);
}

std::mt19937 random_numbers(0);

int64_t draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_numbers);
}

template <class T>
struct Matrix {
  std::unique_ptr<T[]> numbers;
  Operand operand;
  int64_t rows, cols;

  // layout 0: row by row; 1: column by column; 2: rows apart and every third column.
  Matrix(int64_t rows, int64_t cols, DType dtype, int layout) : rows(rows), cols(cols) {
    operand.dtype = dtype;
    operand.row_stride = layout == 0 ? cols : layout == 1 ? 1 : 3 * cols + 5;
    operand.col_stride = layout == 0 ? 1 : layout == 1 ? rows : 3;
    const int64_t size = (rows - 1) * operand.row_stride + (cols - 1) * operand.col_stride + 1;
    numbers.reset(new T[size]);
    operand.data = numbers.get();
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < size; ++i) narrow(static_cast<Compute<T>>(normal(random_numbers)), numbers[i]);
  }

  T& at(int64_t i, int64_t j) { return numbers[i * operand.row_stride + j * operand.col_stride]; }
  double value(int64_t i, int64_t j) { return static_cast<double>(widen(at(i, j))); }
};

void check(bool holds, const char* what, double found, double expected) {
  if (holds) return;
  std::fprintf(stderr, "%s: found %.17g, expected %.17g\n", what, found, expected);
  std::exit(1);
}

template <class T>
void try_one(DType dtype, double rounding, double size) {
  // Sizes around those of a chunk and a window of rows and of a tile of columns; and few long rows.
  const int64_t edges[] = {1, 2, 3, 7, 31, 32, 33, 127, 128, 129, 257, 511, 513, 1030};
  const bool wide = draw(0, 4) == 0;
  const int64_t rows = wide ? draw(1, 9) : edges[draw(0, 13)];
  const int64_t cols = wide ? draw(4094, 4099) : edges[draw(0, 10)];
  const int32_t count = static_cast<int32_t>(draw(2, 9));
  Labels labels;
  labels.count = count;
  for (int64_t i = 0; i < rows; ++i) labels.rows.push_back(static_cast<int32_t>(draw(0, count - 1)));
  for (int64_t j = 0; j < cols; ++j) labels.cols.push_back(static_cast<int32_t>(draw(0, count - 1)));
  Matrix<T> w(rows, cols, dtype, int(draw(0, 2))), v(rows, cols, dtype, int(draw(0, 2)));
  Matrix<T> out(rows, cols, dtype, int(draw(0, 2)));

  std::vector<double> blocks(count * count), products(count * count), squares(count * count);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      const int64_t block = labels.rows[i] * count + labels.cols[j];
      products[block] += w.value(i, j) * v.value(i, j);
      squares[block] += w.value(i, j) * w.value(i, j);
    }
  }
  // Rounding of float64 sums in different orders; the numbers are of size 1.
  const double sum_error = 1e-12 * static_cast<double>(rows * cols);
  block_inner(labels, w.operand, &v.operand, blocks.data(), in_turn);
  for (size_t b = 0; b < blocks.size(); ++b) {
    check(std::abs(blocks[b] - products[b]) <= sum_error, "block_inner", blocks[b], products[b]);
  }
  block_inner(labels, w.operand, nullptr, blocks.data(), in_turn);
  for (size_t b = 0; b < blocks.size(); ++b) {
    check(std::abs(blocks[b] - squares[b]) <= sum_error, "block energy", blocks[b], squares[b]);
  }

  // Factors of a usual size, or factors that only a double can hold.
  std::vector<double> factors(count * count);
  for (double& factor : factors) factor = size * std::normal_distribution<double>()(random_numbers);
  block_scale(labels, w.operand, factors.data(), out.operand, in_turn);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      const double expected = w.value(i, j) * factors[labels.rows[i] * count + labels.cols[j]];
      const double found = out.value(i, j);
      if (std::abs(expected) > 60000.0 || std::abs(expected) < 1e-4)
        continue;  // outside a half's normal range
      check(std::abs(found - expected) <= rounding * std::abs(expected), "block_scale", found, expected);
    }
  }

  std::vector<double> before;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) before.push_back(out.value(i, j));
  }
  double total = 0.0, inside = 0.0, loss = 0.0;
  for (int32_t a = 0; a < count; ++a) {
    for (int32_t b = 0; b < count; ++b) {
      total += squares[a * count + b];
      inside += a == b && a + 1 < count ? squares[a * count + b] : 0.0;
    }
  }
  std::vector<Term> terms{{labels, w.operand, out.operand}};
  Split energy{0.0, 0.0};
  split_energies(terms, &energy, in_turn);
  check(std::abs(energy.inside - inside) <= sum_error, "energy inside", energy.inside, inside);
  check(std::abs(energy.across - (total - inside)) <= sum_error, "energy across", energy.across,
        total - inside);
  accumulate_enmeshment(terms, 0.5, &loss, in_turn);
  check(std::abs(loss - (1.0 - inside / total)) <= 1e-9, "enmeshment", loss, 1.0 - inside / total);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      const bool same = labels.rows[i] == labels.cols[j] && labels.rows[i] + 1 < count;
      const double step = w.value(i, j) * (inside / total - (same ? 1.0 : 0.0)) / total;
      const double expected = before[i * cols + j] + step, found = out.value(i, j);
      if (!(std::abs(expected) < 60000.0)) continue;
      const double allowed = rounding * (std::abs(before[i * cols + j]) + 2.0 * std::abs(step)) + 1e-7;
      check(std::abs(found - expected) <= allowed, "gradient", found, expected);
    }
  }

  const Split kinds{factors[0], factors[1]};
  split_scale(terms, &kinds, draw(0, 1) ? Into::fresh : Into::streamed, in_turn);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      const bool same = labels.rows[i] == labels.cols[j] && labels.rows[i] + 1 < count;
      const double expected = w.value(i, j) * (same ? kinds.inside : kinds.across), found = out.value(i, j);
      if (std::abs(expected) > 60000.0 || std::abs(expected) < 1e-4) continue;
      check(std::abs(found - expected) <= rounding * std::abs(expected), "split_scale", found, expected);
    }
  }
}

int parallel_calls = 0;
bool is_late = false;

void counted(int64_t count, int64_t grain, LoopBody body, void* context) {
  ++parallel_calls;
  in_turn(count, grain, body, context);
  if (is_late) std::this_thread::sleep_for(std::chrono::milliseconds(3));
}

// After a loop that came late the next ones are done by the caller, each as a whole; then it tries again.
void try_late_threads() {
  int64_t sum = 0;
  const auto call = [&] {
    sum = 0;
    small_parallel_for(
        counted, 100, 10,
        [](int64_t begin, int64_t end, void* given) {
          for (int64_t i = begin; i < end; ++i) *static_cast<int64_t*>(given) += i;
        },
        &sum);
    check(sum == 4950, "the sum of a small loop", double(sum), 4950);
  };
  while (calls_to_do_alone() > 0) call();
  is_late = true;
  for (int64_t turn = 0, last = 0; turn < 3; ++turn) {
    parallel_calls = 0;
    call();
    check(parallel_calls == 1, "calls in parallel", parallel_calls, 1);
    const int64_t alone = calls_to_do_alone();
    // A busy machine may have made other loops of these tests late, up to the most calls.
    const bool more = alone > last || alone == 4096;
    check(more, "calls to do alone, more at each time", double(alone), double(last + 1));
    for (int64_t i = 0; i < alone; ++i) call();
    check(parallel_calls == 1, "calls in parallel meanwhile", parallel_calls, 1);
    last = alone;
  }
  is_late = false;
}

// A gradient that is laid out otherwise than its weight takes far longer to write: its threads are not late.
void try_slow_work() {
  constexpr int64_t kSide = 300;
  while (calls_to_do_alone() > 0) {
    small_parallel_for(in_turn, 2, 1, [](int64_t, int64_t, void*) {}, nullptr);
  }
  for (const bool strided : {true, false}) {
    Matrix<float> w(kSide, kSide, DType::float32, 0), grad(kSide, kSide, DType::float32, strided ? 1 : 0);
    Labels labels;
    labels.count = 2;
    labels.rows.assign(kSide, 0);
    labels.cols.assign(kSide, 0);
    const Split factors{0.5, 0.25};
    is_late = true;
    split_scale({{labels, w.operand, grad.operand}}, &factors, Into::fresh, counted);
    is_late = false;
    const bool alone = calls_to_do_alone() > 0;
    check(alone != strided, "calls to do alone after slow work or late threads", alone, !strided);
  }
}

}  // namespace

int main() {
  constexpr int kTrials = 150;
  for (int trial = 0; trial < kTrials; ++trial) {
    const double size = trial % 5 == 0 ? 1e-50 : trial % 7 == 0 ? 1e50 : 1.0;
    try_one<float>(DType::float32, 3e-7, size);
    try_one<double>(DType::float64, 1e-15, size);
    try_one<Half>(DType::float16, 2e-3, size);
    try_one<BFloat>(DType::bfloat16, 1.6e-2, size);
  }
  try_late_threads();
  try_slow_work();
  std::printf("%s: %d passed, 0 failed\n", name_of(instruction_set_in_use()), 4 * kTrials + 2);
}
