// A Cholesky factor of a few rows and columns of a symmetric matrix, to which rows are added and from which they are
// taken, one at a time.
#pragma once
#include "rows.h"

namespace mt2o::solve {

// entries + border border'
struct Matrix {
  const double* entries;  // [size][size]
  int64_t size;
  const double* border;  // [size], or nullptr: 0
};

struct Factor {
  Matrix matrix;
  double ridge;      // added to the diagonal, and the least square that a pivot has
  bool indefinite;   // a pivot was less than the ridge leaves to a positive semidefinite matrix
  int64_t count;     // members
  int64_t* members;  // [size], in order of arrival
  double* lower;     // [size][size]: L with L L' = matrix of the members + ridge; above the diagonal its transpose
  double* inverse;   // [size]: 1 / L_kk
};

MT2O_HD Factor factor_of(const Matrix& matrix, double ridge, Workspace& w) {
  const int64_t n = matrix.size;
  return {matrix, ridge, false, 0, take_indices(w, n), take(w, n * n), take(w, n)};
}

// x <- L^-1 x or L'^-1 x for so many vectors one after the other.  As soon as an element is known, its part is taken
// off all that wait for it: no sum of them is ever waited for.
template <int Vectors>
MT2O_HD void eliminate(const Factor& f, double* x, int64_t length, bool transposed) {
  const int64_t n = f.matrix.size, count = f.count;
  for (int64_t step = 0; step < count; ++step) {
    const int64_t k = transposed ? count - 1 - step : step;
    const double* row = f.lower + k * n;
    double known[Vectors];
    for (int v = 0; v < Vectors; ++v) known[v] = x[v * length + k] * f.inverse[k];
    each(transposed ? 0 : k + 1, transposed ? k : count, [&](int64_t j) {
      for (int v = 0; v < Vectors; ++v) x[v * length + j] -= known[v] * row[j];
    });
  }
  each(0, count, [&](int64_t j) {
    for (int v = 0; v < Vectors; ++v) x[v * length + j] *= f.inverse[j];
  });
}

MT2O_HD void append(Factor& f, int64_t member) {
  const int64_t n = f.matrix.size, count = f.count;
  const double* border = f.matrix.border;
  const auto entry = [&](int64_t other) {
    return f.matrix.entries[member * n + other] + (border ? border[member] * border[other] : 0.);
  };
  double* row = f.lower + count * n;
  each(0, count, [&](int64_t k) { row[k] = entry(f.members[k]); });
  eliminate<1>(f, row, n, false);
  const double pivot = entry(member) + f.ridge - dot(row, row, count), root = sqrt(greater(pivot, f.ridge));
  f.indefinite = f.indefinite || pivot < 0.5 * f.ridge;
  each(0, count, [&](int64_t k) { f.lower[k * n + count] = row[k]; });
  once([&] { row[count] = root, f.inverse[count] = 1. / root, f.members[count] = member; });
  f.count = count + 1;
}

// Rows above stay as they are; those below are worked out again.
MT2O_HD void remove(Factor& f, int64_t position) {
  const int64_t count = f.count;
  f.count = position;
  for (int64_t k = position + 1; k < count; ++k) append(f, f.members[k]);
}

// x <- (L L')^-1 x for vectors of so many elements one after the other, in the order of the members.
template <int Vectors>
MT2O_HD void solve(const Factor& f, double* x, int64_t length) {
  eliminate<Vectors>(f, x, length, false);
  eliminate<Vectors>(f, x, length, true);
}

}  // namespace mt2o::solve
