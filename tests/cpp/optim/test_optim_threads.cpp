// Tests of the work of the optimiser's CUDA threads, called on the CPU for every thread of every item in
// turn, against plain loops: where each thread begins and ends, packs of numbers, labels, which elements
// stay. Only the sums over a block of threads, which use CUDA's instructions, are not tested here. `make
// sanitize` builds and runs it.
#include "optim/adamw_threads.h"
#include "optim/cuda_plan.h"
#include "optim/keep_threads.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

namespace {

using namespace modfast;
using namespace modfast::optim;

std::mt19937 random_numbers(0);
int packed = 0, single = 0, cut = 0, ties = 0;  // how many weights were of each kind

int64_t draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_numbers);
}

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

// The sizes of a weight: rows, columns, and a kernel whose positions lie apart or not.
struct Sizes {
  std::vector<int64_t> dims;
  int64_t numbers() const {
    int64_t product = 1;
    for (int64_t size : dims) product *= size;
    return product;
  }
};

// A tensor whose memory ends with its last number, so that an access beyond it is detected.
template <class T>
struct Numbers {
  std::vector<int64_t> strides;
  int64_t memory = 1;
  std::unique_ptr<T[]> data;

  // layout 0: one after the other; 1: with gaps after each row; 2: every other number.
  Numbers(const Sizes& sizes, int layout) : strides(sizes.dims.size()) {
    int64_t stride = layout == 2 ? 2 : 1;
    for (size_t d = sizes.dims.size(); d-- > 0;) {
      strides[d] = stride;
      memory += (sizes.dims[d] - 1) * stride;
      stride *= sizes.dims[d];
      if (layout == 1 && d + 1 == sizes.dims.size()) stride += 8;
    }
    data.reset(new T[memory]());
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < memory; ++i) narrow(static_cast<Compute<T>>(normal(random_numbers)), data[i]);
  }
  int64_t offset(const Sizes& sizes, int64_t number) const {
    int64_t offset = 0;
    for (size_t d = sizes.dims.size(); d-- > 0;) {
      offset += number % sizes.dims[d] * strides[d];
      number /= sizes.dims[d];
    }
    return offset;
  }
  std::vector<T> copy() const { return {data.get(), data.get() + memory}; }
};

