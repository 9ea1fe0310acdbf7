// The weighted sum of task gradients, for V columns of one row: what `combine` writes and `step` goes on with.
#pragma once
#include "columns.cuh"

namespace mt2o::cuda {

// All of every gradient counts: what a sum is made of where nothing else is said.
struct KeepAll {
  template <class N>
  __device__ __forceinline__ N operator()(int, int, N x) const {
    return x;
  }
};

// The gradients of one row, from one column of a segment on, and their weights; those of the first few tasks stay in
// registers.  AtOnce: tasks whose gradients are asked for before the first of them is used.
template <class G, bool Apart, int AtOnce = 4>
class TaskGradients {
 public:
  using N = Scalar<G>;

  // weights: of all rows, float64, or nullptr: all one.
  __device__ __forceinline__ TaskGradients(const Gradients& grads, const double* weights, int64_t tasks, int64_t k,
                                           int64_t segment, int64_t column)
      : row_(grads, k, segment, column, Apart),
        weights_(weights ? weights + k * tasks : nullptr),
        tasks_(int(tasks)),
        first_(group(0)) {}

  // The weighted sum of V columns from column p on (of those behind the first one).
  template <int V>
  __device__ __forceinline__ Pack<N, V> sum(int64_t p) const {
    return sum<V>(p, KeepAll{});
  }
  // The same of what keep(t, c, x) leaves of x, task t's gradient in the c-th of these columns.
  template <int V, class Keep>
  __device__ __forceinline__ Pack<N, V> sum(int64_t p, Keep keep) const {
    Pack<N, V> sum[1] = {};
    add<AtOnce, true>(first_, 0, p, 0, 0, sum, keep);
    for (int t = AtOnce; t < tasks_; t += AtOnce) add<AtOnce, false>(group(t), t, p, 0, 0, sum, keep);
    return sum[0];
  }
  // Of several times V columns, `stride` apart, but for what lies from `end` on; with two, of no more than two tasks.
  template <int V, int Packs>
  __device__ __forceinline__ void sums(int64_t p, int64_t stride, int64_t end, Pack<N, V> (&sum)[Packs]) const {
    add<AtOnce / Packs, true>(first_, 0, p, stride, end, sum, KeepAll{});
    if constexpr (Packs == 1)
      for (int t = AtOnce; t < tasks_; t += AtOnce) add<AtOnce, false>(group(t), t, p, stride, end, sum, KeepAll{});
  }

 private:
  struct Group {
    const G* of[AtOnce];
    N weight[AtOnce];
  };

  __device__ __forceinline__ Group group(int first) const {
    Group found;
#pragma unroll
    for (int j = 0; j < AtOnce; ++j) {
      const bool there = first + j < tasks_;
      found.of[j] = there ? row_[first + j] : nullptr;
      found.weight[j] = there && weights_ ? N(weights_[first + j]) : N(1);
    }
    return found;
  }
  // Adds the tasks first, first + 1, ... of a group; Begin: to nothing.
  template <int Count, bool Begin, int V, int Packs, class Keep>
  __device__ __forceinline__ void add(const Group& group, int first, int64_t p, int64_t stride, int64_t end,
                                      Pack<N, V> (&sum)[Packs], Keep keep) const {
    Pack<N, V> x[Packs][Count] = {};
#pragma unroll
    for (int i = 0; i < Packs; ++i)
#pragma unroll
      for (int j = 0; j < Count; ++j) {
        const bool there = Apart ? group.of[j] != nullptr : first + j < tasks_;
        if (there && (i == 0 || p + i * stride < end))
          x[i][j] = load<V>(in_global_memory(group.of[j]) + p + i * stride);
      }
#pragma unroll
    for (int j = 0; j < Count; ++j) {
      if (first + j >= tasks_) break;
#pragma unroll
      for (int i = 0; i < Packs; ++i)
#pragma unroll
        for (int c = 0; c < V; ++c) {
          const N value = keep(first + j, c, x[i][j].of[c]);
          sum[i].of[c] = Begin && j == 0 ? group.weight[j] * value : fma(group.weight[j], value, sum[i].of[c]);
        }
    }
  }

  RowGradients<G> row_;
  const double* weights_;
  int tasks_;
  Group first_;
};

}  // namespace mt2o::cuda
