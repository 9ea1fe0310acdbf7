// The weighted sum of task gradients, for V columns of one row: what `combine` writes and `step` goes on with.
#pragma once
#include "columns.cuh"

namespace mt2o::cuda {

// columns_of(t): V columns of gradient t.  weights: of this row, float64, or nullptr: all one.  All threads read the
// same one: from the first-level cache.
template <class N, int V, class ColumnsOf>
__device__ __forceinline__ Pack<N, V> combined(ColumnsOf columns_of, const double* weights, int64_t tasks) {
  Pack<N, V> sum = columns_of(0);
  const N first = weights ? N(weights[0]) : N(1);
#pragma unroll
  for (int i = 0; i < V; ++i) sum.of[i] = first * sum.of[i];
#pragma unroll 2
  for (int64_t t = 1; t < tasks; ++t) {
    const N weight = weights ? N(weights[t]) : N(1);
    const Pack<N, V> g = columns_of(t);
#pragma unroll
    for (int i = 0; i < V; ++i) sum.of[i] = fma(weight, g.of[i], sum.of[i]);
  }
  return sum;
}

// Of row k from column p of this segment on.  weights: of all rows.
template <int V, class G, bool Apart>
__device__ __forceinline__ Pack<Scalar<G>, V> combined(const Gradients& grads, const double* weights, int64_t tasks,
                                                       int64_t k, int64_t segment, int64_t p) {
  const RowGradients<G> row(grads, k, segment, p, Apart);
  return combined<Scalar<G>, V>([&](int64_t t) { return load_if_there<V>(row[t]); },
                                weights ? weights + k * tasks : nullptr, tasks);
}

}  // namespace mt2o::cuda
