// CAGrad (Liu et al., 2021): the direction with the largest least inner product in a ball about the mean gradient.
#pragma once
#include "simplex.h"

namespace mt2o::solve {

// The larger m with |J'v(m)| = reach, as long as the support stays what it is: there v is linear in m, y = c + m d, and
// |J'v|^2 a quadratic.  s is at its minimum; other: scratch [size].  NaN if there is none.
MT2O_HD double crossing_on_support(Simplex& s, double size, double reach, double* other) {
  ActiveSet& set = s.set;
  const Factor& f = set.factor;
  each(0, f.count, [&](int64_t k) { set.through[k] = set.border[f.members[k]]; });
  solve<1>(f, set.through, set.size);
  const double across = sum_of(f.count, [&](int64_t k) { return set.border[f.members[k]] * set.through[k]; });
  fill(other, set.size, 0.);
  each(0, f.count, [&](int64_t k) { other[f.members[k]] = set.through[k] * s.shortest / across; });  // d
  // From here: |J'(v + t d)|^2 = reach^2.
  double* image = set.step;
  multiply_support(set, image, other);
  const double dd = dot(other, image, set.size), dy = dot(set.y, image, set.size);
  const double missing = reach * reach - square_norm(s), root = sqrt(dy * dy + dd * missing);
  return size + (dy > 0. ? missing / (dy + root) : (root - dy) / dd);
}

// From v at m = 1, q = 0 (least norm in the convex hull) to |J'v| = reach, min |J'(u + v)|^2 over v >= 0, sum v = m.
// |J'v| grows with m, and m lies in [reach / longest row, reach / least norm].
MT2O_HD void extend(Simplex& s, const Rows& rows, double least_norm, double reach, double* scratch) {
  const double longest = largest_of(rows.count, [&](int64_t i) { return rows.lengths[i]; });
  double low = reach / longest, high = reach / least_norm, size = sqrt(low) * sqrt(high);
  for (int iteration = 0; iteration < 64; ++iteration) {
    s.set.total = size * s.shortest;
    minimise(s.set);
    const double norm = sqrt(square_norm(s));
    if (absolute(norm - reach) <= 4. * epsilon * reach || high - low <= 4. * epsilon * high) return;
    if (norm < reach)
      low = size;
    else
      high = size;
    const double next = crossing_on_support(s, size, reach, scratch);
    const bool halve = iteration % 4 == 3 || !(next >= low && next <= high);
    size = halve ? sqrt(low) * sqrt(high) : next;
  }
}

}  // namespace mt2o::solve

namespace mt2o {

MT2O_HD void solve_one(const ConflictAverse& s, int64_t k) {
  const int64_t tasks = s.all.tasks;
  const double* gram = solve::gram_of(s.all, k);
  const double* preferences = s.preferences + k * tasks;
  double* weights = s.weights + k * tasks;
  if (!solve::all_finite(gram, tasks * tasks) || !solve::all_finite(preferences, tasks))
    return solve::fill(weights, tasks, solve::not_a_number());
  solve::Workspace w = solve::workspace_of(s.all, k);
  const solve::Rows rows = solve::rows_of(gram, tasks, w);
  const int64_t n = rows.count;
  solve::fill(weights, tasks, 0.);
  if (n == 0) return;
  double *u = solve::take(w, n), *scratch = solve::take(w, n);
  solve::Simplex simplex = solve::simplex_of(rows, w);
  solve::start(simplex, rows, 1.);
  solve::minimise(simplex.set);
  const double least = solve::square_norm(simplex), *y = simplex.set.y;
  if (least <= s.all.rtol * solve::dot(y, y, n)) return;  // stationary: the least norm is rounding
  solve::each(0, n, [&](int64_t i) { u[i] = rows.lengths[i] * preferences[rows.tasks_of[i]]; });
  solve::multiply(simplex.set.linear, rows.cosines, u, n);
  const double reach = s.radius * sqrt(solve::greater(solve::dot(u, simplex.set.linear, n), 0.));
  if (reach > 0.) {
    solve::extend(simplex, rows, sqrt(least), reach, scratch);
    solve::axpy(u, 1., simplex.set.y, n);
  }
  solve::to_weights(weights, rows, u, 1.);
}

}  // namespace mt2o
