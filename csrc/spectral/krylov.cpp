#include "spectral/krylov.h"

#include "spectral/kmeans.h"
#include "spectral/small.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace modfast {
namespace {

// Rounds of orthonormalisation. Usually two suffice; nearly dependent directions take more.
constexpr int kMostRounds = 5;

// Two matrices of the same width, one above the other.
Small above(const Small& top, const Small& bottom) {
  Small both(top.rows + bottom.rows, top.cols);
  std::copy(top.numbers.begin(), top.numbers.end(), both.numbers.begin());
  std::copy(bottom.numbers.begin(), bottom.numbers.end(), both.numbers.begin() + top.numbers.size());
  return both;
}

Small some_rows(const Small& from, int64_t first, int64_t count) {
  Small part(count, from.cols);
  std::copy_n(from[first], count * from.cols, part.numbers.data());
  return part;
}

// The largest distance of a matrix from the identity, or, without unit, from zero.
double away(const Small& matrix, bool unit) {
  double most = 0;
  for (int64_t i = 0; i < matrix.rows; ++i) {
    for (int64_t j = 0; j < matrix.cols; ++j) {
      most = std::max(most, std::abs(matrix[i][j] - (unit && i == j ? 1.0 : 0.0)));
    }
  }
  return most;
}

template <class C>
class Solver {
 public:
  Solver(const Krylov<C>& problem, ParallelFor parallel_for)
      : problem_(problem),
        parallel_for_(parallel_for),
        width_(problem.width),
        rounding_(sizeof(C) == 4 ? 1e-6 : 1e-14),
        random_{problem.seed} {}

  Eigen solve(std::vector<C>* vectors) {
    blocks_.push_back(std::move(*vectors));
    Small along, coupling;
    if (!orthonormal(&blocks_[0], {}, &along, &coupling)) {
      throw std::invalid_argument("starting vectors must not be zero");
    }
    Small projected(problem_.capacity, problem_.capacity);
    Eigen found;
    std::vector<C> following;
    while (true) {
      const auto last = static_cast<int64_t>(blocks_.size()) - 1;
      const int64_t size = width_ * (last + 1), wanted = problem_.count;
      following.assign(blocks_[0].size(), C(0));
      problem_.product(blocks_[last].data(), following.data());
      ++found.products;
      const bool goes_on = orthonormal(&following, pointers(), &along, &coupling);
      put(along, last * width_, &projected);

      Small ritz(size, size);  // row i: the coordinates of Ritz vector i, the smallest value first
      for (int64_t i = 0; i < size; ++i) std::copy_n(projected[i], size, ritz[i]);
      std::vector<double> values;
      symmetric_eigen(&ritz, &values);
      found.values.clear();
      found.residuals.clear();
      bool converged = true;
      for (int64_t j = 0; j < wanted; ++j) {
        const double* vector = ritz[size - 1 - j] + last * width_;
        double square = 0;
        for (int64_t i = 0; i < width_; ++i) {
          double sum = 0;
          for (int64_t k = 0; k < width_; ++k) sum += coupling[i][k] * vector[k];
          square += sum * sum;
        }
        found.values.push_back(values[size - 1 - j]);
        found.residuals.push_back(std::sqrt(square));
        converged = converged && found.residuals[j] <= problem_.tolerance(found.values[j]);
      }
      found.converged = converged || !goes_on;
      const bool hopeless = problem_.hopeless && size >= 3 * width_ && problem_.hopeless(found.values.back());
      if (found.converged || found.products >= problem_.max_products || hopeless) {
        rotate_to(ritz, width_);
        *vectors = std::move(blocks_[0]);
        return found;
      }
      if (size + width_ > problem_.capacity) {
        // Restart with the half of the Ritz vectors that has the largest values, and with the new block.
        const int64_t remaining = std::max(width_, size / 2 / width_ * width_);
        rotate_to(ritz, remaining);
        blocks_.resize(remaining / width_);
        std::fill(projected.numbers.begin(), projected.numbers.end(), 0.0);
        for (int64_t i = 0; i < remaining; ++i) projected[i][i] = values[size - 1 - i];
      }
      blocks_.push_back(std::move(following));
    }
  }

