// The enmeshment loss of a whole model: its energies inside and across clusters, and its gradient.
#include "energy/items.h"

#include <algorithm>

namespace modfast {
namespace {

// Terms whose weights together fit well into a last-level cache are finished before the next are begun, so
// that their weights come from memory once and not twice.
constexpr int64_t kGroupBytes = 12 << 20;

// Gradients larger than this have left the cache before they are read, so they are written past it.
constexpr int64_t kStreamedBytes = 32 << 20;

int64_t bytes_of(const std::vector<Term>& terms, size_t begin, size_t end) {
  int64_t bytes = 0;
  for (size_t t = begin; t < end; ++t) {
    bytes += int64_t(terms[t].labels.rows.size()) * int64_t(terms[t].labels.cols.size()) *
             int64_t(terms[t].weight.plane_offsets.size()) * bytes_of(terms[t].weight.dtype);
  }
  return bytes;
}

void energies_of(const std::vector<Term>& terms, size_t begin, size_t end, Split* energies,
                 ParallelFor parallel_for) {
  std::vector<Grid> grids;
  Items items;
  grids.reserve(end - begin);
  for (size_t t = begin; t < end; ++t) {
    grids.emplace_back(terms[t].labels);
    items.add(grids.back(), {&terms[t].weight});
  }
  std::vector<Split> partial(static_cast<size_t>(items.size()));
  for_each_item(parallel_for, items, false, [&](int64_t item) {
    const size_t t = items.matrix_of(item);
    alignas(64) double sums[kTileCols];
    item_column_sums(grids[t], item - items.first(t), terms[begin + t].weight, nullptr, sums);
    partial[item] = item_split(grids[t], item - items.first(t), sums);
  });
  for (size_t t = 0; t < grids.size(); ++t) {
    Split sum{0.0, 0.0};
    for (int64_t item = items.first(t); item < items.first(t + 1); ++item) {
      sum.inside += partial[item].inside;
      sum.across += partial[item].across;
    }
    energies[begin + t] = sum;
  }
}

// A thread goes from the last row to the first: the rows that the energies read last are still in the cache.
void scale(const std::vector<Term>& terms, size_t begin, size_t end, const Split* factors, Into into,
           ParallelFor parallel_for) {
  std::vector<Strips> strips;
  Items items;
  strips.reserve(end - begin);
  for (size_t t = begin; t < end; ++t) {
    strips.emplace_back(terms[t].labels);
    items.add(strips.back(), {&terms[t].weight, &terms[t].grad});
  }
  for_each_item(parallel_for, items, true, [&](int64_t item) {
    const size_t t = items.matrix_of(item);
    const Term& term = terms[begin + t];
    strip_scale_split(strips[t], item - items.first(t), term.labels, term.weight, factors[begin + t],
                      term.grad, into);
  });
}

}  // namespace

void split_energies(const std::vector<Term>& terms, Split* energies, ParallelFor parallel_for) {
  energies_of(terms, 0, terms.size(), energies, parallel_for);
}

void split_scale(const std::vector<Term>& terms, const Split* factors, Into into, ParallelFor parallel_for) {
  const bool large = bytes_of(terms, 0, terms.size()) > kStreamedBytes;
  scale(terms, 0, terms.size(), factors, into == Into::fresh && large ? Into::streamed : into, parallel_for);
}

void accumulate_enmeshment(const std::vector<Term>& terms, double slope, double* losses,
                           ParallelFor parallel_for) {
  std::vector<Split> energies(terms.size()), factors(terms.size());
  for (size_t begin = 0, end = 0; begin < terms.size(); begin = end) {
    int64_t bytes = 0;
    do {
      bytes += bytes_of(terms, end, end + 1);
      ++end;
    } while (end < terms.size() && bytes < kGroupBytes);
    energies_of(terms, begin, end, energies.data(), parallel_for);
    for (size_t t = begin; t < end; ++t) {
      losses[t] = enmeshment_of(energies[t]);
      factors[t] = enmeshment_factors(energies[t], slope);
    }
    scale(terms, begin, end, factors.data(), Into::sum, parallel_for);
  }
}

}  // namespace modfast
