// min y'(C + penalty)y/2 + q'y over y >= 0, and a'y = constant where there is an a > 0: a primal active set (Lawson &
// Hanson, 1974, for the normal equations).
//
// C is positive semidefinite with a diagonal of ones.  The support holds the entries that may be positive.  On it a
// Newton step leads to the stationary point; where an entry would turn negative, the step ends and the entry leaves.
// Once there, the entry whose gradient is least enters, until none is below the level (zero, or the multiplier of a'y).
// Steps begin from the gradient, so that a second step on the same support is one of iterative refinement.
#pragma once
#include "factor.h"

namespace mt2o::solve {

constexpr double ridge = 1e-14;               // rows of the support may depend on each other
constexpr double relative_tolerance = 1e-13;  // of the level

struct ActiveSet {
  int64_t size;
  const double* cosines;   // C
  const double* border;    // a, or nullptr
  double penalty;          // of y'y
  double* linear;          // [size]: q
  double total;            // a'y
  double floor;            // gradients within this of the level are equal to it
  double level;            // what the gradient divided by a is on the support at its stationary point
  Factor factor;           // of C + a a' on the support
  double *y, *gradient;    // [size]; gradient: (C + penalty) y + q
  double* barred;          // [size]: 1 for entries that had to leave as soon as they had entered
  double *step, *through;  // scratch, the second behind the first
};

MT2O_HD ActiveSet active_set_of(const double* cosines, const double* border, int64_t size, Workspace& w) {
  ActiveSet s = {};
  s.size = size, s.cosines = cosines, s.border = border;
  s.factor = factor_of({cosines, size, border}, ridge, w);
  s.linear = take(w, size), s.y = take(w, size), s.gradient = take(w, size), s.barred = take(w, size);
  s.step = take(w, size), s.through = take(w, size);
  fill(s.y, size, 0.);
  return s;
}

// Back to a'y = total, from which rounding leads away.
MT2O_HD void rescale(ActiveSet& s) {
  const double factor = s.total / dot(s.border, s.y, s.size);
  each(0, s.size, [&](int64_t i) { s.y[i] *= factor; });
}

// x = first + C v, of v that is zero off the support
template <class First>
MT2O_HD void add_image(const ActiveSet& s, double* x, First first, const double* v) {
  const int64_t* members = s.factor.members;
  combine(
      x, s.size, first, s.factor.listed, [&](int64_t k) { return v[members[k]]; },
      [&](int64_t k) { return s.cosines + members[k] * s.size; });
}
MT2O_HD void multiply_support(const ActiveSet& s, double* image, const double* v) {
  add_image(s, image, [](int64_t) { return 0.; }, v);
}

MT2O_HD void evaluate(ActiveSet& s) {
  add_image(s, s.gradient, [&](int64_t i) { return s.linear[i]; }, s.y);
  if (s.penalty != 0.) axpy(s.gradient, s.penalty, s.y, s.size);
  s.level = s.border ? dot(s.y, s.gradient, s.size) / dot(s.border, s.y, s.size) : 0.;
}

// The entry with the least gradient, if that is below the level by more than rounding; else -1.
MT2O_HD int64_t entering(const ActiveSet& s) {
  const auto [best, least] = least_of(s.size, 0., [&](int64_t i) {
    if (s.y[i] != 0. || s.barred[i] != 0.) return 0.;
    return s.border ? s.gradient[i] / s.border[i] - s.level : s.gradient[i];
  });
  if (best < 0) return -1;
  const double* cosines = s.cosines + best * s.size;
  const double magnitude =
      absolute(s.linear[best]) + sum_of(s.size, [&](int64_t i) { return absolute(cosines[i]) * s.y[i]; });
  const double unit = s.border ? s.border[best] : 1.;
  const double allowed = relative_tolerance * absolute(s.level) * unit + s.floor + 8. * epsilon * magnitude;
  return least * unit < -allowed ? best : -1;
}

// s.step: from y to the stationary point on the support, in the order of its members.
MT2O_HD void newton_step(ActiveSet& s) {
  const Factor& f = s.factor;
  if (!s.border) {
    each(0, f.count, [&](int64_t k) { s.step[k] = -s.gradient[f.members[k]]; });
    return solve<1>(f, s.step, s.size);
  }
  each(0, f.count, [&](int64_t k) {  // a multiple of a changes nothing; without it, little is left to be rounded
    const double a = s.border[f.members[k]];
    s.step[k] = s.level * a - s.gradient[f.members[k]], s.through[k] = a;
  });
  solve<2>(f, s.step, s.size);
  const double along = sum_of(f.count, [&](int64_t k) { return s.border[f.members[k]] * s.step[k]; });
  const double across = sum_of(f.count, [&](int64_t k) { return s.border[f.members[k]] * s.through[k]; });
  axpy(s.step, -along / across, s.through, f.count);
}

// As far along the step as y stays >= 0.  True if that is the whole of it; else the entries that became zero leave.
MT2O_HD bool advance(ActiveSet& s) {
  Factor& f = s.factor;
  const auto [first, shortest] = least_of(f.count, infinity(), [&](int64_t k) {
    const double y = s.y[f.members[k]], step = s.step[k];
    return y + step > 0. ? infinity() : step < 0. ? y / -step : 0.;
  });
  const double length = first < 0 ? 1. : shortest;
  each(0, f.count, [&](int64_t k) { s.y[f.members[k]] += length * s.step[k]; });
  if (first < 0) return true;
  each(0, f.count, [&](int64_t k) {
    double& y = s.y[f.members[k]];
    if (k == first || !(y > 0.)) y = 0.;
  });
  unlist_zeros(f, s.y);
  return false;
}

// From y >= 0 on the support (a'y as wanted) to the minimum.
MT2O_HD void minimise(ActiveSet& s) {
  fill(s.barred, s.size, 0.);
  int64_t newest = -1;
  int settled = 0;  // full steps on this support
  for (int64_t iteration = 0; iteration < 6 * s.size + 24; ++iteration) {
    if (s.border) rescale(s);
    evaluate(s);
    if (settled > 0 || s.factor.listed == 0) {
      const int64_t next = entering(s);
      if (next >= 0)
        list(s.factor, newest = next), settled = 0;
      else if (settled > 2 || s.factor.listed == 0)
        return;
    }
    complete(s.factor);
    newton_step(s);
    if (advance(s)) {
      ++settled;
    } else {
      settled = 0;
      // That an entry has to leave as it enters is rounding: the others may still lead on.
      if (newest >= 0 && s.y[newest] == 0.) once([&] { s.barred[newest] = 1.; });
    }
    newest = -1;
  }
}

}  // namespace mt2o::solve
