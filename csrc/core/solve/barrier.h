// x > 0 with (Qx)_i = (b_i / x_i)^p: Nash-MTL (p = 1), FairGrad (p = 1 / alpha), PIVRG (p = 1/2).
#pragma once
#include "factor.h"

namespace mt2o::solve {

// In y = lengths x: (Cy)_i = B_i y_i^-p, B = lengths^(p-1) b^p; the stationary point of a strictly convex function.
struct Barrier {
  int64_t size;
  const double* cosines;
  double power, ridge;
  double* target;                // B
  double *y, *best;              // [size]
  double *image, *trial, *step;  // scratch [size]; image: (C + ridge) y
  double* hessian;               // scratch [size][size]
};

MT2O_HD void image_of(const Barrier& b, const double* y, double* image) {
  multiply(image, b.cosines, y, b.size);
  axpy(image, b.ridge, y, b.size);
}

// The largest |(Cy)_i y_i^p / B_i - 1|; b.image is that of y.  NaN counts as infinite.
MT2O_HD double residual_of(const Barrier& b, const double* y) {
  double largest = 0.;
  for (int64_t i = 0; i < b.size; ++i) {
    const double own = absolute(b.image[i] * power(y[i], b.power) / b.target[i] - 1.);
    largest = own <= largest ? largest : own == own ? own : infinity();
  }
  return largest;
}

// The derivative along the step at y (1 + length step); values of the function itself would cancel.
MT2O_HD double slope_at(const Barrier& b, double length) {
  for (int64_t i = 0; i < b.size; ++i) b.trial[i] = b.y[i] * (1. + length * b.step[i]);
  image_of(b, b.trial, b.image);
  double slope = 0.;
  for (int64_t i = 0; i < b.size; ++i)
    slope += b.y[i] * b.step[i] * (b.image[i] - b.target[i] * power(b.trial[i], -b.power));
  return slope;
}

// b.step: Newton's in dy / y, from the Hessian D (C + ridge + diag(p B y^(-p-1))) D, D = diag(y).  b.image is that of
// y.
MT2O_HD double newton_slope(Barrier& b, Factor& f) {
  const int64_t n = b.size;
  f.count = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) b.hessian[i * n + j] = b.y[i] * b.cosines[i * n + j] * b.y[j];
    const double pull = b.target[i] * power(b.y[i], -b.power) * b.y[i];
    b.hessian[i * n + i] += b.ridge * b.y[i] * b.y[i] + b.power * pull;
    b.trial[i] = b.step[i] = pull - b.image[i] * b.y[i];
    append(f, i);
  }
  solve(f, b.step);
  return -dot(b.trial, b.step, n);
}

// Newton's method from b.y to b.best, damped so that y stays positive and the slope falls.
MT2O_HD double newton(Barrier& b, Factor& f) {
  double least = infinity();
  for (int iteration = 0; iteration < 50; ++iteration) {
    image_of(b, b.y, b.image);
    const double residual = residual_of(b, b.y);
    if (residual < least) least = residual, copy(b.best, b.y, b.size);
    if (residual <= 1e-15 || (residual <= 1e-12 && residual > least)) break;
    const double slope = newton_slope(b, f);
    double steepest = 0.9;
    for (int64_t i = 0; i < b.size; ++i) steepest = greater(steepest, -b.step[i]);
    double length = 0.9 / steepest;
    for (int halving = 0; halving < 40 && !(slope_at(b, length) <= -0.5 * slope); ++halving) length *= 0.5;
    slope_at(b, length);
    bool moved = false;
    for (int64_t i = 0; i < b.size; ++i) moved = moved || b.trial[i] != b.y[i], b.y[i] = b.trial[i];
    if (!moved) break;
  }
  copy(b.y, b.best, b.size);
  return least;
}

// True if y'Cy is what a solution's must be, at least by half, and more than rounding; rows that cancel each other have
// no solution.
MT2O_HD bool attained(const Barrier& b, double rtol) {
  double wanted = 0.;
  for (int64_t i = 0; i < b.size; ++i) wanted += b.target[i] * power(b.y[i], -b.power) * b.y[i];
  multiply(b.image, b.cosines, b.y, b.size);
  const double square = dot(b.image, b.y, b.size);
  return square >= 0.5 * wanted && square >= rtol * dot(b.y, b.y, b.size);
}

}  // namespace mt2o::solve

namespace mt2o {

MT2O_HD void solve_one(const PowerBarrier& s, int64_t k) {
  const int64_t tasks = s.all.tasks;
  const double* gram = solve::gram_of(s.all, k);
  const double* target = s.target + k * tasks;
  double* weights = s.weights + k * tasks;
  bool valid = solve::all_finite(gram, tasks * tasks) && solve::all_finite(target, tasks);
  for (int64_t t = 0; t < tasks; ++t) valid = valid && target[t] > 0.;
  s.residual[k] = valid ? 0. : solve::not_a_number();
  solve::fill(weights, tasks, valid ? 0. : solve::not_a_number());
  solve::Workspace w = solve::workspace_of(s.all, k);
  solve::Rows rows = {};
  if (valid) rows = solve::rows_of(gram, tasks, w);
  const int64_t n = rows.count;
  if (n == 0) return;
  solve::Barrier b = {};
  b.size = n, b.cosines = rows.cosines, b.power = s.power;
  b.target = solve::take(w, n), b.y = solve::take(w, n), b.best = solve::take(w, n);
  b.image = solve::take(w, n), b.trial = solve::take(w, n), b.step = solve::take(w, n);
  b.hessian = solve::take(w, n * n);
  solve::Factor f = solve::factor_of({b.hessian, n, nullptr}, 0., w);
  for (int64_t i = 0; i < n; ++i) {
    b.target[i] = solve::power(rows.lengths[i], s.power - 1.) * solve::power(target[rows.tasks_of[i]], s.power);
    b.y[i] = solve::power(b.target[i], 1. / (1. + s.power));
  }
  // With a ridge there is a solution in any case.  Where it is the ridge that carries it, a smaller one is tried, down
  // to the rows' accuracy; without any, from there, the exact one.
  s.residual[k] = 1.;
  const double rtol = solve::greater(s.all.rtol, solve::least_rtol(n));
  b.ridge = solve::greater(1e-10, rtol);
  for (solve::newton(b, f); !solve::attained(b, rtol); solve::newton(b, f)) {
    if (b.ridge <= rtol) return;
    b.ridge = solve::greater(1e-2 * b.ridge, rtol);
  }
  b.ridge = 0.;
  const double residual = solve::newton(b, f);
  if (!solve::attained(b, rtol)) return;
  s.residual[k] = residual;
  solve::to_weights(weights, rows, b.y, solve::power(rows.scale, -1. / (1. + s.power)));
}

}  // namespace mt2o