 private:
  const Krylov<C>& problem_;
  ParallelFor parallel_for_;
  int64_t width_;
  double rounding_;  // components below this are rounding
  Random random_;
  std::vector<std::vector<C>> blocks_;  // of the basis

  std::vector<C*> pointers() {
    std::vector<C*> all;
    for (auto& block : blocks_) all.push_back(block.data());
    return all;
  }

  // A basis of a block, or none, and others.
  Basis<C> basis(std::vector<C*> first, const std::vector<C*>& others, int64_t length) const {
    Basis<C> all;
    all.blocks = std::move(first);
    all.blocks.insert(all.blocks.end(), others.begin(), others.end());
    all.widths.assign(all.blocks.size(), width_);
    all.length = length;
    return all;
  }

  // Sets the part of the projected matrix that the last block has added: its products with the basis.
  void put(const Small& along, int64_t first, Small* projected) const {
    for (int64_t i = 0; i < along.rows; ++i) {
      for (int64_t j = 0; j < width_; ++j) {
        const double value =
            i < first ? along[i][j] : (along[i][j] + along[first + j][i - first]) / 2;  // symmetric
        (*projected)[i][first + j] = (*projected)[first + j][i] = value;
      }
    }
  }

  // The first vectors of the basis become the Ritz vectors with the largest values, and what they carry too.
  void rotate_to(const Small& ritz, int64_t number) {
    Small factors(ritz.rows, number);
    for (int64_t j = 0; j < number; ++j) {
      for (int64_t i = 0; i < ritz.rows; ++i) factors[i][j] = ritz[ritz.rows - 1 - j][i];
    }
    basis_rotate(basis({}, pointers(), problem_.length + problem_.carried), factors.numbers.data(), number,
                 parallel_for_);
  }

  Small inner(const Basis<C>& basis, const std::vector<C>& block) const {
    Small products(basis.width(), width_);
    basis_inner(basis, block.data(), problem_.weights, width_, products.numbers.data(), parallel_for_);
    return products;
  }

  void rotate(const Basis<C>& basis, const Small& factors) const {
    basis_rotate(basis, factors.numbers.data(), factors.cols, parallel_for_);
  }

  // Makes of a block B an orthonormal one Q that is orthogonal to the basis V, with B = V along + Q coupling.
  // Returns false if nothing of B is longer than rounding. See _orthonormal in krylov.py.
  bool orthonormal(std::vector<C>* block, const std::vector<C*>& others, Small* along, Small* coupling) {
    const Basis<C> all = basis({block->data()}, others, problem_.length);
    const Basis<C> alone = basis({block->data()}, {}, problem_.length);
    *along = Small(all.width() - width_, width_);
    *coupling = Small::identity(width_);
    std::vector<double> squares;
    for (int round = 0; round < kMostRounds; ++round) {
      const Small products = inner(all, *block);
      Small gram = some_rows(products, 0, width_);
      Small within = some_rows(products, width_, along->rows);
      add_product(within, *coupling, 1.0, along);
      // Checked for every block: errors of one block grow in those that follow.
      if (round > 0 && std::max(away(gram, true), away(within, false)) <= 10 * rounding_) return true;
      double longest = 0;
      for (int64_t i = 0; i < width_; ++i) longest = std::max(longest, gram[i][i]);
      // The inner products of what remains without the part in the basis.
      Small rotation = std::move(gram);
      add_turned_product(within, within, -1.0, &rotation);
      symmetric_eigen(&rotation, &squares);
      if (round == 0 && squares.back() <= std::max(rounding_ * rounding_, rounding_ * longest)) {
        // The difference of inner products has lost its digits: subtract the vectors themselves.
        Small turned = within;
        for (double& number : turned.numbers) number = -number;
        rotate(all, above(Small::identity(width_), turned));
        std::fill(within.numbers.begin(), within.numbers.end(), 0.0);
        rotation = inner(alone, *block);
        symmetric_eigen(&rotation, &squares);
        if (squares.back() <= rounding_ * rounding_) {
          *coupling = Small(width_, width_);
          return false;
        }
      }
      Small factors(width_, width_), next(width_, width_);
      for (int64_t j = 0; j < width_; ++j) {
        const double length = std::sqrt(std::max(squares[j], rounding_ * squares.back()));
        for (int64_t i = 0; i < width_; ++i) factors[i][j] = rotation[j][i] / length;
        for (int64_t i = 0; i < width_; ++i) rotation[j][i] *= length;
      }
      add_product(rotation, *coupling, 1.0, &next);
      *coupling = std::move(next);
      Small of_others(along->rows, width_);
      add_product(within, factors, -1.0, &of_others);
      rotate(all, above(factors, of_others));
    }
    std::vector<int64_t> empty;
    for (int64_t j = 0; j < width_; ++j) {
      if (squares[j] >= 0.5) continue;
      empty.push_back(j);
      std::fill_n((*coupling)[j], width_, 0.0);
    }
    if (!empty.empty()) fill(block, others, empty);
    return true;
  }

