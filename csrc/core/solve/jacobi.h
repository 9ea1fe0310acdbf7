// Eigenvalues and eigenvectors of a symmetric matrix by Jacobi's rotations, row by row (Golub & Van Loan, 8.5).
#pragma once
#include "rows.h"

namespace mt2o::solve {

// Rows x and y become c x - s y and s x + c y.
MT2O_HD void rotate(double* x, double* y, double c, double s, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double a = x[i], b = y[i];
    x[i] = c * a - s * b;
    y[i] = s * a + c * b;
  }
}

// matrix [n][n] becomes diagonal, rows of vectors [n][n] its eigenvectors.
MT2O_HD void diagonalise(double* matrix, double* vectors, int64_t n) {
  double largest = 0.;
  for (int64_t i = 0; i < n * n; ++i) largest = greater(largest, absolute(matrix[i])), vectors[i] = 0.;
  for (int64_t i = 0; i < n; ++i) vectors[i * n + i] = 1.;
  // Beside its own diagonal, so that rows of very different lengths keep small eigenvalues to all digits (Demmel &
  // Veselic, 1992); where that is rounding itself, beside the largest entry.
  const double negligible = largest * 0x1p-60;
  bool rotated = true;
  for (int sweep = 0; sweep < 40 && rotated; ++sweep) {
    rotated = false;
    for (int64_t p = 0; p + 1 < n; ++p)
      for (int64_t q = p + 1; q < n; ++q) {
        double *row_p = matrix + p * n, *row_q = matrix + q * n;
        const double pp = row_p[p], qq = row_q[q], pq = row_p[q];
        const bool positive = pp > 0. && qq > 0.;
        if (positive ? pq * pq <= 0x1p-106 * pp * qq : absolute(pq) <= negligible) continue;
        const double theta = (qq - pp) / (2. * pq);
        const double t = (theta < 0. ? -1. : 1.) / (absolute(theta) + sqrt(theta * theta + 1.));
        const double c = 1. / sqrt(t * t + 1.), s = t * c;
        rotate(row_p, row_q, c, s, n);
        row_p[p] = pp - t * pq, row_q[q] = qq + t * pq, row_p[q] = row_q[p] = 0.;
        for (int64_t k = 0; k < n; ++k)
          if (k != p && k != q) matrix[k * n + p] = row_p[k], matrix[k * n + q] = row_q[k];
        rotate(vectors + p * n, vectors + q * n, c, s, n);
        rotated = true;
      }
  }
}

}  // namespace mt2o::solve

namespace mt2o {

MT2O_HD void solve_one(const Eigen& s, int64_t k) {
  const int64_t n = s.all.tasks;
  const double* gram = solve::gram_of(s.all, k);
  double *values = s.values + k * n, *vectors = s.vectors + k * n * n;
  if (!solve::all_finite(gram, n * n)) {
    solve::fill(values, n, solve::not_a_number());
    return solve::fill(vectors, n * n, solve::not_a_number());
  }
  double largest = 0.;
  for (int64_t i = 0; i < n * n; ++i) largest = solve::greater(largest, solve::absolute(gram[i]));
  const double scale = largest > 0. ? solve::power_of_four(largest) : 1.;
  solve::Workspace w = solve::workspace_of(s.all, k);
  double *matrix = solve::take(w, n * n), *rows = solve::take(w, n * n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) matrix[i * n + j] = matrix[j * n + i] = gram[i * n + j] / scale;
  solve::diagonalise(matrix, rows, n);
  int64_t* order = solve::take_indices(w, n);  // by insertion
  for (int64_t i = 0; i < n; ++i) {
    int64_t at = i;
    for (; at > 0 && matrix[order[at - 1] * (n + 1)] > matrix[i * (n + 1)]; --at) order[at] = order[at - 1];
    order[at] = i;
  }
  for (int64_t i = 0; i < n; ++i) {
    values[i] = matrix[order[i] * (n + 1)] * scale;
    for (int64_t j = 0; j < n; ++j) vectors[j * n + i] = rows[order[i] * n + j];
  }
}

}  // namespace mt2o
