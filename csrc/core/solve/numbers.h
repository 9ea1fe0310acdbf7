// Doubles: powers of two, logarithm and exponential from + - * / alone, so that every machine gets the same bits.
#pragma once
#include "../config.h"

namespace mt2o::solve {

constexpr double epsilon = 0x1p-52;

MT2O_HD double not_a_number() { return __builtin_nan(""); }
MT2O_HD double infinity() { return __builtin_inf(); }
MT2O_HD bool is_finite(double x) { return x - x == 0.; }
MT2O_HD double absolute(double x) { return x < 0. ? -x : x; }
MT2O_HD double lesser(double a, double b) { return a < b ? a : b; }
MT2O_HD double greater(double a, double b) { return a > b ? a : b; }

MT2O_HD double from_bits(uint64_t bits) {
  double x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
MT2O_HD uint64_t to_bits(double x) {
  uint64_t bits;
  __builtin_memcpy(&bits, &x, sizeof x);
  return bits;
}
// 2^e, -1022 <= e <= 1023.
MT2O_HD double power_of_two(int64_t e) { return from_bits(uint64_t(e + 1023) << 52); }
// floor(log2 x) of x > 0; -1022 of what is smaller.
MT2O_HD int64_t exponent(double x) {
  const int64_t e = int64_t(to_bits(x) >> 52 & 0x7ff) - 1023;
  return e < -1022 ? -1022 : e;
}
// A power of four within a factor of four of x > 0: dividing by it is exact, and so is its square root.
MT2O_HD double power_of_four(double x) { return power_of_two(exponent(x) / 2 * 2); }

// Natural logarithm of x > 0 (normal, finite).  x = 2^e f with f near 1; log f = 2 atanh t, t = (f - 1) / (f + 1), as a
// series: |t| < 0.172.
MT2O_HD double log(double x) {
  int64_t e = exponent(x);
  double f = x / power_of_two(e);
  if (f > 1.4142135623730951) f *= 0.5, ++e;
  const double t = (f - 1.) / (f + 1.), square = t * t;
  double series = 0.;
  for (int k = 25; k >= 3; k -= 2) series = (series + 1. / k) * square;
  constexpr double high = 0x1.62e42fefa3800p-1, low = 0x1.ef35793c76730p-45;  // log 2; e * high is exact
  return double(e) * high + (2. * t + (2. * t * series + double(e) * low));
}

// e^x.  x = k log 2 + r, |r| < 0.347: Taylor's series of r.
MT2O_HD double exp(double x) {
  if (!(x > -708.)) return x < 0. ? 0. : x;  // NaN stays
  if (x > 709.) return infinity();
  constexpr double high = 0x1.62e42fefa3800p-1, low = 0x1.ef35793c76730p-45;
  const int64_t k = int64_t(x * 1.4426950408889634 + (x < 0. ? -0.5 : 0.5));
  const double r = x - double(k) * high - double(k) * low;
  double series = 1.;
  for (int n = 14; n >= 1; --n) series = 1. + series * r / n;
  return series * power_of_two(k);
}

// x^p of x > 0.
MT2O_HD_CALL double power(double x, double p) {
  if (p == 1.) return x;
  if (p == 0.) return 1.;
  if (p == -1.) return 1. / x;
  if (p == 0.5) return sqrt(x);
  if (p == -0.5) return 1. / sqrt(x);
  return exp(p * log(x));
}

}  // namespace mt2o::solve
