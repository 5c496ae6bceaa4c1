// Tests of the optimiser's kernels alone, against plain loops, in every type and layout, with and without
// keeping the largest. `make sanitize` builds and runs it under the address and undefined-behaviour
// sanitizers: each matrix is in a block of its own that ends with its last element. The loops run in two
// threads.
#include "common/half.h"
#include "common/instruction_set.h"
#include "optim/digits.h"
#include "optim/optim.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

namespace {

using namespace modfast;

void in_two(int64_t count, int64_t grain, LoopBody body, void* context) {
  const int64_t half = std::min(count, std::max(grain, count / 2));
  std::thread other([&] { body(0, half, context); });
  if (half < count) body(half, count, context);
  other.join();
}

std::mt19937 random_numbers(0);

int64_t draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_numbers);
}

void check(bool holds, const char* what, double found, double expected) {
  if (holds) return;
  std::fprintf(stderr, "%s: found %.17g, expected %.17g\n", what, found, expected);
  std::exit(1);
}

template <class T>
constexpr DType kDType = DType::float32;
template <>
constexpr DType kDType<double> = DType::float64;
template <>
constexpr DType kDType<Half> = DType::float16;
template <>
constexpr DType kDType<BFloat> = DType::bfloat16;

template <class T>
struct Matrix {
  std::unique_ptr<T[]> numbers;
  Placed placed;
  int64_t size;

  // layout 0: row by row; 1: column by column; 2: rows apart and every third column.
  Matrix(int64_t rows, int64_t cols, int layout) {
    placed.dtype = kDType<T>;
    placed.row_stride = layout == 0 ? cols : layout == 1 ? 1 : 3 * cols + 5;
    placed.col_stride = layout == 0 ? 1 : layout == 1 ? rows : 3;
    size = (rows - 1) * placed.row_stride + (cols - 1) * placed.col_stride + 1;
    numbers.reset(new T[size]);
    placed.data = numbers.get();
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < size; ++i) narrow(static_cast<Compute<T>>(normal(random_numbers)), numbers[i]);
  }
  T& at(int64_t i, int64_t j) { return numbers[i * placed.row_stride + j * placed.col_stride]; }
  double value(int64_t i, int64_t j) { return static_cast<double>(widen(at(i, j))); }
};

template <class T, class G>
struct Weight {
  using F = Compute<T>;
  int64_t rows, cols;
  Matrix<T> weight;
  Matrix<G> grad;
  Matrix<F> mean, square;
  std::vector<int32_t> row_labels, col_labels;
  int64_t threshold[2] = {0, 0};

  Weight(int64_t rows, int64_t cols, bool keeps)
      : rows(rows),
        cols(cols),
        weight(rows, cols, keeps ? 0 : int(draw(0, 2))),
        grad(rows, cols, int(draw(0, 2))),
        mean(rows, cols, int(draw(0, 2))),
        square(rows, cols, int(draw(0, 2))) {
    for (int64_t i = 0; i < rows; ++i) row_labels.push_back(static_cast<int32_t>(draw(0, 3)));
    for (int64_t j = 0; j < cols; ++j) col_labels.push_back(static_cast<int32_t>(draw(0, 3)));
    for (int64_t i = 0; i < square.size; ++i) square.numbers[i] = square.numbers[i] * square.numbers[i];
  }
  Stepped stepped(bool of_loss, int64_t keep, double number) {
    Stepped s;
    s.weight = weight.placed;
    s.grad = grad.placed;
    s.exp_avg = mean.placed;
    s.exp_avg_sq = square.placed;
    s.rows = rows;
    s.cols = cols;
    s.number = number;
    s.keep = keep;
    s.threshold = threshold;
    if (of_loss) {
      s.row_labels = row_labels.data();
      s.col_labels = col_labels.data();
    }
    return s;
  }
  // What the weights become but for what is not kept, in float64; and the sizes of what is added up for each,
  // which its rounding errors are in proportion to.
  std::vector<double> expected(const AdamWOptions& options, Split slopes, double number,
                               std::vector<double>* sizes) {
    const auto f = adamw_factors<double>(options, number, slopes);
    std::vector<double> result;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        double m = mean.at(i, j), v = square.at(i, j), g = widen(grad.at(i, j));
        const double w = weight.value(i, j);
        g = enmeshed(w, g, row_labels[i] == col_labels[j] ? f.inside : f.across);
        const double terms = std::fabs(m) + std::fabs(g);
        result.push_back(adamw_step(f, w, g, &m, &v));
        sizes->push_back(std::fabs(w) + f.size * terms / (std::sqrt(v) * f.root + f.eps));
      }
    }
    return result;
  }
};

