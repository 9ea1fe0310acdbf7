// The words of CUDA C++ that the kernels use.  What is not here does not compile: atomics, <<<>>>, PTX, raw __shared__.
#pragma once
#include <cstdint>
#include <cstring>

// The toolkit's headers define these for the host.
#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static_assert(false, "shared memory is asked for by mt2o::block_shared<T>()");
#define __forceinline__ inline
#define __launch_bounds__(...)

// Of the running thread; set by the scheduler.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulator {

// Waits for all threads of the block; returns for how many of them `value` is true.
unsigned meet_block(bool value, const Site& at);
// Waits for the lanes in `mask`; whether what they wrote is then seen by each other is said by `fence`.
struct Lanes {
  const uint64_t* values;  // of 32 lanes; those in the mask are set
  unsigned mask;
};
Lanes meet_warp(unsigned mask, uint64_t value, bool fence, const Site& at);
int lane();
[[noreturn]] void violation(const char* what, const Site& at);

template <class T>
T shuffle(unsigned mask, T value, int source, const Site& at) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles move 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const Lanes lanes = meet_warp(mask, bits, false, at);
  if (source < 0 || source >= warpSize) return value;  // past the end of the warp: one's own value
  if (!(lanes.mask >> source & 1)) violation("a shuffle reads from a lane that is not in its mask", at);
  std::memcpy(&value, &lanes.values[source], sizeof value);
  return value;
}

}  // namespace emulator

inline void __syncthreads(emulator::Site at = emulator::Site::current()) { emulator::meet_block(false, at); }
inline int __syncthreads_count(int predicate, emulator::Site at = emulator::Site::current()) {
  return int(emulator::meet_block(predicate != 0, at));
}
inline int __syncthreads_or(int predicate, emulator::Site at = emulator::Site::current()) {
  return emulator::meet_block(predicate != 0, at) > 0;
}
inline int __syncthreads_and(int predicate, emulator::Site at = emulator::Site::current()) {
  return emulator::meet_block(predicate == 0, at) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, emulator::Site at = emulator::Site::current()) {
  emulator::meet_warp(mask, 0, true, at);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, emulator::Site at = emulator::Site::current()) {
  return emulator::shuffle(mask, value, source & 31, at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, emulator::Site at = emulator::Site::current()) {
  return emulator::shuffle(mask, value, emulator::lane() - int(delta), at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, emulator::Site at = emulator::Site::current()) {
  return emulator::shuffle(mask, value, emulator::lane() + int(delta), at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, emulator::Site at = emulator::Site::current()) {
  return emulator::shuffle(mask, value, emulator::lane() ^ bits, at);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Site at = emulator::Site::current()) {
  const emulator::Lanes lanes = emulator::meet_warp(mask, predicate != 0, false, at);
  unsigned votes = 0;
  for (int i = 0; i < warpSize; ++i)
    if (lanes.mask >> i & 1) votes |= unsigned(lanes.values[i]) << i;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, emulator::Site at = emulator::Site::current()) {
  return __ballot_sync(mask, predicate, at) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulator::Site at = emulator::Site::current()) {
  return __ballot_sync(mask, predicate, at) == mask;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }

// Loads and stores with a hint to the cache.
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, T value) {
  *p = value;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}
template <class T>
void __stwb(T* p, T value) {
  *p = value;
}
