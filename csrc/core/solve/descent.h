// EPO search (Mahapatra & Rajan, 2020): a linear program that balances the losses along a ray, or descends in all.
#pragma once
#include "program.h"
#include "simplex.h"

namespace mt2o::solve {

// How far the losses are from the ray, and a = sum(r l) d(non-uniformity)/dl, of all tasks; 0 where it is rounding.
MT2O_HD double non_uniformity(const double* losses, const double* rays, int64_t tasks, double* a) {
  double sum = 0., mu = 0.;
  for (int64_t t = 0; t < tasks; ++t) sum += rays[t] * losses[t];
  for (int64_t t = 0; t < tasks; ++t) {
    const double share = rays[t] * losses[t] / sum;
    a[t] = log(double(tasks) * greater(share, epsilon));
    mu += share * a[t];
  }
  const double rounding = 4. * double(tasks) * epsilon;
  for (int64_t t = 0; t < tasks; ++t) a[t] = absolute(a[t] - mu) <= rounding ? 0. : rays[t] * (a[t] - mu);
  return mu;
}

// The program: rows are divided by their lengths and all is in units of the longest row.
struct DescentProgram {
  int64_t conditions;
  double *matrix, *bound, *objective;  // [n + 1][n], [n + 1], [n]
};

// matrix: inner products of all rows with row i at length one.
MT2O_HD void products_with(const Rows& rows, double longest, int64_t i, double* row) {
  for (int64_t j = 0; j < rows.count; ++j) row[j] = rows.cosines[i * rows.count + j] * rows.lengths[j] / longest;
}

// max w'Qa: conflict with no row whose loss should fall, least of all with the worst.
MT2O_HD void balance(DescentProgram& p, const Rows& rows, double longest, const double* moved, const double* weighted) {
  const int64_t n = rows.count;
  double worst = 0.;
  bool any = false;
  for (int64_t i = 0; i < n; ++i) {
    worst = greater(worst, weighted[rows.tasks_of[i]]);
    any = any || moved[i] > 0.;
    p.objective[i] = moved[i] * rows.lengths[i];
  }
  for (int64_t i = 0; i < n; ++i) {
    const bool is_worst = weighted[rows.tasks_of[i]] == worst;
    if (moved[i] > 0. && !is_worst) continue;
    products_with(rows, longest, i, p.matrix + p.conditions * n);
    p.bound[p.conditions++] = any && !is_worst ? moved[i] : 0.;
  }
}

// max 1'Qw: conflict with no row; do not move from the ray more than must be, unless relaxed.
MT2O_HD void descend(DescentProgram& p, const Rows& rows, double longest, const double* moved, bool relax) {
  const int64_t n = rows.count;
  fill(p.objective, n, 0.);
  double largest = 0., best = -infinity();
  for (int64_t i = 0; i < n; ++i) {
    double* row = p.matrix + i * n;
    products_with(rows, longest, i, row);
    axpy(p.objective, rows.lengths[i], row, n);
    p.bound[i] = 0.;
    largest = greater(largest, absolute(moved[i] * rows.lengths[i]));
    best = greater(best, moved[i] * rows.lengths[i]);
  }
  p.conditions = n;
  if (relax || largest == 0.) return;
  for (int64_t i = 0; i < n; ++i) p.matrix[n * n + i] = moved[i] * rows.lengths[i] / largest;
  p.bound[p.conditions++] = lesser(best / largest, 0.);
}

MT2O_HD void scale_to_one(double* x, int64_t n) {
  double largest = 0.;
  for (int64_t i = 0; i < n; ++i) largest = greater(largest, absolute(x[i]));
  for (int64_t i = 0; largest > 0. && i < n; ++i) x[i] /= largest;
}

// weights: w of the program; false if it has no solution.
MT2O_HD bool exact_pareto(const Descent& s, const Rows& rows, const double* losses, const double* rays, double* weights,
                          Workspace w) {
  const int64_t n = rows.count;
  double *all = take(w, s.all.tasks), *weighted = take(w, s.all.tasks), *moved = take(w, n), *solution = take(w, n);
  const double mu = non_uniformity(losses, rays, s.all.tasks, all);
  double longest = 0.;
  for (int64_t i = 0; i < n; ++i) longest = greater(longest, rows.lengths[i]);
  for (int64_t i = 0; i < s.all.tasks; ++i) weighted[i] = rays[i] * losses[i];
  DescentProgram p = {0, take(w, (n + 1) * n), take(w, n + 1), take(w, n)};
  for (int64_t i = 0; i < n; ++i) {
    products_with(rows, longest, i, p.matrix);
    moved[i] = 0.;
    for (int64_t j = 0; j < n; ++j) moved[i] += p.matrix[j] * all[rows.tasks_of[j]];
  }
  if (mu > s.tolerance)
    balance(p, rows, longest, moved, weighted);
  else
    descend(p, rows, longest, moved, s.relax);
  scale_to_one(p.objective, n);
  int64_t vertex = 0;
  for (int64_t i = 1; i < n; ++i)
    if (p.objective[i] > p.objective[vertex]) vertex = i;
  Program program = program_of(p.objective, p.matrix, p.bound, n, p.conditions, vertex, w);
  if (!maximise(program, solution)) return false;
  fill(weights, rows.tasks, 0.);
  for (int64_t i = 0; i < n; ++i) weights[rows.tasks_of[i]] = solution[i];
  return true;
}

}  // namespace mt2o::solve

namespace mt2o {

MT2O_HD void solve_one(const Descent& s, int64_t k) {
  const int64_t tasks = s.all.tasks;
  const double* gram = solve::gram_of(s.all, k);
  const double *losses = s.losses + k * tasks, *rays = s.rays + k * tasks;
  double* weights = s.weights + k * tasks;
  bool valid = solve::all_finite(gram, tasks * tasks), any = false;
  for (int64_t t = 0; t < tasks; ++t) {
    const double weighted = rays[t] * losses[t];
    valid = valid && solve::is_finite(losses[t]) && solve::is_finite(rays[t]) && weighted >= 0.;
    any = any || weighted > 0.;
  }
  if (!valid || !any) return solve::fill(weights, tasks, solve::not_a_number());
  solve::Workspace w = solve::workspace_of(s.all, k);
  const solve::Rows rows = solve::rows_of(gram, tasks, w);
  if (rows.count == 0) return solve::fill(weights, tasks, 0.);
  if (!solve::exact_pareto(s, rows, losses, rays, weights, w)) solve::minimum_norm(rows, nullptr, weights, w);
}

}  // namespace mt2o
