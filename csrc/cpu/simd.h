// Sixteen floats (F16) or eight doubles (D8) that behave alike on every instruction set.
//
// As the number of lanes never changes, neither does the order of any sum: kernels written on them give the same bits
// on every level.  Each level defines: set1, load, store (float, double, bfloat16, float16), + - * / fma sqrt max
// sign chosen, the halves of an F16 as D8, and total(), the sum over the lanes as one tree (lane i takes lane i + 8,
// then i + 4, i + 2, i + 1). Included by kernels_impl.h, inside the private namespace of one instruction set.

#if defined(__AVX512F__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#else
#include "simd_default.h"
#endif

// A storage type is computed in the number type N, whose lanes are scalars.
template <class S>
struct Storage {
  using number = F16;
};
template <>
struct Storage<double> {
  using number = D8;
};
template <class S>
using Number = typename Storage<S>::number;

// How many elements of a group are there: all (known when compiling), or fewer at the end of a row.
struct All {};
template <class S>
inline Number<S> load(const S* p, All) {
  return load(p);
}
template <class S>
inline Number<S> load(const S* p, int64_t left) {  // lanes past the end are zero
  S whole[Number<S>::lanes] = {};
  for (int64_t i = 0; i < left; ++i) whole[i] = p[i];
  return load(whole);
}
template <class S, class N>
inline void store(S* p, N x, All) {
  store(p, x);
}
template <class S, class N>
inline void store(S* p, N x, int64_t left) {
  S whole[N::lanes];
  store(whole, x);
  for (int64_t i = 0; i < left; ++i) p[i] = whole[i];
}

// body(i, left) for every group of lanes among n elements.  The last, shorter group is a call of its own: a test for it
// inside the loop cost a third of the speed of the loops that are not bound by memory.
template <class N, class Body>
inline void for_groups(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + N::lanes <= n; i += N::lanes) body(i, All{});
  if (i < n) body(i, n - i);
}