template <class T>
bool same_bits(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

bool is_near(double found, double exact) {
  if (!std::isfinite(exact)) return std::isnan(exact) ? std::isnan(found) : found == exact;
  return std::abs(found - exact) <= 1e-12 * exact;
}

Sizes random_sizes(bool of_loss) {
  const int64_t edges[] = {1, 2, 3, 7, 8, 16, 31, 32, 64, 65, 128, 255, 256, 257, 1024, 1025, 1040};
  Sizes sizes;
  if (!of_loss && draw(0, 2) == 0) {
    sizes.dims = {edges[draw(0, 16)] * draw(1, 5)};
  } else {
    sizes.dims = {edges[draw(0, 10)], edges[draw(0, 16)]};
    if (draw(0, 3) == 0)
      sizes.dims = {edges[draw(0, 6)], edges[draw(0, 6)], draw(1, 3), draw(1, 2), draw(1, 2)};
  }
  return sizes;
}

// The largest elements by a sort, in the order of memory if they are equal.
template <class T>
std::vector<char> stay_by_sort(const std::vector<T>& memory, std::vector<int64_t> offsets, int64_t keep) {
  std::sort(offsets.begin(), offsets.end());
  std::stable_sort(offsets.begin(), offsets.end(), [&](int64_t a, int64_t b) {
    return magnitude_bits(memory[a]) > magnitude_bits(memory[b]);
  });
  std::vector<char> stays(memory.size(), 1);
  for (size_t i = keep; i < offsets.size(); ++i) stays[offsets[i]] = 0;
  return stays;
}

// As a block of threads chooses the next digit.
void choose(Kept* kept, const std::vector<uint32_t>& bins) {
  int64_t larger = 0;
  for (int digit = kBins - 1; digit >= 0; --digit) {
    if (larger + bins[digit] >= kept->wanted) {
      set_digit(kept, static_cast<uint32_t>(digit), larger, bins[digit]);
      return;
    }
    larger += bins[digit];
  }
  check(false, "fewer elements than are wanted");
}

template <class T, class G>
void try_one(DType dtype, DType grad_dtype) {
  using F = Compute<T>;
  const bool of_loss = draw(0, 1);
  const Sizes sizes = random_sizes(of_loss);
  const int same_layout = draw(0, 1) ? 0 : -1;
  const auto layout = [&] { return same_layout == 0 ? 0 : int(draw(0, 2)); };
  Numbers<T> weight(sizes, layout());
  Numbers<G> grad(sizes, layout());
  Numbers<F> mean(sizes, layout()), square(sizes, layout());
  for (int64_t i = 0; i < square.memory; ++i) square.data[i] *= square.data[i];
  if (draw(0, 3) == 0) {  // few magnitudes
    for (int64_t i = 0; i < weight.memory; ++i) narrow(static_cast<F>(draw(-2, 2)), weight.data[i]);
  }

  Matrix m{};
  m.dtype = dtype;
  m.grad_dtype = grad_dtype;
  m.weight.data = weight.data.get();
  m.grad.data = grad.data.get();
  m.mean.data = mean.data.get();
  m.square.data = square.data.get();
  std::vector<Dimension> dims;
  for (size_t d = 0; d < sizes.dims.size(); ++d) {
    dims.push_back({sizes.dims[d], {weight.strides[d], grad.strides[d], mean.strides[d], square.strides[d]}});
  }
  // Rows and columns of a weight of the loss must stay apart, so its dimensions are not merged.
  std::vector<int32_t> row_labels, col_labels;
  m.slot = -1;
  if (of_loss) {
    m.slot = 0;
    m.sums = true;
    Place* places[kTensors] = {&m.weight, &m.grad, &m.mean, &m.square};
    m.rows = sizes.dims[0];
    m.cols = m.last_cols = sizes.dims[1];
    for (int t = 0; t < kTensors; ++t) {
      places[t]->row = dims[0].strides[t];
      places[t]->col = dims[1].strides[t];
    }
    for (size_t d = 0; d < kKernelDims; ++d) {
      const bool is_there = d + 2 < dims.size();
      m.kernel_size[d] = is_there ? dims[d + 2].size : 1;
      for (int t = 0; t < kTensors; ++t) places[t]->kernel[d] = is_there ? dims[d + 2].strides[t] : 0;
    }
    row_labels.resize(m.rows);
    col_labels.resize(m.cols);
    for (int32_t& label : row_labels) label = static_cast<int32_t>(draw(0, 3));
    for (int32_t& label : col_labels) label = static_cast<int32_t>(draw(0, 4));
    m.row_labels = {row_labels.data(), {1, m.rows}};
    m.col_labels = {col_labels.data(), {1, m.cols}};
  } else {
    check(lay_out(dims, &m), "too many dimensions");
    cut += m.last_cols != m.cols;
  }
  float step = static_cast<float>(draw(0, 5));
  m.step = &step;
  m.place = static_cast<int32_t>(draw(0, 100));
  for (int64_t last = weight.memory - 1; last != 0; last /= 2) ++m.offset_bits;
  plan_items(&m);
  (m.vector > 1 ? packed : single) += 1;

  const AdamWOptions options{0.01, 0.9, 0.99, 1e-8, 0.1, 0.7, draw(0, 1) == 0};
  const float scale = 4.0f;
  const Scalars scalars{nullptr, false, draw(0, 1) ? &scale : nullptr, nullptr};
  const double size = draw(0, 4) == 0 ? 1e-60 : 1.0;  // so small that floats do not hold the factors
  const Split energies{3.0 * size, 2.0 * size};
  const Weight w = weight_of(m, options, scalars, &energies);

  // Each element once, by a plain loop.
  std::vector<T> weights = weight.copy();
  std::vector<G> grads = grad.copy();
  std::vector<F> means = mean.copy(), squares = square.copy();
  const auto f =
      adamw_factors<F>(options, step + 1.0, of_loss ? enmeshment_factors(energies, 0.7) : Split{0, 0});
  std::vector<int64_t> offsets;
  std::vector<uint32_t> expected_bins(kBins), bins(kBins);
  int64_t numbers_of_kernel = sizes.numbers();
  if (of_loss) numbers_of_kernel /= std::max<int64_t>(1, m.rows * m.cols);
  const auto is_same = [&](int64_t number) {
    if (!of_loss) return false;
    const int64_t place = number / numbers_of_kernel;
    return row_labels[place / m.cols] == col_labels[place % m.cols];
  };
  for (int64_t i = 0; i < sizes.numbers(); ++i) {
    T& own = weights[weight.offset(sizes, i)];
    G& slope = grads[grad.offset(sizes, i)];
    if (scalars.grad_scale) narrow(static_cast<Compute<G>>(widen(slope) / scale), slope);
    F slant = widen(slope);
    if (of_loss && w.wide) {
      const double factor = is_same(i) ? w.factors.inside : w.factors.across;
      slant = static_cast<F>(double(slant) + double(widen(own)) * factor);
    } else if (of_loss) {
      slant = enmeshed(F(widen(own)), slant, is_same(i) ? f.inside : f.across);
    }
    const F value =
        adamw_step(f, F(widen(own)), slant, &means[mean.offset(sizes, i)], &squares[square.offset(sizes, i)]);
    offsets.push_back(weight.offset(sizes, i));
    store_new(value, options.stochastic_rounding, static_cast<uint32_t>(offsets.back()), w.key, own);
    ++expected_bins[leading_digit(own)];
  }
  const bool counts = draw(0, 1);
  Split sum{0.0, 0.0};
  const auto add = [&](Split part) {
    sum.inside += part.inside;
    sum.across += part.across;
  };
  for (int64_t item = 0; item < m.items; ++item) {
    for (int thread = 0; thread < kThreads; ++thread) {
      add(thread_update<T, G>(w, scalars, options.stochastic_rounding, item, thread,
                              counts ? bins.data() : nullptr));
    }
  }
  for (int64_t i = 0; i < weight.memory; ++i) check(same_bits(weight.data[i], weights[i]), "weight");
  for (int64_t i = 0; i < grad.memory; ++i) check(same_bits(grad.data[i], grads[i]), "gradient");
  for (int64_t i = 0; i < mean.memory; ++i) check(same_bits(mean.data[i], means[i]), "first moment");
  for (int64_t i = 0; i < square.memory; ++i) check(same_bits(square.data[i], squares[i]), "second moment");
  const auto check_sum = [&](const char* what) {
    Split exact{0.0, 0.0};
    for (int64_t i = 0; i < sizes.numbers() && of_loss; ++i) {
      const double number = widen(weights[weight.offset(sizes, i)]);
      (is_same(i) ? exact.inside : exact.across) += number * number;
    }
    check(is_near(sum.inside, exact.inside), what);
    check(is_near(sum.across, exact.across), what);
  };
  if (!counts) {
    check_sum("energies");
    return;
  }
  check(bins == expected_bins, "first digits");

  m.keep = draw(0, 3) == 0 ? 0 : draw(0, sizes.numbers() - 1);
  Kept kept = begin_search(m);
  int passes = 0;
  for (; !kept.done; ++passes) {
    if (passes > 0) {
      std::fill(bins.begin(), bins.end(), 0u);
      for (int64_t item = 0; item < m.items; ++item) {
        for (int thread = 0; thread < kThreads; ++thread) thread_count(m, kept, item, thread, bins.data());
      }
    }
    choose(&kept, bins);
  }
  check(passes <= (rank_bits(m) + kDigitBits - 1) / kDigitBits, "passes");
  ties += kept.open < m.offset_bits;
  const auto stays = stay_by_sort(weights, offsets, m.keep);
  for (int64_t offset : offsets) {
    if (!stays[offset]) weights[offset] = T{};
  }
  sum = {0.0, 0.0};
  for (int64_t item = 0; item < m.items; ++item) {
    for (int thread = 0; thread < kThreads; ++thread) add(thread_set_zeros(m, kept, item, thread));
  }
  for (int64_t i = 0; i < weight.memory; ++i) check(same_bits(weight.data[i], weights[i]), "what stays");
  check_sum("energies of what stays");
  if (!of_loss) return;
  const Split before = sum;
  sum = {0.0, 0.0};
  for (int64_t item = 0; item < m.items; ++item) {
    for (int thread = 0; thread < kThreads; ++thread) add(thread_squares(m, item, thread));
  }
  check(same_bits(sum.inside, before.inside) && same_bits(sum.across, before.across), "a pass alone");
}

}  // namespace

int main() {
  constexpr int kTrials = 80;
  for (int trial = 0; trial < kTrials; ++trial) {
    try_one<float, float>(DType::float32, DType::float32);
    try_one<float, BFloat>(DType::float32, DType::bfloat16);
    try_one<double, double>(DType::float64, DType::float64);
    try_one<Half, Half>(DType::float16, DType::float16);
    try_one<BFloat, BFloat>(DType::bfloat16, DType::bfloat16);
    try_one<BFloat, float>(DType::bfloat16, DType::float32);
  }
  check(packed > 20 && single > 20 && cut > 5 && ties > 20, "weights of every kind");
  std::printf("optimiser's threads: %d passed, 0 failed\n", 6 * kTrials);
}
