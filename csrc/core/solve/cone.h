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
    s.factor.listed = s.factor.count = 0, s.factor.indefinite = false;
    fill(s.y, s.size, 0.);
    minimise(s);
    if (!s.factor.indefinite) return;
  }
}

}  // namespace mt2o::solve

namespace mt2o {

// The bounds first <= m < last.  In z = lengths (v - u) >= 0: min z'(C + rtol)z/2 + (C lengths u)'z.
MT2O_HD void solve_bounds(const DualCone& s, int64_t k, int64_t first, int64_t last) {
  const int64_t tasks = s.all.tasks;
  const double* gram = solve::gram_of(s.all, k);
  const double* all_lower = s.lower + k * s.bounds * tasks;
  double* all_weights = s.weights + k * s.bounds * tasks;
  const bool valid = solve::all_finite(gram, tasks * tasks) && solve::all_finite(all_lower, s.bounds * tasks);
  solve::fill(all_weights + first * tasks, (last - first) * tasks, valid ? 0. : solve::not_a_number());
  if (!valid) return;
  solve::Workspace w = solve::workspace_of(s.all, k);
  const solve::Rows rows = solve::rows_of(gram, tasks, w);
  if (rows.count == 0) return;
  double* u = solve::take(w, rows.count);
  solve::ActiveSet set = solve::active_set_of(rows.cosines, nullptr, rows.count, w);
  for (int64_t m = first; m < last; ++m) {
    const double* lower = all_lower + m * tasks;
    double* weights = all_weights + m * tasks;
    solve::each(0, rows.count, [&](int64_t i) { u[i] = rows.lengths[i] * lower[rows.tasks_of[i]]; });
    solve::multiply(set.linear, rows.cosines, u, rows.count);
    set.floor = solve::relative_tolerance * sqrt(solve::greater(solve::dot(u, set.linear, rows.count), 0.));
    solve::minimise_penalised(set, solve::greater(s.all.rtol, solve::least_rtol(rows.count)));
    solve::each(0, rows.count, [&](int64_t i) {
      const int64_t t = rows.tasks_of[i];
      weights[t] = lower[t] + set.y[i] / rows.lengths[i];
    });
  }
}

MT2O_HD void solve_one(const DualCone& s, int64_t k) { solve_bounds(s, k, 0, s.bounds); }

}  // namespace mt2o
