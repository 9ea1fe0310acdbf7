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

// v with |J'v| = reach = radius |J'u| and the least |J'(u + v)|^2 over v >= 0, sum v = m, in s.set.y; u: in units of
// rows of length one.  False if the least norm in the convex hull of the rows is rounding; without reach, v = 0.
// |J'v| grows with m, and m lies in [reach / longest row, reach / least norm].
MT2O_HD bool extend(Simplex& s, const Rows& rows, const double* u, double radius, double rtol, double* scratch) {
  ActiveSet& set = s.set;
  const int64_t n = rows.count;
  double low = 0., high = 0., size = 1., reach = 0.;
  start(s, rows, size);
  for (int iteration = -1; iteration < 64; ++iteration) {
    minimise(set);
    const double square = square_norm(s), norm = sqrt(square);
    if (iteration < 0) {  // q = 0 and m = 1: the least norm
      if (square <= rtol * dot(set.y, set.y, n)) return false;
      multiply(set.linear, rows.cosines, u, n);
      reach = radius * sqrt(greater(dot(u, set.linear, n), 0.));
      if (!(reach > 0.)) break;
      low = reach / largest_of(n, [&](int64_t i) { return rows.lengths[i]; }), high = reach / norm;
      size = sqrt(low) * sqrt(high);
    } else {
      if (absolute(norm - reach) <= 4. * epsilon * reach || high - low <= 4. * epsilon * high) return true;
      if (norm < reach)
        low = size;
      else
        high = size;
      const double next = crossing_on_support(s, size, reach, scratch);
      const bool halve = iteration % 4 == 3 || !(next >= low && next <= high);
      size = halve ? sqrt(low) * sqrt(high) : next;
    }
    set.total = size * s.shortest;
  }
  if (!(reach > 0.)) fill(set.y, n, 0.);
  return true;
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
  solve::each(0, n, [&](int64_t i) { u[i] = rows.lengths[i] * preferences[rows.tasks_of[i]]; });
  solve::Simplex simplex = solve::simplex_of(rows, w);
  if (!solve::extend(simplex, rows, u, s.radius, s.all.rtol, scratch)) return;  // stationary
  solve::axpy(u, 1., simplex.set.y, n);
  solve::to_weights(weights, rows, u, 1.);
}

}  // namespace mt2o
