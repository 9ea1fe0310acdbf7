#include "../core/exchange.h"

#include "columns.cuh"

namespace mt2o::cuda {

// The key of the last bit that changes is found four bits at a time, from the top: each launch counts, chunk by chunk,
// the keys with the digits that are known by now by their next one, and another adds up and goes on.  Both kinds of
// bits, those that are cleared and those that are set, at once: their 2 x 16 counts are one for each lane of a warp.
constexpr int threads = 256, warp = 32, digit_bits = 4, digits = 1 << digit_bits;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr int counting = key_bits;  // instead of a shift: all bits are counted, by their kind

// Of one task: how many change, and for both kinds the digits by now and how many are to be found with these.
struct ExchangeState {
  uint64_t amount;
  struct {
    uint64_t digits, left;
  } of[2];
};
static_assert(sizeof(ExchangeState) == exchange_state * sizeof(uint64_t) && 2 * digits == exchange_bins);

__device__ __forceinline__ bool has(const Exchange& s, int64_t task, int64_t p) {
  return (s.masks[task * s.masks_row + p / 8] >> (p % 8) & 1) != 0;
}
__device__ __forceinline__ uint64_t key_at(const Exchange& s, int64_t task, int64_t p, bool inside) {
  return exchange_key(s.scores[task * s.scores_row + p], inside, p);
}

// A block takes one chunk of one task.  Lane b of a warp counts the keys of kind and digit b.
__global__ void __launch_bounds__(threads) count_digits(Exchange s, int shift) {
  auto& counts = block_shared<int32_t[threads / warp][warp]>();
  const int64_t c = blockIdx.x, task = blockIdx.y;
  const Chunk chunk = s.chunks[c];
  const ExchangeState& state = reinterpret_cast<const ExchangeState*>(s.state)[task];
  const unsigned lane = threadIdx.x % warp;
  int32_t count = 0;
  for (int64_t base = chunk.begin + int64_t(threadIdx.x / warp) * warp; base < chunk.end; base += threads) {
    const int64_t p = base + lane;
    unsigned code = 0;
    bool there = p < chunk.end;
    if (there) {
      const bool inside = has(s, task, p);
      code = inside ? 0 : digits;
      if (shift != counting) {
        const uint64_t key = key_at(s, task, p, inside);
        there = shift + digit_bits == key_bits || key >> (shift + digit_bits) == state.of[inside ? 0 : 1].digits;
        code |= unsigned(key >> shift) & (digits - 1);
      }
    }
    unsigned mine = __ballot_sync(all_lanes, there);
#pragma unroll
    for (int bit = 0; bit <= digit_bits; ++bit) {
      const unsigned set = __ballot_sync(all_lanes, code >> bit & 1);
      mine &= lane >> bit & 1 ? set : ~set;
    }
    count += __popc(mine);
  }
  counts[threadIdx.x / warp][lane] = count;
  __syncthreads();
  if (threadIdx.x >= warp) return;
  int32_t sum = 0;
  for (int w = 0; w < threads / warp; ++w) sum += counts[w][lane];
  s.counts[(task * s.num_chunks + c) * exchange_bins + lane] = sum;
}

// A warp for each task; half of it for each kind.
__global__ void __launch_bounds__(warp) next_digit(Exchange s, int shift) {
  const int64_t task = blockIdx.x;
  ExchangeState& state = reinterpret_cast<ExchangeState*>(s.state)[task];
  const unsigned lane = threadIdx.x, kind = lane / digits;
  uint64_t own = 0;
  for (int64_t c = 0; c < s.num_chunks; ++c)
    own += uint64_t(s.counts[(task * s.num_chunks + c) * exchange_bins + lane]);
  if (shift == counting) {
    const uint64_t inside = __shfl_sync(all_lanes, own, 0), outside = __shfl_sync(all_lanes, own, digits);
    const uint64_t amount = uint64_t(least(s.amount, least(int64_t(inside), int64_t(outside))));
    if (lane == 0) state = {amount, {{0, amount}, {0, amount}}};
    return;
  }
  uint64_t sum = own;  // of the digits up to this one
#pragma unroll
  for (int distance = 1; distance < digits; distance *= 2) {
    const uint64_t before = __shfl_up_sync(all_lanes, sum, distance);
    if (lane % digits >= unsigned(distance)) sum += before;
  }
  const uint64_t left = state.of[kind].left, known = state.of[kind].digits;
  __syncwarp();
  if (left > 0 && sum >= left && sum - own < left)
    state.of[kind] = {known << digit_bits | lane % digits, left - (sum - own)};
}

// A thread has the eight columns of a byte.
__global__ void __launch_bounds__(threads) exchange_bits(Exchange s) {
  const Chunk chunk = s.chunks[blockIdx.x];
  const int64_t task = blockIdx.y;
  const ExchangeState& state = reinterpret_cast<const ExchangeState*>(s.state)[task];
  const uint64_t last_cleared = state.of[0].digits, last_set = state.of[1].digits;
  if (state.amount == 0) return;
  for (int64_t p = chunk.begin + 8 * int64_t(threadIdx.x); p < chunk.end; p += 8 * threads) {
    unsigned changed = 0;
    for (int64_t i = 0; i < least(8, chunk.end - p); ++i) {
      const bool inside = has(s, task, p + i);
      if (key_at(s, task, p + i, inside) <= (inside ? last_cleared : last_set)) changed |= 1u << i;
    }
    if (changed) s.masks[task * s.masks_row + p / 8] ^= uint8_t(changed);
  }
}

Problem exchange(const Exchange& s, Stream stream) {
  if (s.tasks == 0 || s.num_chunks == 0 || s.amount == 0) return nullptr;
  if (s.num_chunks > INT32_MAX) return "more chunks than a grid has blocks";
  const dim3 blocks(unsigned(s.num_chunks), unsigned(s.tasks)), tasks(unsigned(s.tasks));
  const auto on = static_cast<cudaStream_t>(stream);
  for (int shift = counting; shift >= 0; shift -= digit_bits) {
    if (const auto problem = described(launch(count_digits, blocks, dim3(threads), on, s, shift))) return problem;
    if (const auto problem = described(launch(next_digit, tasks, dim3(warp), on, s, shift))) return problem;
  }
  return described(launch(exchange_bits, blocks, dim3(threads), on, s));
}

}  // namespace mt2o::cuda
