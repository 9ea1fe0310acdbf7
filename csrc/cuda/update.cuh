// One row of a step, V columns of it: the base rule and what follows from the new parameter.
#pragma once
#include "../core/rules.h"
#include "combined.cuh"

namespace mt2o::cuda {

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

// What the base rule adds to x; advances the moments in memory.
template <int V, class G, bool Apart, class S>
__device__ __forceinline__ Pack<S, V> update(const Step& s, const RowConstants<S>& c, int64_t k, int64_t segment,
                                             int64_t p, const Pack<S, V>& x) {
  const int64_t at = k * s.row + p;
  S *exp_avg = static_cast<S*>(s.exp_avg) + at, *exp_avg_sq = static_cast<S*>(s.exp_avg_sq) + at;
  Pack<S, V> g = combined<V, G, Apart>(s.grads, s.weights, s.tasks, k, segment, p);
  Pack<S, V> u;
#pragma unroll
  for (int i = 0; i < V; ++i) g.of[i] = c.gradient * g.of[i];
  if (s.rule == Rule::sgd) {
#pragma unroll
    for (int i = 0; i < V; ++i) u.of[i] = sgd(c, g.of[i], x.of[i]);
    return u;
  }
  Pack<S, V> m = load<V>(exp_avg);
  if (s.rule == Rule::momentum) {
#pragma unroll
    for (int i = 0; i < V; ++i) u.of[i] = momentum(c, g.of[i], x.of[i], m.of[i]);
    store(exp_avg, m);
    return u;
  }
  Pack<S, V> v = load<V>(exp_avg_sq);
  if (s.rule == Rule::adam) {
#pragma unroll
    for (int i = 0; i < V; ++i) u.of[i] = adam(c, g.of[i], x.of[i], m.of[i], v.of[i]);
  } else {
    S* max_exp_avg_sq = static_cast<S*>(s.max_exp_avg_sq) + at;
    Pack<S, V> top = load<V>(max_exp_avg_sq);
#pragma unroll
    for (int i = 0; i < V; ++i) u.of[i] = amsgrad(c, g.of[i], x.of[i], m.of[i], v.of[i], top.of[i]);
    store(max_exp_avg_sq, top);
  }
  store(exp_avg, m);
  store(exp_avg_sq, v);
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
  store(static_cast<S*>(s.theta) + at, x);
  if (s.ema) {
    S* ema = static_cast<S*>(s.ema) + at;
    Pack<S, V> average = load<V>(ema);
#pragma unroll
    for (int i = 0; i < V; ++i) average.of[i] = averaged(gain, x.of[i], average.of[i]);
    store(ema, average);
  }
  if constexpr (sizeof(S) == 4)
    if (s.low_precision) {
      const int64_t low = k * s.low_row + p;
      if (s.low_type == Type::bfloat16)
        store(static_cast<bfloat16*>(s.low_precision) + low, x);
      else
        store(static_cast<float16*>(s.low_precision) + low, x);
    }
}

}  // namespace mt2o::cuda
