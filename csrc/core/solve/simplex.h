// min w'Qw/2 + q'w over the simplex: weights of the vector of least norm in a convex hull (MGDA, SDMGrad).
#pragma once
#include "active_set.h"

namespace mt2o::solve {

// The same over v >= 0 with sum v = m, in y = lengths v: a'y = m min lengths with a = min lengths / lengths, so that
// C + a a' is regular for affinely independent rows, whatever their lengths.
struct Simplex {
  ActiveSet set;
  double shortest;  // min lengths
};

MT2O_HD Simplex simplex_of(const Rows& rows, Workspace& w) {
  double* border = take(w, rows.count);
  double shortest = rows.lengths[0];
  for (int64_t i = 1; i < rows.count; ++i) shortest = lesser(shortest, rows.lengths[i]);
  for (int64_t i = 0; i < rows.count; ++i) border[i] = shortest / rows.lengths[i];
  Simplex s = {active_set_of(rows.cosines, border, rows.count, w), shortest};
  fill(s.set.linear, rows.count, 0.);
  return s;
}

// Begins in the best vertex of the simplex of size m.
MT2O_HD void start(Simplex& s, const Rows& rows, double size) {
  int64_t best = 0;
  double least = infinity();
  for (int64_t i = 0; i < rows.count; ++i) {
    const double y = size * rows.lengths[i], value = y * (0.5 * y + s.set.linear[i]);
    if (value < least) best = i, least = value;
  }
  fill(s.set.y, rows.count, 0.);
  s.set.y[best] = size * rows.lengths[best];
  s.set.total = size * s.shortest;
  append(s.set.factor, best);
}

// |J'v|^2
MT2O_HD double square_norm(const Simplex& s) {
  double sum = 0.;
  for (int64_t k = 0; k < s.set.factor.count; ++k) {
    const int64_t i = s.set.factor.members[k];
    sum += s.set.y[i] * dot(s.set.cosines + i * s.set.size, s.set.y, s.set.size);
  }
  return greater(sum, 0.);
}

// Two rows: the foot of the perpendicular from the origin, or an end of the segment.
MT2O_HD void two_rows(const Rows& rows, const double* linear, double* weights) {
  const double a = rows.lengths[0], b = rows.lengths[1], product = rows.cosines[1] * a * b;
  const double slope = linear[1] * b - linear[0] * a;
  const double first = b * b - product + slope, second = a * a - product - slope;
  fill(weights, rows.tasks, 0.);
  double w = first / (first + second), rest = second / (first + second);
  if (first <= 0. || second <= 0.) w = first > second ? 1. : first < second ? 0. : 0.5, rest = 1. - w;
  weights[rows.tasks_of[0]] = w;
  weights[rows.tasks_of[1]] = rest;
}

// linear: q / lengths, or nullptr.
MT2O_HD void minimum_norm(const Rows& rows, const double* linear, double* weights, Workspace& w) {
  Simplex s = simplex_of(rows, w);
  if (linear) copy(s.set.linear, linear, rows.count);
  if (rows.count == 2) return two_rows(rows, s.set.linear, weights);
  start(s, rows, 1.);
  minimise(s.set);
  to_weights(weights, rows, s.set.y, 1.);
}

}  // namespace mt2o::solve

namespace mt2o {

MT2O_HD void solve_one(const MinimumNorm& s, int64_t k) {
  const int64_t tasks = s.all.tasks;
  const double* gram = solve::gram_of(s.all, k);
  const double* linear = s.linear ? s.linear + k * tasks : nullptr;
  double* weights = s.weights + k * tasks;
  if (!solve::all_finite(gram, tasks * tasks) || (linear && !solve::all_finite(linear, tasks)))
    return solve::fill(weights, tasks, solve::not_a_number());
  solve::Workspace w = solve::workspace_of(s.all, k);
  const solve::Rows rows = solve::rows_of(gram, tasks, w);
  if (rows.count == 0) return solve::fill(weights, tasks, 0.);
  double* per_row = nullptr;
  if (linear) {
    per_row = solve::take(w, rows.count);
    for (int64_t i = 0; i < rows.count; ++i) per_row[i] = linear[rows.tasks_of[i]] / rows.scale / rows.lengths[i];
  }
  solve::minimum_norm(rows, per_row, weights, w);
}

}  // namespace mt2o
