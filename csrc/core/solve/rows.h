// What all solvers begin with: scratch, small vectors, and the rows of one problem at length one.
#pragma once
#include "arguments.h"
#include "lanes.h"
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

MT2O_HD void fill(double* x, int64_t n, double value) {
  each(0, n, [&](int64_t i) { x[i] = value; });
}
MT2O_HD void copy(double* x, const double* from, int64_t n) {
  each(0, n, [&](int64_t i) { x[i] = from[i]; });
}
MT2O_HD bool all_finite(const double* x, int64_t n) {
  return all_of(n, [&](int64_t i) { return is_finite(x[i]); });
}
MT2O_HD double dot(const double* a, const double* b, int64_t n) {
  return sum_of(n, [&](int64_t i) { return a[i] * b[i]; });
}
// The largest value(i), at least 0.
template <class Value>
MT2O_HD double largest_of(int64_t n, Value value) {
  return -least_of(n, 0., [&](int64_t i) { return -value(i); }).value;
}
// What the solvers' own arithmetic leaves of combinations of n rows, whatever the rows are accurate to.
MT2O_HD double least_rtol(int64_t n) { return 8. * epsilon * double(n); }

// y += a x
MT2O_HD void axpy(double* y, double a, const double* x, int64_t n) {
  each(0, n, [&](int64_t i) { y[i] += a * x[i]; });
}
// y = A x, A [n][n] symmetric
MT2O_HD void multiply(double* y, const double* matrix, const double* x, int64_t n) {
  combine(
      y, n, [](int64_t) { return 0.; }, n, [&](int64_t k) { return x[k]; }, [&](int64_t k) { return matrix + k * n; });
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
  once([&] {
    for (int64_t t = 0, n = 0; t < tasks; ++t)
      if (gram[t * tasks + t] > 0.) rows.tasks_of[n++] = t;
  });
  for (int64_t t = 0; t < tasks; ++t) rows.count += gram[t * tasks + t] > 0.;
  const double largest = largest_of(tasks, [&](int64_t t) { return gram[t * tasks + t]; });
  if (rows.count > 0) rows.scale = power_of_four(largest);
  const int64_t n = rows.count;
  rows.cosines = take(w, n * n);
  each(0, n, [&](int64_t i) { rows.lengths[i] = sqrt(gram[rows.tasks_of[i] * (tasks + 1)] / rows.scale); });
  for (int64_t i = 0; i < n; ++i) {
    const double* row = gram + rows.tasks_of[i] * tasks;
    each(0, i + 1, [&](int64_t j) {
      rows.cosines[i * n + j] = rows.cosines[j * n + i] =
          j == i ? 1. : row[rows.tasks_of[j]] / rows.scale / rows.lengths[i] / rows.lengths[j];
    });
  }
  return rows;
}

// weights of all tasks from those of the rows that are there; y: in units of rows of length one.
MT2O_HD void to_weights(double* weights, const Rows& rows, const double* y, double factor) {
  fill(weights, rows.tasks, 0.);
  each(0, rows.count, [&](int64_t i) { weights[rows.tasks_of[i]] = y[i] / rows.lengths[i] * factor; });
}

}  // namespace mt2o::solve
