// Weightings that change the task gradients element by element: running averages (MoCo, DB-MTL, M-ConFIG), sums of
// squares (ExcessMTL), and signs that are dropped at random (GradDrop).
#pragma once
#include "arguments.h"

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

// SplitMix64 (Steele, Lea and Flood 2014): weighting/draw.py's numbers, which are functions of a key, a stream and ids.
MT2O_HD uint64_t mixed_bits(uint64_t bits) {
  bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9u;
  bits = (bits ^ bits >> 27) * 0x94D049BB133111EBu;
  return bits ^ bits >> 31;
}
constexpr uint64_t golden = 0x9E3779B97F4A7C15u;
MT2O_HD uint64_t with_stream(int64_t key, int64_t stream) {
  return mixed_bits(uint64_t(key) + golden * (uint64_t(stream) + 1));
}
MT2O_HD uint64_t with_id(uint64_t bits, int64_t id) { return mixed_bits((uint64_t(id) + 1) * golden + bits); }
// In (0, 1), never 0 or 1.
MT2O_HD double uniform(uint64_t bits) { return (double(int64_t(bits >> 12)) + 0.5) * 0x1p-52; }

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
