#include "../core/judge.h"

#include "columns.cuh"

namespace mt2o::cuda {

constexpr int threads = 256, warp = 32;
constexpr unsigned all_lanes = 0xffffffffu;

__global__ void __launch_bounds__(warp) gather_scalars(Losses s) {
  judge::gather(s, s.first, s.first + s.count, threadIdx.x, warp);
}

// Lane by lane, in the order of the CPU.
__device__ __forceinline__ void add_up(const Judge& s) {
  const int64_t entries = judge::entries(s), lane = threadIdx.x % warp;
  for (int64_t unit = threadIdx.x / warp; unit < s.rows * entries; unit += threads / warp) {
    double own = 0., sum = 0.;
    for (int64_t segment = lane; segment < s.segments; segment += judge::lanes)
      own += judge::term(s, unit / entries, segment, unit % entries);
    for (int i = 0; i < warp; ++i) sum += __shfl_sync(all_lanes, own, i);
    if (lane == 0) s.sums[unit] = sum;
  }
}

// One block: with `together` a row depends on all others.
__global__ void __launch_bounds__(threads) judge_rows(Judge s) {
  static_assert(judge::lanes == warp);
  judge::gather(s.losses, 0, s.rows * s.tasks, threadIdx.x, threads);
  add_up(s);
  __syncthreads();
  for (int64_t k = 0; k < s.rows; ++k) {
    const bool good = __syncthreads_and(judge::is_good(s, k, threadIdx.x, threads));
    if (threadIdx.x == 0) judge::find(s, k, good);
  }
  __syncthreads();
  for (int64_t k = threadIdx.x; k < s.rows; k += threads) judge::mark(s, k);
  __syncthreads();
  const int64_t squares = s.tasks * s.tasks;
  for (int64_t i = threadIdx.x; s.filled != nullptr && i < s.rows * squares; i += threads)
    judge::fill_square(s, i / squares, i % squares);
  for (int64_t i = threadIdx.x; i < s.rows * s.tasks; i += threads) judge::fill_task(s, i / s.tasks, i % s.tasks);
}

// A warp for each row.
__global__ void __launch_bounds__(warp) settle_rows(Settle s) {
  const int64_t lane = threadIdx.x;
  for (int64_t k = blockIdx.x; k < s.rows; k += gridDim.x) {
    judge::gather(s.losses, k * s.tasks, (k + 1) * s.tasks, lane, warp);
    __syncwarp();
    const bool good = __all_sync(all_lanes, judge::losses_are_good(s, k, lane, warp));
    int64_t unusable = judge::first_unusable(s, k, lane, warp);
    for (int distance = warp / 2; distance > 0; distance /= 2)
      unusable = least(unusable, __shfl_xor_sync(all_lanes, unusable, distance));
    const judge::Outcome is = judge::outcome(s, k, good, unusable);
    if (lane == 0) judge::tell(s, k, is, unusable);
    for (int64_t i = lane; i < s.count; i += warp) judge::apply(s, k, is, i);
  }
}

__global__ void __launch_bounds__(warp) count_rows(Count s) {
  for (int64_t k = threadIdx.x; k < s.rows; k += warp) judge::count(s, k);
}

Problem judge(const Losses& s, Stream stream) {
  return s.count == 0 ? nullptr : launch_units(gather_scalars, 1, warp, stream, s);
}
Problem judge(const Judge& s, Stream stream) {
  return s.rows == 0 ? nullptr : launch_units(judge_rows, 1, threads, stream, s);
}
Problem settle(const Settle& s, Stream stream) {
  return s.rows == 0 ? nullptr : launch_units(settle_rows, s.rows, warp, stream, s);
}
Problem count(const Count& s, Stream stream) {
  return s.rows == 0 ? nullptr : launch_units(count_rows, 1, warp, stream, s);
}

}  // namespace mt2o::cuda
