// v >= u with the least v'Qv: J'v is the projection of J'u onto the cone of directions that conflict with no row
// (DualProj, UPGrad: Quinton & Rey, 2024).
//
// A Gram matrix that was rounded is indefinite where the rows depend on each other: without a penalty v'Qv would fall
// without end along some v.  With rtol sum (z_t |g_t|)^2 added, z = v - u, where rtol bounds the rounding, it is
// strictly convex, and no longer than J'u (up to rtol), whatever was rounded: v = u is among the candidates.
#pragma once
#include "active_set.h"

namespace mt2o::solve {

// From y = 0 to the minimum.  A factor that is not definite says that the rounding was underestimated.
MT2O_HD void minimise_penalised(ActiveSet& s, double penalty) {
  for (int attempt = 0; attempt < 16; ++attempt, penalty *= 16.) {
    s.penalty = s.factor.ridge = penalty;
    // From nothing: the solution for another u would be a faster start, but leaves its rounding where z should be 0.
    s.factor.count = 0, s.factor.indefinite = false;
    fill(s.y, s.size, 0.);
    minimise(s);
    if (!s.factor.indefinite) return;
  }
}

}  // namespace mt2o::solve

namespace mt2o {

// In z = lengths (v - u) >= 0: min z'(C + rtol)z/2 + (C lengths u)'z.
MT2O_HD void solve_one(const DualCone& s, int64_t k) {
  const int64_t tasks = s.all.tasks;
  const double* gram = solve::gram_of(s.all, k);
  const double* lower = s.lower + k * s.bounds * tasks;
  double* weights = s.weights + k * s.bounds * tasks;
  if (!solve::all_finite(gram, tasks * tasks) || !solve::all_finite(lower, s.bounds * tasks))
    return solve::fill(weights, s.bounds * tasks, solve::not_a_number());
  solve::Workspace w = solve::workspace_of(s.all, k);
  const solve::Rows rows = solve::rows_of(gram, tasks, w);
  solve::fill(weights, s.bounds * tasks, 0.);
  if (rows.count == 0) return;
  double* u = solve::take(w, rows.count);
  solve::ActiveSet set = solve::active_set_of(rows.cosines, nullptr, rows.count, w);
  for (int64_t m = 0; m < s.bounds; ++m, lower += tasks, weights += tasks) {
    for (int64_t i = 0; i < rows.count; ++i) u[i] = rows.lengths[i] * lower[rows.tasks_of[i]];
    solve::multiply(set.linear, rows.cosines, u, rows.count);
    set.floor = solve::relative_tolerance * sqrt(solve::greater(solve::dot(u, set.linear, rows.count), 0.));
    solve::minimise_penalised(set, solve::greater(s.all.rtol, solve::least_rtol(rows.count)));
    for (int64_t i = 0; i < rows.count; ++i) {
      const int64_t t = rows.tasks_of[i];
      weights[t] = lower[t] + set.y[i] / rows.lengths[i];
    }
  }
}

}  // namespace mt2o
