// x > 0 with (Qx)_i = (b_i / x_i)^p: Nash-MTL (p = 1), FairGrad (p = 1 / alpha), PIVRG (p = 1/2).
#pragma once
#include "simplex.h"

namespace mt2o::solve {

// In y = lengths x: (Cy)_i = B_i y_i^-p, B = lengths^(p-1) b^p; the stationary point of a strictly convex function.
struct Barrier {
  int64_t size;
  const double* cosines;
  double power;
  double* target;                // B
  double *y, *best;              // [size]
  double *image, *trial, *step;  // scratch [size]; image: C y
};

// The largest |(Cy)_i y_i^p / B_i - 1|; b.image is that of y.  NaN counts as infinite.
MT2O_HD double residual_of(const Barrier& b, const double* y) {
  return largest_of(b.size, [&](int64_t i) {
    const double own = absolute(b.image[i] * power(y[i], b.power) / b.target[i] - 1.);
    return own == own ? own : infinity();
  });
}

// The derivative along the step at b.trial = y (1 + length step); values of the function itself would cancel.
MT2O_HD double slope_at(const Barrier& b, double length) {
  each(0, b.size, [&](int64_t i) { b.trial[i] = b.y[i] * (1. + length * b.step[i]); });
  multiply(b.image, b.cosines, b.trial, b.size);
  each(0, b.size, [&](int64_t i) { b.image[i] -= b.target[i] * power(b.trial[i], -b.power); });
  return sum_of(b.size, [&](int64_t i) { return b.y[i] * b.step[i] * b.image[i]; });
}

// b.step: Newton's in dy / y, from the Hessian D (C + diag(p B y^(-p-1))) D, D = diag(y).  b.image is that of y.
MT2O_HD double newton_slope(Barrier& b, Factor& f) {
  const int64_t n = b.size;
  for (int64_t i = 0; i < n; ++i) {
    const double* cosines = b.cosines + i * n;
    double* row = f.lower + i * n;
    each(0, n, [&](int64_t j) { row[j] = b.y[i] * cosines[j] * b.y[j]; });
  }
  each(0, n, [&](int64_t i) {
    const double pull = b.target[i] * power(b.y[i], -b.power) * b.y[i];
    f.lower[i * n + i] += b.power * pull;
    b.trial[i] = b.step[i] = pull - b.image[i] * b.y[i];
  });
  factorise(f);
  solve<1>(f, b.step, n);
  return -dot(b.trial, b.step, n);
}

// Newton's method from b.y to b.best, damped so that y stays positive and the slope falls.
MT2O_HD double newton(Barrier& b, Factor& f) {
  double least = infinity();
  for (int iteration = 0; iteration < 50; ++iteration) {
    multiply(b.image, b.cosines, b.y, b.size);
    const double residual = residual_of(b, b.y);
    if (residual < least) least = residual, copy(b.best, b.y, b.size);
    if (residual <= 1e-15 || (residual <= 1e-12 && residual > least)) break;
    const double slope = newton_slope(b, f);
    double length = 0.9 / greater(0.9, largest_of(b.size, [&](int64_t i) { return -b.step[i]; }));
    for (int halving = 0; !(slope_at(b, length) <= -0.5 * slope) && halving < 40; ++halving) length *= 0.5;
    if (all_of(b.size, [&](int64_t i) { return b.trial[i] == b.y[i]; })) break;
    copy(b.y, b.trial, b.size);
  }
  copy(b.y, b.best, b.size);
  return least;
}

// True if y proves that no rows cancel: (Cy)_i >= c > 0 for all i means z'Cz >= c^2 z'z / y'Cy for all z >= 0, as
// c sum z <= z'Cy.
MT2O_HD bool proves_solvable(const Barrier& b, double rtol) {
  multiply(b.image, b.cosines, b.y, b.size);
  const double least = least_of(b.size, infinity(), [&](int64_t i) { return b.image[i]; }).value;
  return least > 0. && least * least > rtol * dot(b.image, b.y, b.size);
}

// True if rows cancel each other, so that there is no solution: the least norm in the convex hull of the rows, all of
// length one, is rounding.  w is given back.
MT2O_HD bool cancel(const Rows& rows, double rtol, Workspace w) {
  Rows units = rows;
  units.lengths = take(w, rows.count);
  fill(units.lengths, rows.count, 1.);
  Simplex s = simplex_of(units, w);
  start(s, units, 1.);
  minimise(s.set);
  return square_norm(s) <= rtol * dot(s.set.y, s.set.y, rows.count);
}

}  // namespace mt2o::solve

namespace mt2o {

MT2O_HD void solve_one(const PowerBarrier& s, int64_t k) {
  const int64_t tasks = s.all.tasks;
  const double* gram = solve::gram_of(s.all, k);
  const double* target = s.target + k * tasks;
  double* weights = s.weights + k * tasks;
  const bool valid = solve::all_finite(gram, tasks * tasks) &&
                     solve::all_of(tasks, [&](int64_t t) { return target[t] > 0. && solve::is_finite(target[t]); });
  double residual = valid ? 0. : solve::not_a_number();
  solve::fill(weights, tasks, valid ? 0. : solve::not_a_number());
  solve::Workspace w = solve::workspace_of(s.all, k);
  solve::Rows rows = {};
  if (valid) rows = solve::rows_of(gram, tasks, w);
  if (const int64_t n = rows.count; n > 0) {
    solve::Barrier b = {};
    b.size = n, b.cosines = rows.cosines, b.power = s.power;
    b.target = solve::take(w, n), b.y = solve::take(w, n), b.best = solve::take(w, n);
    b.image = solve::take(w, n), b.trial = solve::take(w, n), b.step = solve::take(w, n);
    const solve::Workspace after = w;
    solve::Factor f = solve::factor_of({nullptr, n, nullptr}, 0., w);
    solve::each(0, n, [&](int64_t i) {
      b.target[i] = solve::power(rows.lengths[i], s.power - 1.) * solve::power(target[rows.tasks_of[i]], s.power);
      b.y[i] = solve::power(b.target[i], 1. / (1. + s.power));
    });
    residual = solve::newton(b, f);
    const double rtol = solve::greater(s.all.rtol, solve::least_rtol(n));
    if (!solve::proves_solvable(b, rtol) && solve::cancel(rows, rtol, after))
      residual = 1.;
    else
      solve::to_weights(weights, rows, b.y, solve::power(rows.scale, -1. / (1. + s.power)));
  }
  solve::once([&] { s.residual[k] = residual; });
}

}  // namespace mt2o
