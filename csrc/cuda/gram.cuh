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

// Columns that a thread takes at a time.  These are the same for every kernel of one precision, so that a pair of rows
// has the same sum, to the bit, among few rows and many, in one set and in two, of float and of sixteen bits.
template <class G>
constexpr int gram_columns = int(least(4, wide<G>));

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
template <int V, class N, class G, int A, int Most>
__device__ __forceinline__ void triangle_sums(const PanelRows<G, A>& rows, const Chunk& chunk,
                                              SumsShared<Most>& shared) {
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
template <int V, bool Squares, class N, class G, int A, int B, int Most>
__device__ __forceinline__ void rectangle_sums(const PanelRows<G, A>& rows, const PanelRows<G, B>& others,
                                               const Chunk& chunk, SumsShared<Most>& shared) {
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

// One chunk of one matrix of rows, and where its sums go.
template <class G>
struct ChunkOfRows {
  const Gram& s;
  const Chunk& chunk;
  int64_t batch;
  double* out;
  bool apart;  // lie_apart(s.values), known when compiling where that saves registers

  // Rows from `first` on.
  template <int Height>
  __device__ __forceinline__ PanelRows<G, Height> panel(bool of_others, int64_t first) const {
    const RowGradients<G> values(s.values, batch, chunk.segment, chunk.begin, apart);
    const auto at = [&](int64_t i) {
      return of_others
                 ? static_cast<const G*>(s.others) + batch * s.others_batch_stride + i * s.others_row + chunk.begin
                 : in_global_memory(values[i]);
    };
    PanelRows<G, Height> rows = {};
#pragma unroll
    for (int r = 0; r < Height; ++r) {
      rows.there[r] = first + r < s.rows;
      if (!apart || rows.there[r]) rows.of[r] = at(first + r);
      if (apart) rows.there[r] = rows.of[r] != nullptr;
    }
    if (s.centre) rows.origin = at(0), rows.row = of_others ? s.others_row : s.values.task;
    if (s.centre && s.diagonal) rows.mean_of = int(s.rows);
    return rows;
  }

  // The sum of rows i and j.
  __device__ __forceinline__ void write(int i, int j, double sum) const {
    const bool other_half = !s.cross && j > i;
    if (i >= s.rows || j >= s.rows || other_half) return;
    out[s.diagonal ? i : s.cross ? i * s.rows + j : gram_pair(i, j)] = sum;
  }

  // Whether the square of a row, summed in float, is no square of its numbers.  Of centred rows the first is zero, and
  // may be.
  __device__ __forceinline__ bool out_of_range(int row, double square) const {
    return row < s.rows && !(s.centre && row == 0) && !gram_in_range(float(square));
  }
  __device__ __forceinline__ static bool either(unsigned rows, int i, unsigned others, int j) {
    return ((rows >> i | others >> j) & 1u) != 0;
  }
  // Pairs of `height` rows from x on and two others of which one is out of range, a bit of `rows` or of `others`.  The
  // others keep their sums, so that these depend on the two rows alone.
  template <int Most>
  __device__ __forceinline__ void again_in_double(int x, int height, unsigned rows, int other, unsigned others,
                                                  SumsShared<Most>& shared) const {
    for (int first = 0; first < height; first += 2, rows >>= 2) {
      if (((rows | others) & 3u) == 0) continue;
      rectangle_sums<gram_columns<G>, false, double>(panel<2>(false, x + first), panel<2>(s.cross, other), chunk,
                                                     shared);
      const int q = int(threadIdx.x), i = q / 2, j = q % 2;
      if (i < 2 && either(rows, i, others, j)) write(x + first + i, other + j, shared.total[q]);
    }
  }
};

// All pairs of more than gram_few rows of at most 32 bits, up to so many.
constexpr int gram_most = 16;
Problem gram_rows(const Gram&, Stream);
// The second stage: out[batch][segments] from the partial sums of chunks.
Problem gram_add(const Gram&, double* out, int64_t segments, Stream);

}  // namespace mt2o::cuda
