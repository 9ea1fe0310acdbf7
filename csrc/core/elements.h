// Weightings that change the task gradients element by element: running averages (MoCo, DB-MTL, M-ConFIG), sums of
// squares (ExcessMTL), and signs that are dropped at random (GradDrop).
#pragma once
#include "arguments.h"
#include "draw.h"

namespace mt2o {

// m <- keep m + fresh g.  Rounded after each product, as torch rounds them.
template <class N>
MT2O_HD N tracked(N memory, N gradient, N keep, N fresh) {
  return memory * keep + gradient * fresh;
}

// The gradient whose own running average with decay beta goes from `last` to `direction`, where these are divided by
// before = 1 - beta^(n - 1) and now = 1 - beta^n; inverse = 1 / (1 - beta).
template <class N>
MT2O_HD N fed(N direction, N last, N now, N before, N beta, N inverse) {
  return (direction * now - last * beta * before) * inverse;
}

// g^2 / sqrt(A + g^2), 0 where both are 0; A becomes `squares` + g^2.  A root that is not 0 is far above 2^-1022.
template <class N>
MT2O_HD N excess_of(N gradient, N& squares, N least_root) {
  const N square = gradient * gradient;
  squares = squares + square;
  return square / max(sqrt(squares), least_root);
}
constexpr double least_root = 0x1p-1022;

// What the gradients of one element are multiplied by: one sign stays, of the other `leak` is left.
template <class S>
struct Kept {
  S positive, negative;
};
// sum, size: of the gradients of all tasks, and of their absolute values.
template <class S>
MT2O_HD Kept<S> kept_signs(double sum, double size, double chance, S leak) {
  const double purity = (1. + sum / (size > 0. ? size : 1.)) / 2.;
  return {purity > chance ? S(1) : leak, purity < chance ? S(1) : leak};
}
// The product with the factor of its sign, exactly as without the other one.
template <class N>
MT2O_HD N times_kept(N gradient, N positive, N negative) {
  const N zero = gradient - gradient;
  return max(gradient, zero) * positive - max(zero - gradient, zero) * negative;
}

}  // namespace mt2o
