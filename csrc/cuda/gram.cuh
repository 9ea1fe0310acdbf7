// Inner products of a panel of rows with another, by one block, over one chunk.
//
// Each thread sums its columns, in float or in double, and these sums are added in a fixed order (sums.cuh).  So a sum
// depends on the chunk alone: not on the panel, the grid, or the run.
#pragma once
#include "../core/gram.h"
#include "columns.cuh"
#include "sums.cuh"

namespace mt2o::cuda {

constexpr int gram_threads = sum_threads;
using GramShared = SumsShared<44>;  // 8 x 4 products, and the squares of these rows

// A rows of one set of rows, from the first column of the chunk on.
template <class G, int A>
struct PanelRows {
  const G* of[A];
  bool there[A];    // if not, it counts as zeros
  const G* origin;  // row 0 of the set, if centred: what is subtracted from each row; or nullptr
  int64_t row;      // distance from one to the next, if centred
  int mean_of;      // rows of the set, if their mean is subtracted too; or 0

  template <int V>
  __device__ __forceinline__ Pack<Scalar<G>, V> minus_origin(const G* from, const Pack<Scalar<G>, V>& at) const {
    Pack<Scalar<G>, V> x = load<V>(from);
#pragma unroll
    for (int i = 0; i < V; ++i) x.of[i] = x.of[i] - at.of[i];
    return x;
  }
  template <int V>
  __device__ __forceinline__ Pack<Scalar<G>, V> origin_at(int64_t p) const {
    if (origin) return load<V>(origin + p);
    return {};
  }
  // Of the differences to the origin.
  template <int V>
  __device__ __forceinline__ Pack<Scalar<G>, V> mean_at(int64_t p, const Pack<Scalar<G>, V>& at) const {
    using S = Scalar<G>;
    Pack<S, V> sum = {};
    for (int j = 1; j < mean_of; ++j) {
      const Pack<S, V> x = minus_origin<V>(origin + j * row + p, at);
#pragma unroll
      for (int i = 0; i < V; ++i) sum.of[i] = sum.of[i] + x.of[i];
    }
    const S share = S(1) / S(mean_of);
#pragma unroll
    for (int i = 0; i < V; ++i) sum.of[i] = sum.of[i] * share;
    return sum;
  }
  // V columns of all rows.
  template <int V, class N>
  __device__ __forceinline__ void read(int64_t p, Pack<N, V> (&x)[A]) const {
    const Pack<Scalar<G>, V> at = origin_at<V>(p);
#pragma unroll
    for (int r = 0; r < A; ++r) {
      Pack<Scalar<G>, V> row_r = {};
      if (there[r]) row_r = minus_origin<V>(of[r] + p, at);
      if constexpr (A == 1)
        if (mean_of > 0) {
          const Pack<Scalar<G>, V> mean = mean_at<V>(p, at);
#pragma unroll
          for (int i = 0; i < V; ++i) row_r.of[i] = row_r.of[i] - mean.of[i];
        }
#pragma unroll
      for (int i = 0; i < V; ++i) x[r].of[i] = N(row_r.of[i]);
    }
  }
};

// All pairs j <= i of a panel of A rows, into total[gram_pair(i, j)].
template <int V, class N, class G, int A>
__device__ __forceinline__ void triangle_sums(const PanelRows<G, A>& rows, const Chunk& chunk, GramShared& shared) {
  N sum[A * (A + 1) / 2] = {};
  for_columns<V>(0, chunk.end - chunk.begin, [&](auto width, int64_t p) {
    constexpr int columns = decltype(width)::columns;
    Pack<N, columns> x[A];
    rows.read(p, x);
#pragma unroll
    for (int i = 0; i < A; ++i)
#pragma unroll
      for (int j = 0; j <= i; ++j)
#pragma unroll
        for (int c = 0; c < columns; ++c)
          sum[i * (i + 1) / 2 + j] = fma(x[i].of[c], x[j].of[c], sum[i * (i + 1) / 2 + j]);
  });
  block_sums(sum, shared);
}

// All products of A rows and B others, into total[i * B + j]; Squares: then the squares of the rows, and of the others.
template <int V, bool Squares, class N, class G, int A, int B>
__device__ __forceinline__ void rectangle_sums(const PanelRows<G, A>& rows, const PanelRows<G, B>& others,
                                               const Chunk& chunk, GramShared& shared) {
  N sum[A * B + (Squares ? A + B : 0)] = {};
  for_columns<V>(0, chunk.end - chunk.begin, [&](auto width, int64_t p) {
    constexpr int columns = decltype(width)::columns;
    Pack<N, columns> x[A], y[B];
    rows.read(p, x), others.read(p, y);
#pragma unroll
    for (int c = 0; c < columns; ++c) {
#pragma unroll
      for (int i = 0; i < A; ++i)
#pragma unroll
        for (int j = 0; j < B; ++j) sum[i * B + j] = fma(x[i].of[c], y[j].of[c], sum[i * B + j]);
      if constexpr (Squares) {
#pragma unroll
        for (int i = 0; i < A; ++i) sum[A * B + i] = fma(x[i].of[c], x[i].of[c], sum[A * B + i]);
#pragma unroll
        for (int j = 0; j < B; ++j) sum[A * B + A + j] = fma(y[j].of[c], y[j].of[c], sum[A * B + A + j]);
      }
    }
  });
  block_sums(sum, shared);
}

}  // namespace mt2o::cuda