  // Fills columns of a block with random directions, orthogonal to the basis and to each other.
  void fill(std::vector<C>* block, const std::vector<C*>& others, const std::vector<int64_t>& columns) {
    const int64_t length = problem_.length;
    const C* weights = problem_.weights;
    std::vector<C> fresh(block->size());
    for (int64_t i = 0; i < length; ++i) {
      for (int64_t column : columns) {
        const double drawn = random_.uniform() - 0.5;
        fresh[i * width_ + column] = weights[i] > 0 ? static_cast<C>(drawn) : C(0);
        (*block)[i * width_ + column] = C(0);
      }
    }
    const auto overlap = [&](int64_t a, int64_t b) {
      double sum = 0;
      for (int64_t i = 0; i < length; ++i) {
        sum += static_cast<double>(weights[i]) * fresh[i * width_ + a] * fresh[i * width_ + b];
      }
      return sum;
    };
    std::vector<C*> known{block->data()};
    known.insert(known.end(), others.begin(), others.end());
    for (int round = 0; round < 3; ++round) {
      Small within = inner(basis({}, known, length), fresh);
      for (double& number : within.numbers) number = -number;
      rotate(basis({fresh.data()}, known, length), above(Small::identity(width_), within));
      for (size_t place = 0; place < columns.size(); ++place) {
        const int64_t column = columns[place];
        for (size_t before = 0; before < place; ++before) {
          const double share = overlap(columns[before], column);
          for (int64_t i = 0; i < length; ++i) {
            fresh[i * width_ + column] -= static_cast<C>(share * fresh[i * width_ + columns[before]]);
          }
        }
        const double size = std::sqrt(overlap(column, column));
        if (!(size > 0)) throw std::invalid_argument("capacity leaves no room for further directions");
        for (int64_t i = 0; i < length; ++i) {
          fresh[i * width_ + column] = static_cast<C>(fresh[i * width_ + column] / size);
        }
      }
    }
    for (int64_t i = 0; i < length; ++i) {
      for (int64_t column : columns) (*block)[i * width_ + column] = fresh[i * width_ + column];
    }
  }
};

}  // namespace

template <class C>
Eigen largest_eigenvectors(const Krylov<C>& problem, std::vector<C>* vectors, ParallelFor parallel_for) {
  return Solver<C>(problem, parallel_for).solve(vectors);
}

template Eigen largest_eigenvectors(const Krylov<float>&, std::vector<float>*, ParallelFor);
template Eigen largest_eigenvectors(const Krylov<double>&, std::vector<double>*, ParallelFor);

}  // namespace modfast
