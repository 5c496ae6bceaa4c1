#include "common/parallel.h"
#include "spectral/lines.h"
#include "spectral/spectral.h"

namespace modfast {
namespace {

constexpr int64_t kRowsOfChunk = 2048;  // a block's rows of a chunk stay in the cache

}  // namespace

template <class C>
void basis_inner(const Basis<C>& basis, const C* block, const C* weights, int64_t width, double* products,
                 ParallelFor parallel_for) {
  const auto& lines = spectral_lines_in_use().of<C>();
  const int64_t numbers = basis.width() * width;
  // The chunks' products are added up in order. Long vectors are cut into few, long chunks.
  const int64_t chunk = std::max(kRowsOfChunk, (basis.length + 127) / 128);
  const int64_t chunks = (basis.length + chunk - 1) / chunk;
  std::vector<double> collected(chunks * numbers);
  for_each_chunk(parallel_for, basis.length, chunk, [&](int64_t first, int64_t last) {
    double* of_chunk = collected.data() + first / chunk * numbers;
    for (int64_t begin = first; begin < last; begin += kRowsOfChunk) {
      const int64_t count = std::min(kRowsOfChunk, last - begin);
      double* to = of_chunk;
      for (size_t b = 0; b < basis.blocks.size(); ++b) {
        lines.inner(basis.blocks[b] + begin * basis.widths[b], basis.widths[b], block + begin * width,
                    weights ? weights + begin : nullptr, width, count, to);
        to += basis.widths[b] * width;
      }
    }
  });
  std::fill(products, products + numbers, 0.0);
  for (int64_t c = 0; c < chunks; ++c) {
    for (int64_t k = 0; k < numbers; ++k) products[k] += collected[c * numbers + k];
  }
}

template <class C>
void basis_rotate(const Basis<C>& basis, const double* factors, int64_t width, ParallelFor parallel_for) {
  const auto& lines = spectral_lines_in_use().of<C>();
  const std::vector<C> table(factors, factors + basis.width() * width);
  for_each_chunk(parallel_for, basis.length, kRowsOfChunk / 4, [&](int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    std::vector<C> rotated(count * width);
    const C* from = table.data();
    for (size_t b = 0; b < basis.blocks.size(); ++b) {
      lines.add(basis.blocks[b] + begin * basis.widths[b], basis.widths[b], from, width, count,
                rotated.data());
      from += basis.widths[b] * width;
    }
    int64_t first = 0;
    for (size_t b = 0; first < width; first += basis.widths[b++]) {
      C* to = basis.blocks[b] + begin * basis.widths[b];
      for (int64_t i = 0; i < count; ++i) {
        std::copy_n(rotated.data() + i * width + first, basis.widths[b], to + i * basis.widths[b]);
      }
    }
  });
}

template void basis_inner(const Basis<float>&, const float*, const float*, int64_t, double*, ParallelFor);
template void basis_inner(const Basis<double>&, const double*, const double*, int64_t, double*, ParallelFor);
template void basis_rotate(const Basis<float>&, const double*, int64_t, ParallelFor);
template void basis_rotate(const Basis<double>&, const double*, int64_t, ParallelFor);

}  // namespace modfast
