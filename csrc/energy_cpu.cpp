// The enmeshment loss of a whole model: its energies inside and across clusters, and its gradient.
#include "energy_items.h"

#include <algorithm>

namespace modfast {
namespace {

// Terms whose weights together fit well into a last-level cache are finished before the next are begun, so
// that their weights come from memory once and not twice.
constexpr int64_t kGroupBytes = 12 << 20;

int64_t bytes_per_number(DType dtype) {
  switch (dtype) {
    case DType::float64: return 8;
    case DType::float32: return 4;
    default: return 2;
  }
}

// The items of several terms in one row, so that many small matrices fill the threads as one large one does.
class Items {
 public:
  Items(const std::vector<Term>& terms, size_t begin, size_t end, ParallelFor parallel_for)
      : terms_(terms), begin_(begin), parallel_for_(parallel_for) {
    grids_.reserve(end - begin);
    for (size_t t = begin; t < end; ++t) {
      grids_.emplace_back(terms[t].labels);
      numbers_ += grids_.back().numbers();
      first_item_.push_back(first_item_.back() + grids_.back().items());
    }
    partial_.resize(static_cast<size_t>(first_item_.back()));
  }

  // energies[t] for the terms, counted from the first of all terms.
  void energies(Split* energies) {
    for_each_item(parallel_for_, first_item_.back(), numbers_, false, [&](int64_t item) {
      const size_t t = term_of(item);
      const Grid& grid = grids_[t];
      const int64_t own = item - first_item_[t];
      alignas(64) double sums[kTileCols];
      item_column_sums(grid, own, terms_[begin_ + t].weight, nullptr, sums);
      partial_[item] = split(grid, own, sums);
    });
    for (size_t t = 0; t < grids_.size(); ++t) {
      Split sum{0.0, 0.0};
      for (int64_t item = first_item_[t]; item < first_item_[t + 1]; ++item) {
        sum.inside += partial_[item].inside;
        sum.across += partial_[item].across;
      }
      energies[begin_ + t] = sum;
    }
  }

  void scale(const Split* factors, Into into) {
    for_each_item(parallel_for_, first_item_.back(), numbers_, true, [&](int64_t item) {
      const size_t t = term_of(item);
      const Grid& grid = grids_[t];
      const int64_t own = item - first_item_[t];
      const Split of_term = factors[begin_ + t];
      alignas(64) double factor[kTileCols];
      const int32_t none = grid.labels.count - 1, row = grid.chunk(own).label;
      const int32_t* cols = grid.labels.cols.data() + grid.first_col(own);
      for (int64_t j = 0; j < grid.num_cols(own); ++j) {
        factor[j] = same_cluster(row, cols[j], none) ? of_term.inside : of_term.across;
      }
      const Term& term = terms_[begin_ + t];
      item_scale(grid, own, term.weight, factor, !fits_in_float(of_term), term.grad, into);
    });
  }

 private:
  size_t term_of(int64_t item) const {
    return std::upper_bound(first_item_.begin(), first_item_.end(), item) - first_item_.begin() - 1;
  }

  // The column sums of an item by kind. Eight sums of each, since an addition waits for the one before; a
  // fixed number, so that every instruction set gives the same bits.
  static Split split(const Grid& grid, int64_t item, const double* sums) {
    constexpr int64_t kLanes = 8;
    double inside[kLanes] = {}, across[kLanes] = {};
    const int32_t none = grid.labels.count - 1, row = grid.chunk(item).label;
    const int32_t* cols = grid.labels.cols.data() + grid.first_col(item);
    const int64_t n = grid.num_cols(item);
    const auto add = [&](int64_t j, int64_t lane) {
      const bool same = same_cluster(row, cols[j], none);
      inside[lane] += same ? sums[j] : 0.0;
      across[lane] += same ? 0.0 : sums[j];
    };
    int64_t j = 0;
    for (; j + kLanes <= n; j += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) add(j + lane, lane);
    }
    for (; j < n; ++j) add(j, 0);
    Split sum{0.0, 0.0};
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      sum.inside += inside[lane];
      sum.across += across[lane];
    }
    return sum;
  }

  const std::vector<Term>& terms_;
  size_t begin_;
  ParallelFor parallel_for_;
  std::vector<Grid> grids_;
  std::vector<int64_t> first_item_{0};
  int64_t numbers_ = 0;
  std::vector<Split> partial_;
};

}  // namespace

void split_energies(const std::vector<Term>& terms, Split* energies, ParallelFor parallel_for) {
  Items(terms, 0, terms.size(), parallel_for).energies(energies);
}

void split_scale(const std::vector<Term>& terms, const Split* factors, Into into, ParallelFor parallel_for) {
  Items(terms, 0, terms.size(), parallel_for).scale(factors, into);
}

void accumulate_enmeshment(const std::vector<Term>& terms, double scale, double* losses,
                           ParallelFor parallel_for) {
  std::vector<Split> energies(terms.size()), factors(terms.size());
  for (size_t begin = 0, end = 0; begin < terms.size(); begin = end) {
    int64_t bytes = 0;
    do {
      const Labels& labels = terms[end].labels;
      bytes += int64_t(labels.rows.size()) * int64_t(labels.cols.size()) *
               int64_t(terms[end].weight.plane_offsets.size()) * bytes_per_number(terms[end].weight.dtype);
      ++end;
    } while (end < terms.size() && bytes < kGroupBytes);
    Items items(terms, begin, end, parallel_for);
    items.energies(energies.data());
    for (size_t t = begin; t < end; ++t) {
      losses[t] = enmeshment_of(energies[t]);
      factors[t] = enmeshment_factors(energies[t], scale);
    }
    items.scale(factors.data(), Into::sum);
  }
}

}  // namespace modfast
