// Who works on one problem: one thread of a CPU, or the 32 lanes of a warp (cuda/lanes.cuh).
//
// All lanes go the same way with the same scalars; what is done for each element of a vector is shared out among them.
// A formula is written with these loops and sums, which do the same operations in the same order whoever does them: so
// CPU and GPU give the same bits.  What a loop writes, all lanes see when it is over; within it an element may not be
// read that another one writes.
#pragma once
#include "../config.h"

namespace mt2o::solve {

// The element for which a value is the least, the first of equal ones; -1 if none is below what was begun with.
struct Least {
  int64_t at;
  double value;
};

#if !defined(MT2O_WARP)

// body(i) for begin <= i < end
template <class Body>
MT2O_HD void each(int64_t begin, int64_t end, Body body) {
  for (int64_t i = begin; i < end; ++i) body(i);
}
// body() once, for elements that are written by themselves
template <class Body>
MT2O_HD void once(Body body) {
  body();
}
// x[i] = first(i) + coefficient(0) row(0)[i] + coefficient(1) row(1)[i] + ..., of so many rows
template <class First, class Coefficient, class Row>
MT2O_HD void combine(double* x, int64_t n, First first, int64_t count, Coefficient coefficient, Row row) {
  if (n <= 4) {  // the same sums, one after the other
    for (int64_t i = 0; i < n; ++i) {
      double sum = first(i);
      for (int64_t k = 0; k < count; ++k) sum += coefficient(k) * row(k)[i];
      x[i] = sum;
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) x[i] = first(i);
  for (int64_t k = 0; k < count; ++k) {
    const double a = coefficient(k);
    const double* from = row(k);
    for (int64_t i = 0; i < n; ++i) x[i] += a * from[i];
  }
}
// The sum of term(i).  Four sums in turn: what the additions wait for is a quarter as long.
template <class Term>
MT2O_HD double sum_of(int64_t n, Term term) {
  double s0 = 0., s1 = 0., s2 = 0., s3 = 0.;
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) s0 += term(i), s1 += term(i + 1), s2 += term(i + 2), s3 += term(i + 3);
  if (i < n) s0 += term(i);
  if (i + 1 < n) s1 += term(i + 1);
  if (i + 2 < n) s2 += term(i + 2);
  return (s0 + s2) + (s1 + s3);
}
template <class Value>
MT2O_HD Least least_of(int64_t n, double below, Value value) {
  Least best = {-1, below};
  for (int64_t i = 0; i < n; ++i)
    if (const double own = value(i); own < best.value) best = {i, own};
  return best;
}
template <class Test>
MT2O_HD bool all_of(int64_t n, Test test) {
  bool all = true;
  for (int64_t i = 0; i < n; ++i) all = all & test(i);
  return all;
}

#endif

}  // namespace mt2o::solve
