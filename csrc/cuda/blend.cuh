// The blend of core/blend.h by a block of threads: N = M - I in shared memory, V columns of all rows held by the thread
// that owns these columns: in registers, or staged in shared memory.  No other thread looks at them: staging needs no
// barrier, and rows are written in place without a hazard.
//
// Kernels are compiled for up to 2, 4, 8 and 16 rows (Capacity), which fixes how much shared memory a block takes and
// so how many blocks a multiprocessor holds; and once more for any number of rows (Capacity 0).
#pragma once
#include "../core/blend.h"
#include "columns.cuh"

namespace mt2o::cuda {

constexpr int blend_threads = 128;
template <class S>
constexpr int blend_blocks = sizeof(S) == 4 ? 6 : 5;  // of a multiprocessor: what registers are given out for

// The rows first .. first + Rows of N, in blocks of mix_block.
template <class S, int Rows, int Columns>
struct Coupling {
  static constexpr int height = Rows < mix_block ? Rows : mix_block, blocks = Rows / height;
  alignas(16) S values[blocks][Columns][height];
  bool used[blocks][Columns];  // by any row of a block
  bool identity[Rows];

  // By all threads of the block.  matrix: [rows][rows], or nullptr for the identity.
  __device__ __forceinline__ void read(const double* matrix, int64_t rows, int64_t first) {
    __syncthreads();  // nobody reads the rows of before
    for (int at = int(threadIdx.x); at < blocks * int(rows); at += int(blockDim.x)) {
      const int block = at / int(rows), j = at % int(rows);
      bool any = false;
#pragma unroll
      for (int r = 0; r < height; ++r) {
        const int64_t k = first + block * height + r;
        const S value = matrix && k < rows && j > 0 ? coupling<S>(matrix, rows, k, j) : S(0);
        values[block][j][r] = value;
        any |= value != S(0);
      }
      used[block][j] = any;
    }
    __syncthreads();
    if (int(threadIdx.x) < Rows) {
      bool none = true;
      for (int j = 1; j < int(rows); ++j) none &= values[threadIdx.x / height][j][threadIdx.x % height] == S(0);
      identity[threadIdx.x] = none;
    }
    __syncthreads();
  }

  // sum + sum_j N_kj (x_j - x_0) for row k = first + r; staged: x_0, rows `stride` apart.
  template <int V>
  __device__ __forceinline__ Pack<S, V> blended(int r, const S* staged, int stride, int rows, Pack<S, V> sum) const {
    const Pack<S, V> origin = load<V>(staged);
#pragma unroll 2
    for (int j = 1; j < rows; ++j) {
      if (!used[r / height][j]) continue;
      const S factor = values[r / height][j][r % height];
      const Pack<S, V> x = load<V>(staged + j * stride);
#pragma unroll
      for (int i = 0; i < V; ++i) sum.of[i] = with_taken(sum.of[i], factor, x.of[i] - origin.of[i]);
    }
    return sum;
  }
};

// What a block that blends keeps in shared memory.
template <class S, int Capacity>
struct BlendShared {
  static constexpr bool whole = Capacity > 0;                 // all of N is there at once
  static constexpr int columns = whole ? wide<S> : 1;         // of a thread
  static constexpr int block = whole ? Capacity : mix_block;  // rows of N that are there at a time
  static constexpr int staged_size = whole ? Capacity * columns * blend_threads : 24 * 1024 / int(sizeof(S));

  alignas(16) S staged[staged_size];
  Coupling<S, block, whole ? Capacity : int(max_rows)> coupling;

  // Threads that have columns, when so many rows are staged.
  __device__ __forceinline__ static int owners(int rows) {
    return whole ? blend_threads : int(least(blend_threads, staged_size / rows));
  }
};

// body(Width<V>{}, p, mine) for the columns of a part, by all threads at once: it may contain barriers.  Where not
// `mine`, the thread has no columns this time.
template <int V, class Body>
__device__ __forceinline__ void for_owned_columns(const Chunk& part, int owners, Body body) {
  const int64_t whole = part.begin + (part.end - part.begin) / V * V, thread = threadIdx.x;
  for (int64_t p = part.begin; p < whole; p += int64_t(owners) * V)
    body(Width<V>{}, p + thread * V, thread < owners && p + thread * V < whole);
  if constexpr (V > 1)
    if (whole < part.end) body(Width<1>{}, whole + thread, whole + thread < part.end);
}

// Copies V columns of all rows, `row` apart, to shared memory: four are asked for before the first is waited for.
template <int V, class S>
__device__ __forceinline__ void stage_rows(const S* theta, int64_t row, S* staged, int stride, int rows) {
  constexpr int at_once = 4;
  for (int k = 0; k < rows; k += at_once) {
    Pack<S, V> x[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      if (k + i < rows) x[i] = load<V>(theta + (k + i) * row);
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      if (k + i < rows) store(staged + (k + i) * stride, x[i]);
  }
}

// f(Width<Capacity>{}) with the kernel for so many rows of float; of double there is one for all.
template <class S, class F>
Problem with_capacity(int64_t rows, F f) {
  if constexpr (sizeof(S) == 4) {
    if (rows <= 2) return f(Width<2>{});
    if (rows <= 4) return f(Width<4>{});
    if (rows <= 8) return f(Width<8>{});
    if (rows <= 16) return f(Width<16>{});
  }
  return f(Width<0>{});
}

}  // namespace mt2o::cuda
