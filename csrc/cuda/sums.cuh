// Sums over the threads of a block: a fixed tree adds up a warp, and warps are added in their order, in double.
#pragma once
#include "portable.cuh"

namespace mt2o::cuda {

constexpr int sum_threads = 256;  // of a block that sums
constexpr int warp = 32;

template <int Most>
struct SumsShared {
  double of_warp[sum_threads / warp][Most], total[Most];
};

// Sum over the lanes of a warp, the same in all of them.
template <class N>
__device__ __forceinline__ N warp_sum(N x) {
#pragma unroll
  for (int distance = warp / 2; distance > 0; distance /= 2) x = x + __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

// Adds up sum[0 .. Count) over a warp in the same tree, a half of what is left with each step: lanes give away the sums
// of the other half.  write(q, the sum of sum[q]) by one lane for each q, first <= q < end in this one.
template <int Distance, int Count, class N, class Write>
__device__ __forceinline__ void shared_out_sums(const N (&sum)[Count], int first, int end, Write write) {
  if constexpr (Distance == 0) {
#pragma unroll
    for (int q = 0; q < Count; ++q)
      if (first + q < end) write(first + q, sum[q]);
  } else {
    constexpr int half = (Count + 1) / 2;
    const bool upper = (int(threadIdx.x) & Distance) != 0;
    N kept[half];
#pragma unroll
    for (int q = 0; q < half; ++q) {
      const N low = sum[q], high = q + half < Count ? sum[q + half < Count ? q + half : q] : N(0);
      kept[q] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, Distance);
    }
    if (upper)
      first += half;
    else
      end = end < first + half ? end : first + half;
    shared_out_sums<Distance / 2>(kept, first, end, write);
  }
}

// total[q] = the sum of sum[q] over the block; by all of its threads.
template <int Count, int Most, class N>
__device__ __forceinline__ void block_sums(const N (&sum)[Count], SumsShared<Most>& shared) {
  static_assert(Count <= Most && Count <= sum_threads);
  const int thread = int(threadIdx.x);
  double* of_warp = shared.of_warp[thread / warp];
  shared_out_sums<warp / 2>(sum, 0, Count, [&](int q, N of_lanes) { of_warp[q] = double(of_lanes); });
  __syncthreads();
  if (thread < Count) {
    double total = 0.;
    for (int w = 0; w < sum_threads / warp; ++w) total += shared.of_warp[w][thread];
    shared.total[thread] = total;
  }
  __syncthreads();
}

}  // namespace mt2o::cuda
