// The weighted sum of task gradients, for V columns of one row: what `combine` writes and `step` goes on with.
#pragma once
#include "columns.cuh"

namespace mt2o::cuda {

// weights: of this row, float64, or nullptr: all one.  All threads read the same one: from the first-level cache.
template <int V, class G>
__device__ __forceinline__ Pack<Scalar<G>, V> combined(const G* grads, int64_t task_stride, const double* weights,
                                                       int64_t tasks) {
  using N = Scalar<G>;
  Pack<N, V> sum = load<V>(grads);
  const N first = weights ? N(weights[0]) : N(1);
#pragma unroll
  for (int i = 0; i < V; ++i) sum.of[i] = first * sum.of[i];
#pragma unroll 2
  for (int64_t t = 1; t < tasks; ++t) {
    const N weight = weights ? N(weights[t]) : N(1);
    const Pack<N, V> g = load<V>(grads + t * task_stride);
#pragma unroll
    for (int i = 0; i < V; ++i) sum.of[i] = fma(weight, g.of[i], sum.of[i]);
  }
  return sum;
}

}  // namespace mt2o::cuda
