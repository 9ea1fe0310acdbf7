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

// total[q] = the sum of sum[q] over the block; by all of its threads.
template <int Count, int Most, class N>
__device__ __forceinline__ void block_sums(const N (&sum)[Count], SumsShared<Most>& shared) {
  const int thread = int(threadIdx.x);
#pragma unroll
  for (int q = 0; q < Count; ++q) {
    const N of_warp = warp_sum(sum[q]);
    if (thread % warp == 0) shared.of_warp[thread / warp][q] = double(of_warp);
  }
  __syncthreads();
  if (thread < Count) {
    double total = 0.;
    for (int w = 0; w < sum_threads / warp; ++w) total += shared.of_warp[w][thread];
    shared.total[thread] = total;
  }
  __syncthreads();
}

}  // namespace mt2o::cuda
