// One row of a step, V columns of it: the base rule and what follows from the new parameter.
#pragma once
#include "../core/rules.h"
#include "combined.cuh"

namespace mt2o::cuda {

Problem step_masked(const Step&, Extent, Stream);  // with masks: all of `step` but its counters

template <class S>
struct RoundTo {
  MT2O_HD_MEMBER S operator()(double x) const { return S(x); }
};

// The constants of one row in one segment, as the loops take them.
template <class S>
struct RowState {
  RowConstants<S> rule;
  S average;
  bool active;

  __device__ __forceinline__ static RowState of(const StepConstants& constants) {
    return {row_constants<S>(constants, RoundTo<S>{}), S(constants.average), constants.active != 0.};
  }
};

// V columns of a row's moments, those that the rule has.  They are asked for before the gradients are waited for.
template <class S, int V>
struct Moments {
  Pack<S, V> of[max_moments];

  __device__ __forceinline__ static Moments load(const Step& s, int count, int64_t at) {
    Moments m = {};
#pragma unroll
    for (int j = 0; j < max_moments; ++j)
      if (j < count) m.of[j] = cuda::load<V>(static_cast<const S*>(s.moments[j]) + at);
    return m;
  }
};

// What the rule R adds to x, with the combined gradient g; advances the moments and stores them.
template <class R, class S, int V>
__device__ __forceinline__ Pack<S, V> update(const Step& s, const RowConstants<S>& c, int64_t at, const Pack<S, V>& g,
                                             const Pack<S, V>& x, Moments<S, V>& moments) {
  Pack<S, V> u;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    S own[R::moments + 1];  // one more than there are: no array is empty
#pragma unroll
    for (int j = 0; j < R::moments; ++j) own[j] = moments.of[j].of[i];
    u.of[i] = mt2o::update<R>(c, g.of[i], x.of[i], own);
#pragma unroll
    for (int j = 0; j < R::moments; ++j) moments.of[j].of[i] = own[j];
  }
#pragma unroll
  for (int j = 0; j < R::moments; ++j) store_whole(static_cast<S*>(s.moments[j]) + at, moments.of[j]);
  return u;
}

// The same with the rule of this step, for V columns of row k from column p of its gradients on; at: of its moments.
template <class S, int V, class Grads>
__device__ __forceinline__ Pack<S, V> update(const Step& s, const RowConstants<S>& c, const Grads& grads, int64_t p,
                                             int64_t at, const Pack<S, V>& x) {
  Moments<S, V> moments = Moments<S, V>::load(s, num_moments(s.rule), at);
  const Pack<S, V> g = grads.template sum<V>(p);
  Pack<S, V> u;
  with_rule(s.rule, [&](auto rule) { u = update<decltype(rule)>(s, c, at, g, x, moments); });
  return u;
}

template <class S, int V>
__device__ __forceinline__ Pack<S, V> sum_of(const Pack<S, V>& a, const Pack<S, V>& b) {
  Pack<S, V> sum;
#pragma unroll
  for (int i = 0; i < V; ++i) sum.of[i] = a.of[i] + b.of[i];
  return sum;
}

// Writes a new parameter, its running average and its rounded copy.
template <class S, int V>
__device__ __forceinline__ void write(const Step& s, S gain, int64_t k, int64_t p, const Pack<S, V>& x) {
  const int64_t at = k * s.row + p;
  store_whole(static_cast<S*>(s.theta) + at, x);
  if (s.ema) {
    S* ema = static_cast<S*>(s.ema) + at;
    Pack<S, V> average = load<V>(ema);
#pragma unroll
    for (int i = 0; i < V; ++i) average.of[i] = averaged(gain, x.of[i], average.of[i]);
    store_whole(ema, average);
  }
  if constexpr (sizeof(S) == 4)
    if (s.low_precision) {
      const int64_t low = k * s.low_row + p;
      if (s.low_type == Type::bfloat16)
        store_whole(static_cast<bfloat16*>(s.low_precision) + low, x);
      else
        store_whole(static_cast<float16*>(s.low_precision) + low, x);
    }
}

}  // namespace mt2o::cuda