template <class T, class G>
void try_one(double rounding) {
  const int64_t edges[] = {1, 2, 7, 8, 9, 31, 33, 130, 257, 1030};
  const bool large = draw(0, 9) == 0, keeps = draw(0, 1), of_loss = draw(0, 1);
  const int64_t rows = large ? draw(60, 90) : edges[draw(0, 8)],
                cols = large ? draw(1020, 1030) : edges[draw(0, 9)];
  Weight<T, G> w(rows, cols, keeps);
  Weight<float, float> other(draw(1, 40), draw(1, 2000), false);
  for (int step = 1; step <= 3; ++step) {
    const AdamWOptions options{step == 2 ? 0.5 : 1e-3, 0.9, 0.99, 1e-8, 0.1, 0.7, false};
    const int64_t count = keeps ? draw(0, rows * cols) : -1;
    const Split slopes = of_loss ? Split{-0.3, 0.4} : Split{0.0, 0.0};
    std::vector<double> sizes;
    const auto expected = w.expected(options, slopes, step, &sizes);
    std::vector<Split> energies;
    adamw({w.stepped(of_loss, count, step), other.stepped(true, -1, step)}, {slopes, {0.1, 0.2}}, options,
          1.0f, &energies, in_two);

    int64_t nonzero = 0;
    double inside = 0.0, across = 0.0, smallest = INFINITY, largest_lost = 0.0;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        const double found = w.weight.value(i, j), wanted = expected[i * cols + j];
        const bool stays = magnitude_bits(w.weight.at(i, j)) != 0;
        nonzero += stays;
        (w.row_labels[i] == w.col_labels[j] ? inside : across) += found * found;
        if (!stays && keeps) {
          largest_lost = std::max(largest_lost, std::fabs(wanted));
          continue;
        }
        smallest = std::min(smallest, std::fabs(found));
        const double error = std::fabs(found - wanted);
        check(error <= rounding * sizes[i * cols + j], "weight", found, wanted);
      }
    }
    if (keeps) {
      check(nonzero <= count, "how many stay", double(nonzero), double(count));
      check(largest_lost <= smallest * (1 + 2 * rounding) + 1e-5, "what is lost", largest_lost, smallest);
    }
    if (!of_loss) continue;
    check(std::fabs(energies[0].inside - inside) <= 1e-12 * inside, "inside", energies[0].inside, inside);
    check(std::fabs(energies[0].across - across) <= 1e-12 * across, "across", energies[0].across, across);
    std::vector<Split> again;
    labelled_energies({w.stepped(true, -1, step)}, &again, in_two);
    check(again[0].inside == energies[0].inside, "the bits of a pass", again[0].inside, energies[0].inside);
  }
}

}  // namespace

int main() {
  constexpr int kTrials = 60;
  for (int trial = 0; trial < kTrials; ++trial) {
    try_one<float, float>(1e-6);
    try_one<float, BFloat>(1e-6);
    try_one<double, double>(1e-13);
    try_one<Half, Half>(2e-3);
    try_one<BFloat, float>(1.6e-2);
  }
  std::printf("%s: %d passed, 0 failed\n", name_of(instruction_set_in_use()), 5 * kTrials);
}
