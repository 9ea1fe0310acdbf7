// Kernels of the kinds that the package has, each with bugs that a test can switch on.
#pragma once
#include <cstdint>

#include "../emulator.h"

namespace planted {

using emulator::block_shared;

enum class Bug {
  none,
  // element by element
  tail_overrun,
  misaligned_load,
  // barriers
  divergent_barrier,
  barrier_after_return,
  no_barrier_before_read,
  no_barrier_before_reuse,
  no_warp_barrier,
  barriers_of_half_warps,
  // shuffles
  divergent_shuffle,
  caller_not_in_mask,
  source_not_in_mask,
  mask_past_block,
  // shared memory
  shared_write_overrun,
  shared_read_overrun,
  shared_uninitialised,
  shared_too_large,
  // blocks
  blocks_write_one_place,
  block_reads_other_block,
  too_many_threads,
  too_many_blocks,
};

constexpr unsigned all_lanes = 0xffffffffu;
constexpr int threads = 64, warps = threads / 32;

// y += a x, four elements at a time and the tail alone.
__global__ void axpy(const float* x, float* y, float a, int64_t n, Bug bug) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x, first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t packs = bug == Bug::tail_overrun ? (n + 3) / 4 : n / 4;
  for (int64_t i = first; i < packs; i += stride) {
    const float4 u = reinterpret_cast<const float4*>(x)[i];
    float4 v = reinterpret_cast<float4*>(y)[i];
    v.x += a * u.x, v.y += a * u.y, v.z += a * u.z, v.w += a * u.w;
    reinterpret_cast<float4*>(y)[i] = v;
  }
  for (int64_t i = packs * 4 + first; i < n; i += stride) y[i] += a * x[i];
}

struct WarpSums {
  float of[warps];
};
struct TooLarge {
  float values[13000];
};

// The sum over the block, in thread 0.
__device__ __forceinline__ float block_sum(float x, Bug bug) {
  WarpSums& sums = block_shared<WarpSums>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (bug != Bug::divergent_shuffle || lane < 16)  // half of the lanes named in the mask never come
    for (int d = 16; d > 0; d /= 2) x += __shfl_down_sync(all_lanes, x, d);
  if (bug != Bug::no_barrier_before_reuse) __syncthreads();  // thread 0 may still read the last sums
  if (lane == 0 && (bug != Bug::shared_uninitialised || warp > 0)) sums.of[warp] = x;
  if (threadIdx.x == threads - 32 && bug == Bug::shared_write_overrun) sums.of[warp + 1] = x;
  if (bug == Bug::divergent_barrier && warp == 1)
    __syncthreads();
  else if (bug != Bug::no_barrier_before_read)
    __syncthreads();
  if (threadIdx.x > 0) return 0.f;
  float total = 0.f;
  for (int i = 0; i < warps + (bug == Bug::shared_read_overrun); ++i) total += sums.of[i];
  return total;
}

// sums[block] and squares[block]: of the block's share of x.
__global__ void partial_sums(const float* x, float* sums, float* squares, int64_t n, Bug bug) {
  float sum = 0.f, square = 0.f;
  for (int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x; i < n; i += int64_t(gridDim.x) * threads)
    sum += x[i], square += x[i] * x[i];
  if (bug == Bug::barrier_after_return && threadIdx.x / 32 == 1) return;
  if (bug == Bug::shared_too_large) block_shared<TooLarge>().values[threadIdx.x] = sum;
  sum = block_sum(sum, bug);
  square = block_sum(square, bug);
  if (threadIdx.x > 0) return;
  const unsigned place = bug == Bug::blocks_write_one_place ? 0 : blockIdx.x;
  sums[place] = sum;
  squares[place] = square;
  if (bug == Bug::block_reads_other_block && blockIdx.x > 0) sums[place] += 0.f * sums[blockIdx.x - 1];
}

struct Columns {
  float of[threads];
};

// Every warp turns its 32 elements round, through shared memory and through shuffles, and adds both.
__global__ void reverse_warps(const float* x, float* y, Bug bug) {
  Columns& columns = block_shared<Columns>();
  const int lane = threadIdx.x % 32, other = int(threadIdx.x) ^ 31;
  columns.of[threadIdx.x] = x[threadIdx.x];
  if (bug == Bug::barriers_of_half_warps)  // each half then reads what the other has written
    __syncwarp(lane < 16 ? 0xffffu : 0xffff0000u);
  else if (bug != Bug::no_warp_barrier)
    __syncwarp();
  unsigned mask = all_lanes;
  if (bug == Bug::caller_not_in_mask) mask = 0x7fffffffu;
  if (bug == Bug::source_not_in_mask) mask = lane < 16 ? 0xffffu : 0xffff0000u;
  y[threadIdx.x] = columns.of[other] + __shfl_sync(mask, x[threadIdx.x], 31 - lane);
}

}  // namespace planted
