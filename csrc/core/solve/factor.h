// A Cholesky factor of a few rows and columns of a symmetric matrix, to which rows are added and from which they are
// taken.
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
  int64_t listed;    // members
  int64_t count;     // of these, the first ones, for which `lower` holds
  int64_t* members;  // [size], in order of arrival
  double* lower;     // [size][size]: L with L L' = matrix of the members + ridge; above the diagonal its transpose
  double* inverse;   // [size]: 1 / L_kk
};

MT2O_HD Factor factor_of(const Matrix& matrix, double ridge, Workspace& w) {
  const int64_t n = matrix.size;
  return {matrix, ridge, false, 0, 0, take_indices(w, n), take(w, n * n), take(w, n)};
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

MT2O_HD void list(Factor& f, int64_t member) {
  once([&] { f.members[f.listed] = member; });
  ++f.listed;
}

// The factor of all members.
MT2O_HD void complete(Factor& f) {
  const int64_t n = f.matrix.size;
  const double* border = f.matrix.border;
  for (int64_t i = f.count; i < f.listed; ++i) {
    const int64_t member = f.members[i];
    const auto entry = [&](int64_t other) {
      return f.matrix.entries[member * n + other] + (border ? border[member] * border[other] : 0.);
    };
    double* row = f.lower + i * n;
    each(0, i, [&](int64_t k) { row[k] = entry(f.members[k]); });
    f.count = i;
    eliminate<1>(f, row, n, false);
    const double pivot = entry(member) + f.ridge - dot(row, row, i), root = sqrt(greater(pivot, f.ridge));
    f.indefinite = f.indefinite || pivot < 0.5 * f.ridge;
    each(0, i, [&](int64_t k) { f.lower[k * n + i] = row[k]; });
    once([&] { row[i] = root, f.inverse[i] = 1. / root; });
  }
  f.count = f.listed;
}

// Members for which value[member] is zero leave.  The rows of those before the first of them stay as they are.
MT2O_HD void unlist_zeros(Factor& f, const double* value) {
  const int64_t listed = f.listed;
  f.listed = 0;
  for (int64_t k = 0; k < listed; ++k) {
    const int64_t member = f.members[k];
    if (value[member] == 0.)
      f.count = least(f.count, k);
    else
      list(f, member);
  }
}

// x <- (L L')^-1 x for vectors of so many elements one after the other, in the order of the members.
template <int Vectors>
MT2O_HD void solve(const Factor& f, double* x, int64_t length) {
  for (int pass = 0; pass < 2; ++pass) eliminate<Vectors>(f, x, length, pass == 1);
}

// Of a symmetric matrix, given in f.lower, with all rows as members: the same factor, worked out there.
MT2O_HD void factorise(Factor& f) {
  const int64_t n = f.matrix.size;
  for (int64_t k = 0; k < n; ++k) {
    double* row = f.lower + k * n;  // of L', from its diagonal on
    combine(
        row + k, n - k, [&](int64_t i) { return row[k + i]; }, k, [&](int64_t j) { return -f.lower[j * n + k]; },
        [&](int64_t j) { return f.lower + j * n + k; });
    const double root = sqrt(greater(row[k] + f.ridge, f.ridge)), inverse = 1. / root;
    each(k + 1, n, [&](int64_t j) { f.lower[j * n + k] = row[j] *= inverse; });
    once([&] { row[k] = root, f.inverse[k] = inverse; });
  }
  f.count = f.listed = n;
}

}  // namespace mt2o::solve
