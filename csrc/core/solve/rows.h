// What all solvers begin with: scratch, small vectors, and the rows of one problem at length one.
#pragma once
#include "arguments.h"
#include "numbers.h"

namespace mt2o::solve {

// Scratch is taken from the front and never given back.
struct Workspace {
  double* next;
};
MT2O_HD double* take(Workspace& w, int64_t count) {
  double* taken = w.next;
  w.next += count;
  return taken;
}
MT2O_HD int64_t* take_indices(Workspace& w, int64_t count) { return reinterpret_cast<int64_t*>(take(w, count)); }

MT2O_HD Workspace workspace_of(const GramProblems& all, int64_t k) { return {all.workspace + k * all.workspace_row}; }
MT2O_HD const double* gram_of(const GramProblems& all, int64_t k) { return all.gram + k * all.tasks * all.tasks; }

MT2O_HD_CALL void fill(double* x, int64_t n, double value) {
  for (int64_t i = 0; i < n; ++i) x[i] = value;
}
MT2O_HD_CALL void copy(double* x, const double* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = from[i];
}
MT2O_HD_CALL bool all_finite(const double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    if (!is_finite(x[i])) return false;
  return true;
}
// Four sums in turn: what the additions wait for is a quarter as long.
MT2O_HD_CALL double dot(const double* a, const double* b, int64_t n) {
  double s0 = 0., s1 = 0., s2 = 0., s3 = 0.;
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    s0 += a[i] * b[i];
    s1 += a[i + 1] * b[i + 1];
    s2 += a[i + 2] * b[i + 2];
    s3 += a[i + 3] * b[i + 3];
  }
  for (; i < n; ++i) s0 += a[i] * b[i];
  return (s0 + s2) + (s1 + s3);
}
// What the solvers' own arithmetic leaves of combinations of n rows, whatever the rows are accurate to.
MT2O_HD double least_rtol(int64_t n) { return 8. * epsilon * double(n); }

// y += a x
MT2O_HD_CALL void axpy(double* y, double a, const double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}
// y = A x, A [n][n]
MT2O_HD void multiply(double* y, const double* matrix, const double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = dot(matrix + i * n, x, n);
}

// The rows that are not zero: Q_ij = scale lengths_i lengths_j cosines_ij, the longest with 1 <= length < 4.
struct Rows {
  int64_t tasks, count;
  double scale;       // a power of four
  int64_t* tasks_of;  // [count]: which task each of them is
  double* lengths;    // [count]
  double* cosines;    // [count][count]
};

MT2O_HD Rows rows_of(const double* gram, int64_t tasks, Workspace& w) {
  Rows rows = {tasks, 0, 1., take_indices(w, tasks), take(w, tasks), nullptr};
  double largest = 0.;
  for (int64_t t = 0; t < tasks; ++t) {
    const double square = gram[t * tasks + t];
    if (square > 0.) rows.tasks_of[rows.count++] = t, largest = greater(largest, square);
  }
  if (rows.count > 0) rows.scale = power_of_four(largest);
  const int64_t n = rows.count;
  rows.cosines = take(w, n * n);
  for (int64_t i = 0; i < n; ++i) {
    const double* row = gram + rows.tasks_of[i] * tasks;
    rows.lengths[i] = sqrt(row[rows.tasks_of[i]] / rows.scale);
    for (int64_t j = 0; j < i; ++j)
      rows.cosines[i * n + j] = rows.cosines[j * n + i] =
          row[rows.tasks_of[j]] / rows.scale / rows.lengths[i] / rows.lengths[j];
    rows.cosines[i * n + i] = 1.;
  }
  return rows;
}

// weights of all tasks from those of the rows that are there; y: in units of rows of length one.
MT2O_HD void to_weights(double* weights, const Rows& rows, const double* y, double factor) {
  fill(weights, rows.tasks, 0.);
  for (int64_t i = 0; i < rows.count; ++i) weights[rows.tasks_of[i]] = y[i] / rows.lengths[i] * factor;
}

}  // namespace mt2o::solve
