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
  double* lower;     // [size][size]: L with L L' = matrix of the members + ridge
  double* inverse;   // [size]: 1 / L_kk
};

MT2O_HD Factor factor_of(const Matrix& matrix, double ridge, Workspace& w) {
  const int64_t n = matrix.size;
  return {matrix, ridge, false, 0, take_indices(w, n), take(w, n * n), take(w, n)};
}

MT2O_HD void append(Factor& f, int64_t member) {
  const int64_t n = f.matrix.size, count = f.count;
  const double* entries = f.matrix.entries + member * n;
  const double* border = f.matrix.border;
  double* row = f.lower + count * n;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t other = f.members[k];
    const double entry = entries[other] + (border ? border[member] * border[other] : 0.);
    row[k] = (entry - dot(row, f.lower + k * n, k)) * f.inverse[k];
  }
  const double entry = entries[member] + (border ? border[member] * border[member] : 0.);
  const double pivot = entry + f.ridge - dot(row, row, count);
  f.indefinite = f.indefinite || pivot < 0.5 * f.ridge;
  row[count] = sqrt(greater(pivot, f.ridge));
  f.inverse[count] = 1. / row[count];
  f.members[count] = member;
  f.count = count + 1;
}

// Rows above stay as they are; those below are worked out again.
MT2O_HD void remove(Factor& f, int64_t position) {
  const int64_t count = f.count;
  f.count = position;
  for (int64_t k = position + 1; k < count; ++k) append(f, f.members[k]);
}

// x <- (L L')^-1 x, x in the order of the members.
MT2O_HD void solve(const Factor& f, double* x) {
  const int64_t n = f.matrix.size;
  for (int64_t k = 0; k < f.count; ++k) x[k] = (x[k] - dot(f.lower + k * n, x, k)) * f.inverse[k];
  for (int64_t k = f.count - 1; k >= 0; --k) {
    x[k] *= f.inverse[k];
    axpy(x, -x[k], f.lower + k * n, k);
  }
}

}  // namespace mt2o::solve
