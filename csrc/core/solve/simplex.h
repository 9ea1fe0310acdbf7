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
  const double shortest = least_of(rows.count, infinity(), [&](int64_t i) { return rows.lengths[i]; }).value;
  each(0, rows.count, [&](int64_t i) { border[i] = shortest / rows.lengths[i]; });
  Simplex s = {active_set_of(rows.cosines, border, rows.count, w), shortest};
  fill(s.set.linear, rows.count, 0.);
  return s;
}

// Begins in the best vertex of the simplex of size m.
MT2O_HD void start(Simplex& s, const Rows& rows, double size) {
  const Least best = least_of(rows.count, infinity(), [&](int64_t i) {
    const double y = size * rows.lengths[i];
    return y * (0.5 * y + s.set.linear[i]);
  });
  const int64_t at = best.at < 0 ? 0 : best.at;
  each(0, rows.count, [&](int64_t i) { s.set.y[i] = i == at ? size * rows.lengths[i] : 0.; });
  s.set.total = size * s.shortest;
  list(s.set.factor, at);
}

// |J'v|^2; s.step is overwritten.
MT2O_HD double square_norm(const Simplex& s) {
  multiply_support(s.set, s.set.step, s.set.y);
  return greater(dot(s.set.y, s.set.step, s.set.size), 0.);
}

// Two rows: the foot of the perpendicular from the origin, or an end of the segment.
MT2O_HD void two_rows(const Rows& rows, const double* linear, double* weights) {
  const double a = rows.lengths[0], b = rows.lengths[1], product = rows.cosines[1] * a * b;
  const double slope = linear[1] * b - linear[0] * a;
  const double first = b * b - product + slope, second = a * a - product - slope;
  fill(weights, rows.tasks, 0.);
  double w = first / (first + second), rest = second / (first + second);
  if (first <= 0. || second <= 0.) w = first > second ? 1. : first < second ? 0. : 0.5, rest = 1. - w;
  once([&] { weights[rows.tasks_of[0]] = w, weights[rows.tasks_of[1]] = rest; });
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
    solve::each(0, rows.count,
                [&](int64_t i) { per_row[i] = linear[rows.tasks_of[i]] / rows.scale / rows.lengths[i]; });
  }
  solve::minimum_norm(rows, per_row, weights, w);
}

}  // namespace mt2o
