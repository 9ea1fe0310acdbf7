// The loops and sums of core/solve/lanes.h by the lanes of a warp.  To be included before any solver.
#pragma once
#include "sums.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH__)  // else nvcc compiles for the host what will never run there
#define MT2O_WARP
#endif

#include "../core/solve/lanes.h"

#if defined(MT2O_WARP)
namespace mt2o::solve {

MT2O_HD int64_t lane() { return threadIdx.x % cuda::warp; }
// All lanes have come here, and see what the others wrote.
MT2O_HD void meet() { __syncwarp(); }

template <class Body>
MT2O_HD void each(int64_t begin, int64_t end, Body body) {
  meet();  // others may still read what is going to be written
#pragma unroll 1
  for (int64_t i = begin + lane(); i < end; i += cuda::warp) body(i);
  meet();
}
template <class Body>
MT2O_HD void once(Body body) {
  meet();
  if (lane() == 0) body();
  meet();
}
template <class First, class Coefficient, class Row>
MT2O_HD void combine(double* x, int64_t n, First first, int64_t count, Coefficient coefficient, Row row) {
  each(0, n, [&](int64_t i) {
    double sum = first(i);
    for (int64_t k = 0; k < count; ++k) sum += coefficient(k) * row(k)[i];
    x[i] = sum;
  });
}
// A lane has one of the four sums, eight lanes the same.
template <class Term>
MT2O_HD double sum_of(int64_t n, Term term) {
  double sum = 0.;
  for (int64_t i = lane() % 4; i < n; i += 4) sum += term(i);
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  return sum + __shfl_xor_sync(0xffffffffu, sum, 1);
}
template <class Value>
MT2O_HD Least least_of(int64_t n, double below, Value value) {
  double least = below;
  int at = -1;
  for (int64_t i = lane(); i < n; i += cuda::warp)
    if (const double own = value(i); own < least) least = own, at = int(i);
#pragma unroll
  for (int distance = cuda::warp / 2; distance > 0; distance /= 2) {
    const double other = __shfl_xor_sync(0xffffffffu, least, distance);
    const int of_other = __shfl_xor_sync(0xffffffffu, at, distance);
    if (other < least || (other == least && of_other < at)) least = other, at = of_other;
  }
  return {at, least};
}
template <class Test>
MT2O_HD bool all_of(int64_t n, Test test) {
  bool all = true;
  for (int64_t i = lane(); i < n; i += cuda::warp) all = all & test(i);
  return __all_sync(0xffffffffu, all);
}

}  // namespace mt2o::solve
#endif
